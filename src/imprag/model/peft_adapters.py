"""Adding and saving LoRA adapters with peft alone.

transformers has own methods for both, but they refuse every peft that is older than the one its
newest release names, which may not be published yet.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.adapter import PREFIX, WEIGHTS

if TYPE_CHECKING:
    from peft import PeftConfig

_NAME = "default"


def add_adapter(lm: PreTrainedModel, settings: "PeftConfig") -> None:
    """Put an adapter into ``lm``; only the adapter can then be trained.

    The same as ``lm.add_adapter(settings)`` with any version of peft.
    """
    from peft import inject_adapter_in_model

    settings.base_model_name_or_path = getattr(lm, "name_or_path", None)
    inject_adapter_in_model(settings, lm, _NAME)
    lm._hf_peft_config_loaded = True


def has_adapter(lm: PreTrainedModel) -> bool:
    """Whether ``lm`` carries an adapter, from here or from ``lm.add_adapter``."""
    return bool(getattr(lm, "peft_config", None))


def save_adapter(
    lm: PreTrainedModel, folder: Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter of ``lm`` into a folder, as peft reads it.

    Args:
        lm: a model with one adapter.
        folder: exists already.
        state_dict: the weights of the whole model; the current ones if not given.

    Raises:
        ImpRAGError: the model has several adapters.
    """
    from peft import get_peft_model_state_dict

    names = list(lm.peft_config)
    if len(names) > 1:
        raise ImpRAGError(
            f"the model carries {len(names)} adapters ({', '.join(names)}): merge them, or keep one"
        )
    weights = get_peft_model_state_dict(lm, state_dict=state_dict, adapter_name=names[0])
    save_file(
        {PREFIX + name: tensor.contiguous() for name, tensor in weights.items()},
        Path(folder) / WEIGHTS,
        metadata={"format": "pt"},
    )
    lm.peft_config[names[0]].save_pretrained(folder)
