"""Encoding passages by layers 0..t: embeddings, and the keys and values that prompts read."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imprag.model.config import PassageEncoding
from imprag.model.decoder import Decoder
from imprag.model.hooks import (
    ExitLayer,
    LayerWrapper,
    RecordingLayer,
    StopForward,
    runs_again,
)
from imprag.model.inputs import batches_by_length, last_tokens, pad
from imprag.model.kv import EncodedPassages, PassageKV
from imprag.model.query import passage_embeddings


class PassageTokens(NamedTuple):
    """A batch of passages as token ids.

    Attributes:
        input_ids: (passages, length) int64, padded on the right.
        attention_mask: (passages, length), 1 where a token stands.
        position_offset: position of the first token of all, or (passages,) of each.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_offset: Tensor | int = 0


def encode(decoder: Decoder, passages: PassageTokens) -> EncodedPassages:
    """Embeddings and reading states of passages, from one pass through layers 0..t.

    Args:
        decoder: the model.
        passages: their tokens.
    """
    b, t = decoder.config.b, decoder.config.t
    recorder = KVRecorder(decoder, passages.attention_mask)
    # Nothing after layer t's keys and values is needed.
    stop_at = None if torch.is_grad_enabled() else t
    wrappers = {i: recorder.wrapper(i, stop=i == stop_at) for i in range(b, t + 1)}
    layer_b = RecordingLayer(wrappers[b])
    decoder.run({**wrappers, b: layer_b}, t + 1, *passages)
    token = layer_b.input.at(last_tokens(passages.attention_mask))
    return recorder.encoded(passage_embeddings(decoder, token))


def encode_from_base(
    decoder: Decoder,
    base: Decoder,
    passages: PassageTokens,
    embeddings: Tensor,
) -> EncodedPassages:
    """Reading states that the trained layers b..t compute from the base model's hidden states.

    The base model's hidden states enter every layer; only keys and values are the trained ones
    (paper, Table 7).

    Args:
        decoder: the trained model.
        base: the model before training.
        passages: their tokens.
        embeddings: the passages' embeddings, (passages, h_k * d_h).
    """
    b, t = decoder.config.b, decoder.config.t
    recording = {i: RecordingLayer(base.layer(i)) for i in range(b, t)}
    recording[t] = ExitLayer(base.layer(t))
    with torch.no_grad():
        base.run(recording, t + 1, *passages)
    recorder = KVRecorder(decoder, passages.attention_mask)
    for i, layer in recording.items():
        wrapper = recorder.wrapper(i, stop=not runs_again(decoder.layer(i)))
        wrapper(layer.input.hidden_states, **layer.input.arguments)
    return recorder.encoded(embeddings)


class KVRecorder:
    """Records keys and values of passages at layers b..t."""

    def __init__(self, decoder: Decoder, attention_mask: Tensor) -> None:
        self.decoder = decoder
        self.attention_mask = attention_mask
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def wrapper(self, number: int, *, stop: bool) -> LayerWrapper:
        """Takes the place of layer ``number``; with ``stop`` it runs as far as keys and values."""
        layer = self.decoder.layer(number)

        def record(
            query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            self.keys[number], self.values[number] = key, value
            if stop:
                raise StopForward
            return key, value, mask

        return LayerWrapper(layer, state_hook=record)

    def encoded(self, embeddings: Tensor) -> EncodedPassages:
        """The recorded states with the passages' embeddings."""
        mask = self.attention_mask.bool()
        return EncodedPassages(self.keys, self.values, mask, embeddings)


class Sequences(NamedTuple):
    """The passages of several prompts as sequences to encode (paper, Table 6).

    Attributes:
        rows: token ids of each sequence.
        offsets: position of each sequence's first token.
        read_by: for every prompt, the numbers of the sequences that it reads, in order.
    """

    rows: list[tuple[int, ...]]
    offsets: list[int]
    read_by: list[list[int]]


def arrange(passages: Sequence[Sequence[Sequence[int]]], encoding: PassageEncoding) -> Sequences:
    """Turn the passages of every prompt into sequences, as the passage encoding asks.

    Args:
        passages: for every prompt, its passages as token ids; none is allowed.
        encoding: ``independent``: a passage that several prompts read is one sequence, from
            position 0. ``segmented``: one sequence for each passage at its running position, which
            is the same as one sequence in which passages do not see each other. ``full``: one
            sequence for each prompt.
    """
    if encoding == "independent":
        known: dict[tuple[int, ...], int] = {}
        read_by = [[known.setdefault(tuple(p), len(known)) for p in prompt] for prompt in passages]
        return Sequences(list(known), [0] * len(known), read_by)
    made = Sequences([], [], [])
    for prompt in passages:
        parts = [tuple(passage) for passage in prompt]
        if encoding == "full" and parts:
            parts = [tuple(itertools.chain.from_iterable(parts))]
        made.read_by.append(list(range(len(made.rows), len(made.rows) + len(parts))))
        lengths = map(len, parts)
        made.offsets.extend(itertools.accumulate(lengths, initial=0))
        del made.offsets[-1]  # where the next passage would begin
        made.rows.extend(parts)
    return made


def batches(
    rows: Sequence[Sequence[int]], offsets: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], PassageTokens]]:
    """Batches of sequences of similar length.

    Args:
        rows: token ids of each sequence.
        offsets: position of each sequence's first token.
        device: of the batches.

    Yields:
        the numbers of a batch's sequences, and their tokens.
    """
    batch_tokens = 2048 if device.type == "cpu" else 65536
    for batch in batches_by_length([len(row) for row in rows], batch_tokens):
        position_offset = torch.tensor([offsets[i] for i in batch], device=device)
        yield batch, PassageTokens(*pad([rows[i] for i in batch], device), position_offset)


def join(
    encoded: Iterable[tuple[list[int], EncodedPassages]], read_by: Sequence[Sequence[int]]
) -> PassageKV:
    """The KV of every prompt's passages, from sequences encoded in batches.

    Args:
        encoded: numbers and states of each batch's sequences.
        read_by: for every prompt, the numbers of the sequences that it reads, in order.
    """
    numbers, states = zip(*encoded, strict=True)
    order = itertools.chain.from_iterable(numbers)
    row_of = {number: row for row, number in enumerate(order)}
    rows = [[row_of[number] for number in read] for read in read_by]
    return EncodedPassages.concatenate(states).for_prompts(rows)


def no_kv(decoder: Decoder, prompts: int) -> PassageKV:
    """The KV of prompts that read nothing."""
    weight = decoder.lm.get_input_embeddings().weight
    states = weight.new_zeros(prompts, decoder.num_key_heads, 0, decoder.head_dim)
    layers = dict.fromkeys(range(decoder.config.b, decoder.config.t + 1), states)
    return PassageKV(layers, layers, [[]] * prompts)
