"""LoRA adapters on the three layer groups."""

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig
from imprag.training.recipe import LoraSettings


def add_adapters(lm: PreTrainedModel, settings: LoraSettings, config: ImpRAGConfig) -> None:
    """Freeze the model and give each layer group that the settings name its adapter.

    One adapter of peft serves all groups, with ranks by module, so that it is saved as one.

    Raises:
        ImpRAGError: a target names no projection of the group's layers.
    """
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    last = len(lm.base_model.layers) - 1
    groups = {
        "bottom": (settings.bottom, range(config.b + 1)),
        "reading": (settings.reading, range(config.b + 1, config.t + 1)),
        "top": (settings.top, range(config.t + 1, last + 1)),
    }
    for group, (adapter, layers) in groups.items():
        if adapter is None:
            continue
        starts = tuple(f"{lm.base_model_prefix}.layers.{layer}." for layer in layers)
        linear = [
            name
            for name, module in lm.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(starts)
        ]
        for target in adapter.targets:
            found = [name for name in linear if name.rpartition(".")[2] == target]
            if not found:
                known = sorted({name.rpartition(".")[2] for name in linear})
                raise ImpRAGError(
                    f"lora.{group}.targets: the layers have no projection {target!r}; they have "
                    + ", ".join(known)
                )
            ranks |= dict.fromkeys(found, adapter.rank)
            alphas |= dict.fromkeys(found, adapter.alpha)
    lm.add_adapter(
        LoraConfig(
            target_modules=list(ranks),
            rank_pattern=ranks,
            alpha_pattern=alphas,
            lora_dropout=settings.dropout,
        )
    )
