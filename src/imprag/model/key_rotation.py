"""The rotary embedding of passages' keys, and its inverse.

Before the rotary embedding, a channel of the keys has nearly the same mean and spread in all
tokens. After it, positions mix pairs of channels. So codecs lose less if they code keys from before
(KVQuant, arXiv 2401.18079). Layers hand out rotated keys; these are rotated back to be coded, and
rotated again to be read. Any rotation does for that: where a model's own is not found, keys stay as
they are, and nothing is lost but the advantage.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imprag.model.decoder import Decoder
from imprag.model.hooks import LayerWrapper, attention_of


class KeyRotation:
    """Rotates the keys of layers b..t, and undoes it.

    Args:
        decoder: the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        attention = attention_of(decoder.layer(decoder.config.b))
        # Every model file has its own as a module function, and splits keys inside or outside it.
        function = vars(inspect.getmodule(type(attention))).get("apply_rotary_pos_emb")
        arguments = [] if function is None else list(inspect.signature(function).parameters)
        self._function = function if arguments[:4] == ["q", "k", "cos", "sin"] else None
        self._width: int = getattr(attention, "rotary_ndims", decoder.head_dim)
        self._table: tuple[Tensor, Tensor] | None = None

    def rotate(self, keys: Tensor, positions: Tensor, layers: slice = slice(None)) -> Tensor:
        """Keys as prompts attend to them.

        Args:
            keys: before the rotary embedding, (layers, key heads, tokens, d_h).
            positions: (tokens,) int64; see `passage_positions`.
            layers: which of b..t they are of; by default all.
        """
        if self._function is None:
            return keys
        return self._turned(keys, *self._cos_sin(positions, layers))

    def undo(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys before the rotary embedding, float32.

        Args:
            keys: of all layers b..t after the rotary embedding, (layers, key heads, tokens, d_h).
            positions: (tokens,) int64.
        """
        if self._function is None:
            return keys.float()
        cos, sin = self._cos_sin(positions, slice(None))
        size = cos.square() + sin.square()  # not 1 where the embedding scales keys, too (YaRN)
        return self._turned(keys.float(), cos / size, -sin / size)

    def _turned(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        assert self._function is not None
        turned, rest = keys[..., : self._width], keys[..., self._width :]
        no_query = turned[:, :0]
        turned = self._function(no_query, turned, cos.to(keys.dtype), sin.to(keys.dtype))[1]
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def _cos_sin(self, positions: Tensor, layers: slice) -> tuple[Tensor, Tensor]:
        """Of each layer, or of all, for each token: (layers or 1, tokens, size) float32."""
        last = int(positions.max()) if len(positions) else 0
        count = max(self._decoder.config.max_passage_tokens, last + 1)
        if self._table is None or self._table[0].shape[1] < count:
            self._table = self._made(count)
        cos, sin = (x if len(x) == 1 else x[layers] for x in self._table)
        positions = positions.to(cos.device)
        return cos[:, positions], sin[:, positions]

    @torch.no_grad()
    def _made(self, count: int) -> tuple[Tensor, Tensor]:
        """The rotary embedding of positions 0..count-1, as the model gives it to its layers."""
        decoder = self._decoder
        layers = range(decoder.config.b, decoder.config.t + 1)
        recorders = {n: _PositionsRecorder(decoder.layer(n)) for n in range(decoder.config.t + 1)}
        ids = torch.zeros(1, count, dtype=torch.long, device=decoder.device)
        decoder.run(recorders, len(recorders), ids, torch.ones_like(ids))
        cos, sin = (
            torch.cat([recorders[number].position_embeddings[part].float() for number in layers])
            for part in (0, 1)
        )
        alike = bool((cos == cos[:1]).all() and (sin == sin[:1]).all())
        return (cos[:1], sin[:1]) if alike else (cos, sin)


def passage_positions(lengths: Sequence[int]) -> Tensor:
    """The positions of the tokens of passages side by side, (tokens,) int64: each begins at 0."""
    return torch.cat([torch.arange(length) for length in (*lengths, 0)])


class _PositionsRecorder(LayerWrapper):
    """Keeps the position embeddings that its layer is given, and does not run it."""

    position_embeddings: tuple[Tensor, Tensor]

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Any:
        self.position_embeddings = arguments["position_embeddings"]
        return hidden_states
