"""Access to a Hugging Face model's attention: one registered function, no copied model.

Every decoder layer of a transformers model calls the attention function that its configuration
names. ``open_attention`` registers one that first calls a *state hook*, if the caller passes one (a
keyword argument that transformers hands down), and then the attention that the model had before.
A hook sees the layer's query, key and value states after rotary embedding and normalisation, and
may put more keys and values before them. Without a hook nothing changes.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_QUERIES = 512  # whose attention scores are computed at a time

StateHook = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]
"""``hook(query, key, value, mask) -> (key, value, mask)``.

query: (batch, heads, queries, d_h); key and value: (batch, key heads, keys, d_h); mask: boolean,
(batch or 1, 1, queries, keys), True where attention is allowed, or None for plain causal attention.
"""


def open_attention(lm: PreTrainedModel) -> None:
    """Let ``lm``'s layers accept a ``state_hook``; without one they compute what they did before.

    Attention is computed by PyTorch's scaled dot product, which chooses its own fast kernels, or by
    the model's own eager code if the model was loaded with that (Gemma 2, whose soft-capped scores
    no fused kernel computes).
    """
    wanted = "imprag_eager" if needs_eager(lm) else "imprag_sdpa"
    if lm.config._attn_implementation != wanted:
        lm.set_attn_implementation(wanted)
    # cuDNN's kernel plans five milliseconds for every new shape; passages have many lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)


def needs_eager(lm: PreTrainedModel) -> bool:
    """Whether only the model's own code computes its attention.

    transformers before 5.23 loads Gemma 2 with the scaled dot product, which drops its soft caps.
    """
    capped = getattr(lm.config.get_text_config(), "attn_logit_softcapping", None)
    return capped is not None or lm.config._attn_implementation in ("eager", "imprag_eager")


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """The mask that transformers implies when it passes none, (1, 1, queries, keys).

    A single query sees all keys. Of several, query i sees keys 0..i: there are as many keys as
    queries, or a static cache has room for more behind them.
    """
    ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return (ones if queries == 1 else ones.tril())[None, None]


Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention function of transformers: ``(module, query, key, value, mask, **kwargs)``."""


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention by two matrix products and a softmax in float32.

    On a CPU, for sequences of passage length, it takes half the time of PyTorch's fused kernel when
    it is compiled, and a third of it backwards. Its scores take (batch, heads, queries, keys) of
    memory.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if attention_mask is None:
        attention_mask = causal_mask(query.shape[2], key.shape[2], query.device)
    scores = ((query * scaling) @ key.transpose(2, 3)).float()
    # Not minus infinity, which would make a padding token that sees nothing into NaN.
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~attention_mask, lowest).softmax(dim=-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def reading_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    passage_key: Tensor,
    passage_value: Tensor,
    passage_bias: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """One softmax over [passage keys ; own keys], without concatenating the two.

    Neither keys nor values are copied or repeated for the query heads that share them, which saves
    most of the time if few queries read many passages. Scores are float32, and those of at most
    ``_QUERIES`` queries are in memory at a time.

    Args:
        passage_key, passage_value: (batch, key heads, S, d_h).
        passage_bias: (batch, S) float32, added to the logits of passage tokens, or None.
        module, query, key, value, attention_mask, scaling, **kwargs: as transformers passes them.
    """
    batch, _, queries, head_dim = query.shape
    key_heads = key.shape[1]
    scaling = head_dim**-0.5 if scaling is None else scaling
    if attention_mask is None and queries > 1:  # the last query sees everything
        attention_mask = causal_mask(queries, key.shape[2], query.device)
    if attention_mask is not None and queries > _QUERIES:
        attend = partial(
            reading_attention,
            passage_key=passage_key,
            passage_value=passage_value,
            passage_bias=passage_bias,
            scaling=scaling,
        )
        parts = zip(
            torch.split(query, _QUERIES, 2), torch.split(attention_mask, _QUERIES, 2), strict=True
        )
        return torch.cat([attend(module, q, key, value, seen)[0] for q, seen in parts], 1), None
    grouped = (query * scaling).reshape(batch, key_heads, -1, head_dim)
    passages = (grouped @ passage_key.to(query.dtype).transpose(2, 3)).float()
    if passage_bias is not None:
        passages = passages + passage_bias[:, None, None]
    own = (grouped @ key.transpose(2, 3)).float()
    if attention_mask is not None:
        # One row for each query head of the group and each query.
        lowest = torch.finfo(own.dtype).min
        rows = own.view(batch, key_heads, -1, queries, key.shape[2])
        own = rows.masked_fill(~attention_mask[:, :, None], lowest).view(own.shape)
    weights = torch.cat([passages, own], dim=-1).softmax(dim=-1).to(value.dtype)
    read = passages.shape[-1]
    output = weights[..., :read] @ passage_value.to(value.dtype) + weights[..., read:] @ value
    return output.view(query.shape).transpose(1, 2).contiguous(), None


def _opened(attention: Attention) -> Attention:
    """``attention`` with a hook for its states, or with another attention in its place."""

    def opened(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        state_hook: StateHook | None = None,
        attend: Attention = attention,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if state_hook is not None:
            key, value, attention_mask = state_hook(query, key, value, attention_mask)
        return attend(module, query, key, value, attention_mask, **kwargs)

    return opened


def sdpa_attention(
    module: nn.Module, query: Tensor, *others: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's scaled dot product, but not for training on a CPU, where that is slow."""
    training = query.requires_grad and not kwargs.get("dropout")
    attend = matmul_attention if training and query.device.type == "cpu" else _SDPA
    return attend(module, query, *others, **kwargs)


def _eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if attention_mask is None:
        attention_mask = causal_mask(query.shape[2], key.shape[2], query.device)
    additive = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
    additive.masked_fill_(~attention_mask, torch.finfo(query.dtype).min)
    # Eager attention is not in the registry: each model file has its own, as a module function.
    own: Attention = vars(inspect.getmodule(type(module)))["eager_attention_forward"]
    return own(module, query, key, value, additive, **kwargs)


_SDPA: Attention = AttentionInterface()["sdpa"]
AttentionInterface.register("imprag_sdpa", _opened(sdpa_attention))
AttentionInterface.register("imprag_eager", _opened(_eager_attention))
for _name in ("imprag_sdpa", "imprag_eager"):
    # Both get SDPA's boolean masks (or None where plain causal attention is meant).
    AttentionMaskInterface.register(_name, AttentionMaskInterface()["sdpa"])
