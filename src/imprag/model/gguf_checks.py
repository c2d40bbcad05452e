"""What transformers leaves out of a GGUF file without a word: refused."""

from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from imprag.errors import ImpRAGError
from imprag.model.weight_files import named

_EXPERTS = "_exps."  # are split or joined by rules of their own
_SCALING = "rope.scaling.type"


def check_all_read(path: Path, lm: PreTrainedModel) -> None:
    """Refuse a GGUF file with tensors or rotary settings that the model was made without.

    Llama 3 has its rotary frequencies in a tensor, other models their scaling among the settings;
    transformers reads neither, and the model would answer as another one.

    Args:
        path: the file.
        lm: what transformers has read of it.

    Raises:
        ImpRAGError: so; it names them.
    """
    reader = gguf.GGUFReader(path)
    architecture = _text(reader, "general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=lm.config.to_dict())
    known = get_gguf_hf_weights_map(lm, processor)
    names = (tensor.name for tensor in reader.tensors)
    left_out = [name for name in names if name not in known and _EXPERTS not in name]
    scaling = f"{architecture}.{_SCALING}"
    if _text(reader, scaling) not in ("", "none"):
        left_out.append(scaling)
    if left_out:
        raise ImpRAGError(
            f"cannot load {path}: transformers does not read its {named(sorted(left_out))}, so it "
            "would be another model; take the model in safetensors"
        )


def _text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())
