"""The implicit query: query and passage embeddings from the attention states of layer b.

E_q is the query state of a prompt's last token at layer b, averaged over the heads that share a key
head; E_p is the key state of a passage's last token. Both are taken before the rotary embedding
(paper, section 2).

Beyond the paper, the prompt's last token also tells which words of the prompt matter, by the
attention that it pays to them at layer b-2; hybrid retrieval weighs the words by it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from imprag.model.attention import matmul_attention
from imprag.model.decoder import Decoder
from imprag.model.hooks import (
    AttentionStates,
    CompiledLayer,
    ExitLayer,
    LastTokenLayer,
    LayerInput,
    RecordingLayer,
    attention_of,
    capture,
    runs_again,
    tokens_at,
)
from imprag.model.inputs import last_tokens


@dataclass(frozen=True)
class Queries:
    """The implicit queries of a batch of prompts.

    Attributes:
        embeddings: E_q of every prompt, (prompts, h_k * d_h) float32, the score scale included.
        token_attention: computes the attention that each prompt's last token pays to its tokens,
            (prompts, length) float32; see `token_attention`.
    """

    embeddings: Tensor
    token_attention: Callable[[], Tensor]

    def split(self) -> list["Queries"]:
        """The queries of each prompt; token attention is computed once for all."""
        attention = cache(self.token_attention)

        def rows(n: int) -> Tensor:
            return attention()[n : n + 1]

        count = range(len(self.embeddings))
        return [Queries(self.embeddings[n : n + 1], partial(rows, n)) for n in count]


def query_embeddings(decoder: Decoder, token: LayerInput) -> Tensor:
    """E_q, with the score scale in it: its inner product with E_p is the score s(q, p).

    Args:
        decoder: the model.
        token: (batch, 1, hidden), what enters layer b at each prompt's last token.

    Returns:
        (batch, h_k * d_h) float32.
    """
    states = _states_at_b(decoder, token)
    query = states.query[:, :, 0].float()  # (batch, heads, d_h)
    groups = query.view(len(query), decoder.num_key_heads, -1, decoder.head_dim)
    scale = decoder.config.score_scale or decoder.embedding_dim**-0.5
    return groups.mean(dim=2).flatten(1) * scale


def passage_embeddings(decoder: Decoder, token: LayerInput) -> Tensor:
    """E_p of every passage.

    Args:
        decoder: the model.
        token: (passages, 1, hidden), what enters layer b at each passage's pooling token.

    Returns:
        (passages, h_k * d_h) float32.
    """
    return _states_at_b(decoder, token).key[:, :, 0].float().flatten(1)


def _states_at_b(decoder: Decoder, token: LayerInput) -> AttentionStates:
    layer = decoder.layer(decoder.config.b)
    # With gradients the layer runs to its end, as distributed training's hooks expect.
    return capture(layer, token.without_rotation(), stop=not torch.is_grad_enabled())


def input_of_layer_b(decoder: Decoder, input_ids: Tensor, attention_mask: Tensor) -> LayerInput:
    """What enters layer b at the last token of each row; runs layers 0..b-1.

    Args:
        decoder: the model.
        input_ids: (batch, length) int64, padded on either side.
        attention_mask: (batch, length), 1 where a token stands.
    """
    return _run_to_layer_b(decoder, input_ids, attention_mask)[0]


def _run_to_layer_b(
    decoder: Decoder, input_ids: Tensor, attention_mask: Tensor
) -> tuple[LayerInput, LayerInput]:
    """What enters layer b at each row's last token, and `attention_layer` at all tokens."""
    b, at = decoder.config.b, attention_layer(decoder)
    index = last_tokens(attention_mask)
    wrappers: dict[int, nn.Module] = {**decoder.compiled}
    if b > 0 and not runs_again(decoder.layer(b - 1)):
        wrappers[b - 1] = LastTokenLayer(decoder.layer(b - 1), index, attention_mask)
    wrappers[b] = reached = ExitLayer(decoder.layer(b))
    wrappers[at] = recording = RecordingLayer(wrappers.get(at, decoder.layer(at)))
    decoder.run(wrappers, b + 1, input_ids, attention_mask)
    return reached.input.at(index), recording.input


