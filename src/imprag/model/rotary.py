"""Fixes rotary frequencies that depend on a sequence's length (LongRoPE, dynamic NTK).

transformers chooses them by the largest position of a call and writes them into the model. A
prompt's answer would then depend on the other prompts in its batch and on other threads, and the
keys of passages would have been rotated by other frequencies. Here they are always those of short
sequences, and positions at which the model would change them are refused.
"""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError

_NAME = "rotary_emb"


def positions_limit(lm: PreTrainedModel) -> int:
    """The number of positions that a prompt can have, those of its passages included."""
    config = lm.config.get_text_config()
    limits = [int(config.max_position_embeddings)]
    for settings in _settings(lm):
        # Ministral 3 scales queries by their positions from there on.
        if settings.get("rope_type") == "longrope" or settings.get("llama_4_scaling_beta"):
            limits.append(int(settings["original_max_position_embeddings"]))
    return min(limits)


def held_rotary(lm: PreTrainedModel) -> dict[str, nn.Module]:
    """The replacement of the decoder's rotary embedding; none if its frequencies never change.

    Raises:
        ImpRAGError: the decoder has no rotary embedding that could be replaced.
    """
    kinds = {str(settings.get("rope_type")) for settings in _settings(lm)}
    if not any(kind == "longrope" or "dynamic" in kind for kind in kinds):
        return {}
    rotary = getattr(lm.base_model, _NAME, None)
    if rotary is None:
        raise ImpRAGError(
            f"the rotary frequencies of this {lm.config.model_type} model depend on the length of "
            "a text, and its decoder has no rotary_emb where they could be held; choose another"
        )
    return {_NAME: HeldRotary(rotary, positions_limit(lm))}


class HeldRotary(nn.Module):
    """A copy of a rotary embedding that keeps the frequencies of short sequences.

    Args:
        rotary: the model's rotary embedding.
        limit: positions from here on are refused.
    """

    def __init__(self, rotary: nn.Module, limit: int) -> None:
        super().__init__()
        own = copy.copy(rotary)
        own.__dict__["_buffers"] = dict(rotary._buffers)
        for name in rotary._buffers:
            if name.endswith("original_inv_freq"):
                kept = getattr(rotary, name).clone()
                setattr(own, name.replace("original_inv_freq", "inv_freq"), kept)
        for name in [name for name in vars(own) if name.endswith("max_seq_len_cached")]:
            setattr(own, name, own.original_max_seq_len)
        self.rotary = own
        self.limit = limit

    def forward(self, x: Tensor, position_ids: Tensor, *more: Any, **others: Any) -> Any:
        last = int(position_ids.max())
        if last >= self.limit:
            raise ImpRAGError(
                f"position {last} is reached, but from {self.limit} on this model rotates keys by "
                "other frequencies than those of stored passages: lower k, "
                "max_passage_tokens or max_new_tokens, or shorten the prompt"
            )
        return self.rotary(x, position_ids, *more, **others)


def _settings(lm: PreTrainedModel) -> list[dict[str, Any]]:
    """The RoPE settings of each kind of layer."""
    parameters = lm.config.get_text_config().rope_parameters
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]
