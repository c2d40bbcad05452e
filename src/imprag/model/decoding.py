"""Decoding in a batch that rows join and leave between tokens (continuous batching).

:func:`prefill` runs new prompts through the model once, with retrieval at layer b. What comes of it
joins a :class:`DecodingBatch`, whose steps give every row its next token's logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from imprag.model.decoder import Decoder
from imprag.model.generate import PromptTokens, ReadingPass, Retrieve
from imprag.model.hooks import cache_argument
from imprag.model.kv import PassageKV, RowKV

_ROOM = 64  # tokens that a cache grows by


@dataclass(frozen=True)
class DecodingRow:
    """A prompt that has run through the model.

    Attributes:
        keys, values: its own states at all layers, (layers, key heads, tokens, d_h).
        kv: the passage KV that it reads.
        position: of its next token.
        logits: of its next token, (vocabulary,).
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    kv: PassageKV
    position: int
    logits: Tensor

    @property
    def tokens(self) -> int:
        """Number of its own tokens."""
        return self.keys[0].shape[1]


@torch.inference_mode()
def prefill(decoder: Decoder, retrieve: Retrieve, prompts: PromptTokens) -> list[DecodingRow]:
    """Run prompts through all layers once.

    Args:
        decoder: the model.
        retrieve: called once, at layer b; returns a `RowKV`.
        prompts: padded on the left.
    """
    reading = ReadingPass(decoder)
    reading.begin(retrieve, prompts.attention_mask)
    layers = [_GrowingLayer() for _ in range(len(decoder.lm.base_model.layers))]
    inputs = prompts.model_inputs(decoder)
    logits = _run(decoder, reading, inputs, Cache(layers=layers))
    assert isinstance(reading.kv, RowKV)
    next_positions = (inputs["position_ids"][:, -1] + 1).tolist()
    rows = []
    for n, (kv, length) in enumerate(
        zip(reading.kv.rows, prompts.attention_mask.sum(1).tolist(), strict=True)
    ):
        keys = [layer.held(layer.key_room)[n, :, -length:].clone() for layer in layers]
        values = [layer.held(layer.value_room)[n, :, -length:].clone() for layer in layers]
        rows.append(DecodingRow(keys, values, kv, next_positions[n], logits[n]))
    return rows


class DecodingBatch:
    """Answers that grow by one token at a step.

    The states of all rows end at the same column, with padding on the left.

    Args:
        decoder: the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._reading = ReadingPass(decoder)
        self._layers: list[_GrowingLayer] = []
        self._lengths: list[int] = []
        self._positions: list[int] = []
        self._kv = RowKV([])

    def __len__(self) -> int:
        return len(self._lengths)

    def join(self, rows: Sequence[DecodingRow]) -> None:
        """Append rows to the batch."""
        count = len(self.decoder.lm.base_model.layers)
        layers = self._layers or [_GrowingLayer() for _ in range(count)]
        lengths = [*self._lengths, *(row.tokens for row in rows)]
        for number, layer in enumerate(layers):
            layer.arrange(
                [
                    *layer.rows(self._lengths),
                    *((row.keys[number], row.values[number]) for row in rows),
                ],
                max(lengths),
            )
        self._layers, self._lengths = layers, lengths
        self._positions += [row.position for row in rows]
        self._kv = RowKV([*self._kv.rows, *(row.kv for row in rows)])

    def keep(self, rows: Sequence[int]) -> None:
        """Remove all rows but these, which are given by number in ascending order."""
        lengths = [self._lengths[n] for n in rows]
        for layer in self._layers if rows else ():
            held = layer.rows(self._lengths)
            layer.arrange([held[n] for n in rows], max(lengths))
        self._layers = self._layers if rows else []
        self._lengths = lengths
        self._positions = [self._positions[n] for n in rows]
        self._kv = RowKV([self._kv.rows[n] for n in rows])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row.

        Args:
            tokens: one for each row.

        Returns:
            the logits of each row's next token, (rows, vocabulary).
        """
        device = self.decoder.device
        longest = max(self._lengths) + 1
        lengths = torch.tensor(self._lengths, device=device)[:, None] + 1
        inputs = {
            "input_ids": torch.tensor(tokens, device=device)[:, None],
            "attention_mask": (torch.arange(longest, device=device) >= longest - lengths).long(),
            "position_ids": torch.tensor(self._positions, device=device)[:, None],
        }
        self._reading.kv = self._kv
        logits = _run(self.decoder, self._reading, inputs, Cache(layers=self._layers))
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = [position + 1 for position in self._positions]
        return logits


def _run(decoder: Decoder, reading: ReadingPass, inputs: dict[str, Tensor], cache: Cache) -> Tensor:
    """The logits of each row's last token, (rows, vocabulary)."""
    view = decoder.lm_view(reading.wrappers())
    own = {cache_argument(decoder.lm): cache}
    logits: Tensor = view(**inputs, **own, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1]


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]  # untyped in transformers
    """The states of one layer, with room behind them, so that a step copies nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.key_room = self.value_room = torch.empty(0, 0, 0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_room = key_states[:, :, :0]
        self.value_room = value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states; all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.key_room.shape[2]:
            gap = (0, 0, 0, self.length + _ROOM - self.key_room.shape[2])
            self.key_room, self.value_room = F.pad(self.key_room, gap), F.pad(self.value_room, gap)
        self.key_room[:, :, start : self.length] = key_states
        self.value_room[:, :, start : self.length] = value_states
        return self.held(self.key_room), self.held(self.value_room)

    def held(self, room: Tensor) -> Tensor:
        """What has been written of ``key_room`` or ``value_room``."""
        return room[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def rows(self, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each row without its padding, (key heads, length, d_h)."""
        starts = [self.length - length for length in lengths]
        keys, values = self.held(self.key_room), self.held(self.value_room)
        return [(keys[n, :, start:], values[n, :, start:]) for n, start in enumerate(starts)]

    def arrange(self, rows: Sequence[tuple[Tensor, Tensor]], longest: int) -> None:
        """Hold these rows instead, with padding on the left."""
        key, value = rows[0]
        shape = (len(rows), key.shape[0], longest + _ROOM)
        key_room, value_room = (x.new_zeros(*shape, x.shape[-1]) for x in (key, value))
        for n, (keys, values) in enumerate(rows):
            key_room[n, :, longest - keys.shape[1] : longest] = keys
            value_room[n, :, longest - keys.shape[1] : longest] = values
        self.key_room, self.value_room, self.length = key_room, value_room, longest
        self.dtype, self.device, self.is_initialized = key.dtype, key.device, True
