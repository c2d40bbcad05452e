"""Decoding with states that grow in place: of one batch, or of rows that come and go.

:func:`decode` does what ``generate`` does for greedy search and sampling, in less time: nothing is
copied for a new token. In continuous batching, :func:`prefill` runs new prompts through the model
once, with retrieval at layer b. What comes of it joins a :class:`DecodingBatch`, whose steps give
every row its next token's logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from imprag.model.attribution import ReadingShares
from imprag.model.decoder import Decoder
from imprag.model.generate import (
    LaterQueries,
    PromptTokens,
    ReadingPass,
    Reread,
    Retrieve,
    RetrieveAgain,
)
from imprag.model.generate_arguments import own_generation_config
from imprag.model.hooks import cache_argument
from imprag.model.kv import PassageKV, RowKV
from imprag.model.query import attention_layer

_ROOM = 64  # tokens that a cache grows by


def decoding_config(lm: PreTrainedModel, arguments: Mapping[str, Any]) -> GenerationConfig | None:
    """The settings of a call of ``generate``, if :func:`decode` does all that it asks for.

    Args:
        lm: the model; its own settings apply where the call says nothing.
        arguments: for ``generate``, checked.
    """
    given = {name: x for name, x in arguments.items() if name not in DECODE_CALLBACKS}
    config = own_generation_config(lm)
    asked = {**config.to_dict(), **given}
    set_ = {name for name, x in asked.items() if x is not None and x != _UNSET.get(name)}
    if set_ - _DECODED or asked.get("num_beams") not in (None, 1) or not given.get(_LENGTH):
        return None
    config.update(**given)
    return config


@torch.inference_mode()
def decode(
    decoder: Decoder,
    retrieve: Retrieve,
    prompts: PromptTokens,
    config: GenerationConfig,
    *,
    again: RetrieveAgain | None = None,
    logits_processor: Sequence[LogitsProcessor] = (),
    stopping_criteria: Sequence[StoppingCriteria] = (),
    streamer: BaseStreamer | None = None,
    shares: ReadingShares | None = None,
) -> Tensor:
    """The tokens that ``generate`` makes, by greedy search or sampling.

    Args:
        decoder: the model.
        retrieve: called once, at layer b of the prompts' pass.
        prompts: padded on the left.
        config: as :func:`decoding_config` returns it.
        again: what rows retrieve at later tokens; None for nothing.
        logits_processor, stopping_criteria, streamer: as for ``generate``.
        shares: sums up what each token's pass reads.

    Returns:
        prompts and new tokens, (prompts, length + new tokens) int64.
    """
    ids, mask = prompts.input_ids, prompts.attention_mask
    processors = LogitsProcessorList([*logits_processor, *_warpers(config)])
    ends, padding = _end_tokens(config, ids.device)
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    reading = ReadingPass(decoder, shares)
    reading.begin(retrieve, mask)
    passes, layers = _Passes(decoder, reading), _growing_layers(decoder)
    inputs = prompts.model_inputs(decoder)
    later: LaterRows | None = None
    if streamer is not None:
        streamer.put(ids.cpu())
    for _ in range(config.max_new_tokens):
        scores = processors(ids, passes(inputs, layers, later).float())
        if config.do_sample:
            tokens = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        else:
            tokens = scores.argmax(-1)
        if len(ends):
            tokens = torch.where(unfinished, tokens, padding)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        if streamer is not None:
            streamer.put(tokens.cpu())
        unfinished &= ~torch.isin(tokens, ends)
        for stops in stopping_criteria:
            unfinished &= ~stops(ids, scores)
        if not unfinished.any():
            break
        mask = F.pad(mask, (0, 1), value=1)
        if again is not None:
            due = again.due(ids[:, prompts.input_ids.shape[1] :])
            later = [row for row in due if unfinished[row]], again
        inputs = {
            "input_ids": tokens[:, None],
            "attention_mask": mask,
            "position_ids": inputs["position_ids"][:, -1:] + 1,
        }
    if streamer is not None:
        streamer.end()
    return ids


LaterRows = tuple[Sequence[int], Reread]
"""The rows that retrieve in a pass of one token of each row, and what gives what they read."""

DECODE_CALLBACKS = frozenset({"logits_processor", "stopping_criteria", "streamer"})
"""Arguments of ``generate`` that :func:`decode` has, too."""
_LENGTH = "max_new_tokens"
_DECODED = {
    *(_LENGTH, "do_sample", "temperature", "top_k", "top_p", "num_beams"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"),
}
_UNSET = GenerationConfig().to_dict()
_TOP_K = 50  # transformers' own, where a configuration says nothing


def _warpers(config: GenerationConfig) -> Iterator[LogitsProcessor]:
    if not config.do_sample:
        return
    if config.temperature not in (None, 1.0):
        yield TemperatureLogitsWarper(config.temperature)
    if top_k := _TOP_K if config.top_k is None else config.top_k:
        yield TopKLogitsWarper(top_k)
    if config.top_p is not None and config.top_p < 1:
        yield TopPLogitsWarper(config.top_p)


def _end_tokens(config: GenerationConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens that end an answer, and the one that follows its end."""
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    padding = config.pad_token_id
    if padding is None:
        padding = ends[0] if ends else 0
    return (
        torch.tensor(ends, dtype=torch.long, device=device),
        torch.tensor(padding, dtype=torch.long, device=device),
    )


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
def prefill(
    decoder: Decoder,
    retrieve: Retrieve,
    prompts: PromptTokens,
    shares: ReadingShares | None = None,
) -> list[DecodingRow]:
    """Run prompts through all layers once.

    Args:
        decoder: the model.
        retrieve: called once, at layer b; returns a `RowKV`.
        prompts: padded on the left.
        shares: sums up what the prompts' last positions read.
    """
    reading = ReadingPass(decoder, shares)
    reading.begin(retrieve, prompts.attention_mask)
    layers = _growing_layers(decoder)
    inputs = prompts.model_inputs(decoder)
    logits = _Passes(decoder, reading)(inputs, layers)
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
        self._passes = _Passes(decoder, self._reading)
        self._layers: list[_GrowingLayer] = []
        self._lengths: list[int] = []
        self._positions: list[int] = []
        self._kv = RowKV([])

    def __len__(self) -> int:
        return len(self._lengths)

    def join(self, rows: Sequence[DecodingRow]) -> None:
        """Append rows to the batch."""
        layers = self._layers or _growing_layers(self.decoder)
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
    def step(
        self,
        tokens: Sequence[int],
        later: LaterRows | None = None,
        shares: ReadingShares | None = None,
    ) -> Tensor:
        """Append a token to every row.

        Args:
            tokens: one for each row.
            later: the rows that retrieve at their token, and what they read from it on.
            shares: sums up what the rows read in this step.

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
        self._reading.kv, self._reading.shares = self._kv, shares
        logits = self._passes(inputs, self._layers, later)
        assert isinstance(self._reading.kv, RowKV)
        self._kv = self._reading.kv
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = [position + 1 for position in self._positions]
        return logits


class _Passes:
    """Passes of a batch through all layers.

    Args:
        decoder: the model.
        reading: retrieves in the first pass, and holds what is read.
    """

    def __init__(self, decoder: Decoder, reading: ReadingPass) -> None:
        self._view = decoder.lm_view(reading.wrappers())
        self._cache_argument = cache_argument(decoder.lm)
        self._reading = reading
        self._attention_layer = attention_layer(decoder)

    def __call__(
        self,
        inputs: dict[str, Tensor],
        layers: list["_GrowingLayer"],
        later: LaterRows | None = None,
    ) -> Tensor:
        """The logits of each row's last token, (rows, vocabulary)."""
        self._reading.later = None
        if later is not None and later[0]:
            layer_keys = layers[self._attention_layer].held_keys
            self._reading.later = LaterQueries(*later, layer_keys, inputs["attention_mask"])
        own = {self._cache_argument: Cache(layers=layers)}
        logits: Tensor = self._view(**inputs, **own, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]


def _growing_layers(decoder: Decoder) -> list["_GrowingLayer"]:
    return [_GrowingLayer() for _ in range(len(decoder.lm.base_model.layers))]


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

    def held_keys(self) -> Tensor:
        """The keys so far, (rows, key heads, length, d_h)."""
        return self.held(self.key_room)

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
