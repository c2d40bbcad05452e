"""Refuses what transformers only reports, or does not check, when it loads a model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.peft_adapters import has_adapter
from imprag.model.weight_files import named

_COMPUTED = re.compile(r"(^|[._])(inv_freq|masked_bias)$|\b(attn|attention)\.bias$|^mtp\.|\.mtp\.")
"""Weights that no model reads: masks and frequencies of old checkpoints, drafting layers."""


def check_complete(found: Mapping[str, Any], name_or_path: str | Path) -> None:
    """Refuse files that lack weights of the model or have weights that do not fit it.

    Args:
        found: the loading info of ``from_pretrained(..., output_loading_info=True,
            ignore_mismatched_sizes=True)``.
        name_or_path: the model.

    Raises:
        ImpRAGError: weights are missing, foreign or of another shape; the message names them.
    """
    shapes = [
        f"{name} is {tuple(there)} there, {tuple(wanted)} by its configuration"
        for name, there, wanted in sorted(found["mismatched_keys"])
    ]
    foreign = [name for name in sorted(found["unexpected_keys"]) if not _COMPUTED.search(name)]
    faults = []
    if missing := sorted(found["missing_keys"]):
        faults.append(f"the files lack the weights {named(missing)}")
    if shapes:
        faults.append(f"the weights have other shapes than config.json says: {named(shapes)}")
    if foreign:
        faults.append(f"the files have weights without a place in the model: {named(foreign)}")
    faults += [str(error).splitlines()[0] for error in found.get("error_msgs") or []]
    if faults:
        raise ImpRAGError(
            f"cannot load {name_or_path}: {'; '.join(faults)}. Fetch it again, or check config.json"
        )


def check_without_adapter(lm: PreTrainedModel, name_or_path: str | Path) -> None:
    """Refuse an adapter in place of a base model.

    Raises:
        ImpRAGError: transformers has loaded an adapter.
    """
    if has_adapter(lm):
        raise ImpRAGError(
            f"{name_or_path} is an adapter, not a base model; give it as --model, or merge it "
            "with peft and give the merged model"
        )


def check_tokenizer(tokenizer: Any, lm: PreTrainedModel, name_or_path: str | Path) -> None:
    """Refuse a tokenizer that has tokens without an embedding in the model.

    Raises:
        ImpRAGError: the tokenizer has more tokens than the model embeds.
    """
    embedded = lm.get_input_embeddings().num_embeddings
    # Special tokens that a tokenizer's class adds by itself occur in no text; if a template uses
    # them, layer groups refuse them.
    added = getattr(tokenizer, "added_tokens_decoder", {})
    used = [number for number, token in added.items() if not token.special]
    used += [number for number in (tokenizer.bos_token_id, tokenizer.eos_token_id) if number]
    tokens = max(tokenizer.vocab_size, 1 + max(used, default=-1))
    if tokens > embedded:
        raise ImpRAGError(
            f"the tokenizer of {name_or_path} has {tokens:,} tokens, but the model embeds "
            f"{embedded:,}; take the tokenizer that belongs to it, or resize its embedding"
        )