def query_inputs(decoder: Decoder, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden state that enters layer b at the last token of every prompt.

    Args:
        decoder, input_ids, attention_mask: as for `input_of_layer_b`.

    Returns:
        (batch, hidden), in the model's dtype; `query_embeddings_of` maps it to E_q.
    """
    return input_of_layer_b(decoder, input_ids, attention_mask).hidden_states[:, 0]


def query_embeddings_of(decoder: Decoder, inputs: Tensor) -> Tensor:
    """E_q of prompts whose layers 0..b-1 have run.

    Args:
        decoder: the model.
        inputs: (batch, hidden), from `query_inputs`.

    Returns:
        (batch, h_k * d_h) float32, the score scale included.
    """
    # Any token shows the arguments with which the model calls its layers.
    token = torch.ones(1, 1, dtype=torch.int64, device=decoder.device)
    arguments = input_of_layer_b(decoder, token, token).arguments
    return query_embeddings(decoder, LayerInput(inputs[:, None], arguments))


def queries(decoder: Decoder, input_ids: Tensor, attention_mask: Tensor) -> Queries:
    """The implicit queries of prompts; runs layers 0..b.

    Args:
        decoder, input_ids, attention_mask: as for `input_of_layer_b`.
    """
    token, words = _run_to_layer_b(decoder, input_ids, attention_mask)
    index = last_tokens(attention_mask)
    return Queries(
        query_embeddings(decoder, token),
        lambda: token_attention(decoder, words, index, attention_mask),
    )


def attention_layer(decoder: Decoder) -> int:
    """The layer whose attention tells which words of a prompt matter: b-2, or the first one."""
    return max(decoder.config.b - 2, 0)


def token_attention(
    decoder: Decoder, given: LayerInput, index: Tensor, attention_mask: Tensor
) -> Tensor:
    """The attention that one token of each row pays to the row's tokens up to itself.

    It is the softmax of layer b-2 averaged over its heads, with full attention in any family. The
    first token of a row collects attention that belongs to no word, so it gets the mean of the
    others.

    Args:
        decoder: the model.
        given: what enters layer b-2, for all tokens.
        index: (batch,) the token that attends.
        attention_mask: (batch, length), 1 where a token stands.

    Returns:
        (batch, length) float32; 0 for padding and for tokens after ``index``.
    """
    layer = decoder.layer(attention_layer(decoder))
    states = capture(layer, given.without_cache(), stop=not torch.is_grad_enabled())
    query = tokens_at(states.query.transpose(1, 2).flatten(2), index)[:, 0]
    return _attention_to_tokens(decoder, query, states.key, index, attention_mask)


def new_token_attention(
    decoder: Decoder, token: LayerInput, keys: Tensor, attention_mask: Tensor
) -> Tensor:
    """As `token_attention`, of the token that a decoding step appends to each row.

    Args:
        decoder: the model.
        token: (batch, 1, hidden), what enters layer b-2 at the new token.
        keys: the row's keys of that layer, (batch, key heads, length, d_h); those of the new token
            may be missing.
        attention_mask: (batch, length), the new token's column included.

    Returns:
        (batch, length) float32.
    """
    states = capture(decoder.layer(attention_layer(decoder)), token, stop=True)
    last = attention_mask.shape[1] - 1
    keys = torch.cat([keys[:, :, :last], states.key], dim=2)
    index = torch.full((len(keys),), last, device=keys.device)
    query = states.query.transpose(1, 2).flatten(2)[:, 0]
    return _attention_to_tokens(decoder, query, keys, index, attention_mask)


def _attention_to_tokens(
    decoder: Decoder, query: Tensor, keys: Tensor, index: Tensor, attention_mask: Tensor
) -> Tensor:
    """The attention of one token of each row, (batch, heads * d_h), over all keys of its row."""
    layer = decoder.layer(attention_layer(decoder))
    query = query.view(len(query), decoder.num_key_heads, -1, decoder.head_dim).float()
    scaling = getattr(attention_of(layer), "scaling", decoder.head_dim**-0.5)
    products = torch.einsum("bkgd,bkld->bkgl", query, keys.float()) * scaling
    places = torch.arange(attention_mask.shape[1], device=index.device)
    seen = attention_mask.bool() & (places <= index[:, None])
    attention = products.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1).mean((1, 2))
    others = seen & (attention_mask.cumsum(1) > 1)
    mean = (attention * others).sum(1, keepdim=True) / others.sum(1, keepdim=True).clamp_min(1)
    return torch.where(others, attention, torch.where(seen, mean, 0.0))


def compile_bottom(decoder: Decoder) -> None:
    """Let layers 0..b-2 of embedding passes run through ``torch.compile``."""
    quick = decoder.uses_sdpa and decoder.device.type == "cpu"
    attention = {"attend": matmul_attention} if quick else {}
    whole = range(decoder.config.b - 1)  # layer b-1 runs for one token of each row
    decoder.compiled = {i: CompiledLayer(decoder.layer(i), **attention) for i in whole}
