"""Mixed precision without redundant casts, and a note where it slows training."""

import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from imprag.model.base import resolve_device, resolve_dtype


def cast_block_inputs(lm: PreTrainedModel) -> None:
    """Cast the input of each attention or MLP block once, instead of once for each projection.

    Autocast casts for each linear layer separately: the same states three times for queries, keys
    and values, and their gradients three times in backward. The result differs only in the sum of
    these gradients, which is taken in the lower precision. Without autocast nothing changes.
    """
    for layer in lm.base_model.layers:
        for block in layer.children():
            if any(isinstance(module, nn.Linear) for module in block.modules()):
                block.register_forward_pre_hook(_cast, with_kwargs=True)


def _cast(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    states = args[0] if args else kwargs["hidden_states"]
    device = states.device.type
    if not torch.is_autocast_enabled(device):
        return None
    states = states.to(torch.get_autocast_dtype(device))
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


def note_slow_bfloat16(precision: str) -> None:
    """Print a note on standard error if this machine trains faster in float32.

    Args:
        precision: the recipe's.
    """
    device = resolve_device("auto")
    if precision == "bf16" and resolve_dtype("auto", device) is torch.float32:
        print(
            "note: this machine multiplies float32 faster than bfloat16; to train in it: "
            "--set trainer.bf16=false",
            file=sys.stderr,
        )
