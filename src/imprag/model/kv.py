"""Keys and values of passages at the reading layers, and how prompts attend to them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from imprag.model.attention import Note, causal_mask, reading_attention, sdpa_attention


@dataclass(frozen=True)
class PassageKV:
    """Keys and values, at layers b..t, of the passages that each prompt of a batch reads.

    One softmax runs over [passage keys ; own keys]. The order of passages does not matter, since
    their positions are already in their keys.

    Attributes:
        keys, values: for every reading layer, (batch, key heads, S, d_h).
        lengths: for every prompt, the number of tokens of each of its passages, in order; padding
            follows the last.
        passage_bias: for every prompt, the bias that is added to the attention logits of each of
            its passages' tokens. None adds nothing.
        windows: for every prompt, the first of its tokens that reads each of its passages and the
            first one that does not any more, counted in the columns of a pass of all tokens. None
            lets all tokens read all passages.
    """

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    lengths: Sequence[Sequence[int]]
    passage_bias: Sequence[Sequence[float]] | None = None
    windows: Sequence[Sequence[tuple[int, int]]] | None = None

    @classmethod
    def from_blocks(
        cls, blocks: Sequence[Tensor], first_layer: int, lengths: Sequence[Sequence[int]]
    ) -> "PassageKV":
        """The passage KV from one block of states for each prompt.

        Args:
            blocks: the states of every prompt, (2, layers, key heads, S, d_h): keys, then values.
            first_layer: the number of the first of these layers.
            lengths: as above.
        """
        longest = max(block.shape[3] for block in blocks)
        if len(blocks) == 1:
            states = blocks[0][:, :, None]  # nothing is copied
        else:
            gaps = [longest - block.shape[3] for block in blocks]
            padded = [F.pad(x, (0, 0, 0, gap)) for x, gap in zip(blocks, gaps, strict=True)]
            states = torch.stack(padded, dim=2)
        return cls(
            {first_layer + n: keys for n, keys in enumerate(states[0])},
            {first_layer + n: values for n, values in enumerate(states[1])},
            lengths,
        )

    @property
    def width(self) -> int:
        """S: the greatest number of passage tokens that a prompt of the batch reads."""
        return max(map(sum, self.lengths), default=0)

    @property
    def nbytes(self) -> int:
        """Size of the keys and values in bytes."""
        return sum(x.nbytes for states in (self.keys, self.values) for x in states.values())

    @cached_property
    def mask(self) -> Tensor:
        """True where a passage token stands, (batch, S)."""
        lengths = torch.tensor([sum(row) for row in self.lengths])
        longest = int(lengths.max()) if len(lengths) else 0
        mask = torch.arange(longest) < lengths[:, None]
        return mask.to(next(iter(self.keys.values())).device)

    @cached_property
    def bias(self) -> Tensor | None:
        """The bias of the attention logits, (batch, S) float32; None if nothing is added."""
        if self.passage_bias is None:
            if bool(self.mask.all()):
                return None
            bias = torch.zeros(self.mask.shape, device=self.mask.device)
        else:
            rows = [
                torch.tensor(biases).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
                for biases, lengths in zip(self.passage_bias, self.lengths, strict=True)
            ]
            bias = pad_sequence(rows, batch_first=True).to(self.mask.device)
        # Not minus infinity, which would make a prompt that sees nothing into NaN.
        return bias.masked_fill(~self.mask, torch.finfo(bias.dtype).min)

    def prepend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state hook of one layer: puts the passages' states before the prompt's own.

        ``passage_bias`` is not applied.
        """
        batch, queries, own = query.shape[0], query.shape[2], key.shape[2]
        if mask is None:
            # The mask must be explicit from here on: with more keys than queries, a fused
            # kernel's own causal mask would start at the first passage token.
            mask = causal_mask(queries, own, query.device)
        passages = self.mask[:, None, None, :].expand(batch, 1, queries, -1)
        if self.windows is not None:
            passages = passages & self._in_window(queries)
        return (
            torch.cat([self.keys[layer].to(key.dtype), key], dim=2),
            torch.cat([self.values[layer].to(value.dtype), value], dim=2),
            torch.cat([passages, mask.expand(batch, 1, queries, own)], dim=3),
        )

    def _in_window(self, queries: int) -> Tensor:
        """Which tokens of a pass read which passage tokens, (batch, 1, queries, S)."""
        assert self.windows is not None
        columns = torch.arange(queries)
        rows = []
        for windows, lengths in zip(self.windows, self.lengths, strict=True):
            bounds = torch.tensor(windows, dtype=torch.long).view(-1, 2)
            bounds = bounds.repeat_interleave(torch.tensor(lengths, dtype=torch.long), dim=0)
            first, end = bounds.unbind(dim=1)
            rows.append((columns[:, None] >= first) & (columns[:, None] < end))
        longest = max(row.shape[1] for row in rows)
        padded = [F.pad(row, (0, longest - row.shape[1])) for row in rows]
        return torch.stack(padded)[:, None].to(self.mask.device)

    def attend(
        self,
        layer: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        note: Note | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over [passage keys ; own keys] at one layer.

        Args:
            layer: the layer's number.
            note: called once, if given; not with ``windows``.
            module, query, key, value, mask, **kwargs: as transformers passes them.
        """
        reading = {
            "passage_key": self.keys[layer],
            "passage_value": self.values[layer],
            "passage_bias": self.bias,
            "note": note,
            **kwargs,
        }
        costly = torch.is_grad_enabled() or (query.device.type != "cpu" and query.shape[2] > 1)
        if self.windows is None and (not costly or self.passage_bias is not None):
            return reading_attention(module, query, key, value, mask, **reading)
        if note is not None:  # a fused kernel keeps its weights for itself
            assert self.windows is None
            seen = causal_mask(query.shape[2], key.shape[2], key.device) if mask is None else mask
            last = query[:, :, -1:]
            reading_attention(module, last, key, value, seen[:, :, -1:], **reading)
        return sdpa_attention(
            module, query, *self.prepend(layer, query, key, value, mask), **kwargs
        )

    def by_passage(self, attention: Tensor) -> Tensor:
        """Sums over the tokens of each passage.

        Args:
            attention: (batch, S).

        Returns:
            (batch, most passages of a prompt).
        """
        return self._segments.sums(attention)

    @cached_property
    def _segments(self) -> "_Segments":
        return _Segments(self.lengths, next(iter(self.keys.values())).device)

    def split(self) -> list["PassageKV"]:
        """The rows, without padding: a batch of one each."""
        return [self.passages(row, range(len(lengths))) for row, lengths in enumerate(self.lengths)]

    def passages(self, row: int, kept: Sequence[int]) -> "PassageKV":
        """Some passages of one row, as a batch of one.

        Args:
            row: its number.
            kept: numbers of its passages, ascending.
        """
        lengths = self.lengths[row]
        ends = list(itertools.accumulate(lengths))
        places = [n for p in kept for n in range(ends[p] - lengths[p], ends[p])]
        whole = len(places) == (ends[-1] if ends else 0)
        bias = None if self.passage_bias is None else [[self.passage_bias[row][p] for p in kept]]

        def taken(states: Tensor) -> Tensor:
            own = states[row : row + 1]
            return own[:, :, : len(places)] if whole else own[:, :, places]

        return PassageKV(
            {layer: taken(states) for layer, states in self.keys.items()},
            {layer: taken(states) for layer, states in self.values.items()},
            [[lengths[p] for p in kept]],
            bias,
        )

    @classmethod
    def beside(cls, parts: Sequence["PassageKV"]) -> "PassageKV":
        """What one prompt reads of several retrievals: their passages after each other.

        Args:
            parts: a batch of one each.
        """

        def join(states: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
            return {layer: torch.cat([x[layer] for x in states], dim=2) for layer in states[0]}

        bias = None
        if any(part.passage_bias is not None for part in parts):
            none = ([0.0] * len(part.lengths[0]) for part in parts)
            own = zip(parts, none, strict=True)
            bias = [[x for part, zeros in own for x in (part.passage_bias or [zeros])[0]]]
        return cls(
            join([part.keys for part in parts]),
            join([part.values for part in parts]),
            [[length for part in parts for length in part.lengths[0]]],
            bias,
        )

    def repeat(self, times: int) -> "PassageKV":
        """Every row ``times`` times in a row, as ``generate`` lays out the beams of a prompt."""
        if times == 1:
            return self
        return PassageKV(
            {layer: x.repeat_interleave(times, dim=0) for layer, x in self.keys.items()},
            {layer: x.repeat_interleave(times, dim=0) for layer, x in self.values.items()},
            [row for row in self.lengths for _ in range(times)],
            self.passage_bias and [row for row in self.passage_bias for _ in range(times)],
        )


class _Segments:
    """Which passage each token of a batch belongs to.

    Args:
        lengths: as in `PassageKV`.
        device: of what is summed.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], device: torch.device) -> None:
        self.most = max(map(len, lengths), default=0)
        rows = [
            torch.arange(len(row)).repeat_interleave(torch.tensor(row).long()) for row in lengths
        ]
        # (batch, S); padding goes to a passage of its own
        self.numbers = pad_sequence(rows, True, self.most).to(device)

    def sums(self, attention: Tensor) -> Tensor:
        """(batch, most passages of a prompt) from (batch, S)."""
        sums = attention.new_zeros(len(attention), self.most + 1)
        return sums.scatter_add_(1, self.numbers, attention)[:, : self.most]


def score_bias(scores: Sequence[float], weight: float) -> list[float]:
    """weight · (s(q, p) - max s): what is added to the attention logits of p's tokens.

    Args:
        scores: s(q, p) of each passage of a prompt.
        weight: 0 changes nothing; a large one reads the best passage almost alone.
    """
    best = max(scores, default=0.0)
    return [weight * (score - best) for score in scores]


@dataclass(frozen=True)
class RowKV:
    """The passage KV of prompts that share a batch for a while, one `PassageKV` for each row.

    Nothing is padded or copied when rows come and go, and rows may share the same states.

    Attributes:
        rows: the passage KV of each prompt, a batch of one.
    """

    rows: Sequence[PassageKV]

    @property
    def width(self) -> int:
        """S: the greatest number of passage tokens that a row reads."""
        return max((kv.width for kv in self.rows), default=0)

    def by_passage(self, attention: Tensor) -> Tensor:
        """As :meth:`PassageKV.by_passage`."""
        return self._segments.sums(attention)

    @cached_property
    def _segments(self) -> _Segments:
        device = next(iter(self.rows[0].keys.values())).device
        return _Segments([lengths for kv in self.rows for lengths in kv.lengths], device)

    def attend(
        self,
        layer: int,
        module: nn.Module,
        *states: Any,
        note: Note | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`PassageKV.attend`."""
        if states[0].shape[2] == 1:
            scaling = kwargs.get("scaling")
            return self._attend_one(layer, *states, scaling=scaling, note=note), None
        outputs: list[Tensor] = []
        noted: list[Tensor] = []  # (1, S) of each row
        of_row = None if note is None else noted.append
        for n, kv in enumerate(self.rows):
            # A mask may be one for all rows.
            own = [x if x is None or len(x) == 1 else x[n : n + 1] for x in states]
            outputs.append(kv.attend(layer, module, *own, note=of_row, **kwargs)[0])
        if note is not None:
            note(pad_sequence([one[0] for one in noted], batch_first=True))
        return torch.cat(outputs), None

    def _attend_one(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        scaling: float | None,
        note: Note | None,
    ) -> Tensor:
        """Attention of one token of each row: only the products with passages are row by row."""
        rows, heads, _, head_dim = query.shape
        scaling = head_dim**-0.5 if scaling is None else scaling
        grouped = (query * scaling).view(rows, key.shape[1], -1, head_dim)
        own = (grouped @ key.transpose(2, 3)).float()
        if mask is not None:
            own = own.masked_fill(~mask, torch.finfo(own.dtype).min)
        read = self._bias.shape[1]
        scores = own.new_zeros(*own.shape[:3], read)
        for n, kv in enumerate(self.rows):
            keys = kv.keys[layer][0].to(query.dtype)
            scores[n, :, :, : keys.shape[1]] = grouped[n] @ keys.transpose(1, 2)
        scores += self._bias[:, None, None]
        exact = torch.cat([scores, own], dim=-1).softmax(dim=-1)
        if note is not None:
            note(exact[..., :read].sum((1, 2)))
        weights = exact.to(value.dtype)
        output = weights[..., read:] @ value
        for n, kv in enumerate(self.rows):
            values = kv.values[layer][0].to(value.dtype)
            output[n].baddbmm_(weights[n, :, :, : values.shape[1]], values)
        return output.view(rows, 1, heads, head_dim)

    @cached_property
    def _bias(self) -> Tensor:
        """The bias of the passage tokens' attention logits, (rows, longest S) float32."""
        lengths = [sum(map(sum, kv.lengths)) for kv in self.rows]
        device = next(iter(self.rows[0].keys.values())).device
        bias = torch.full((len(lengths), max(lengths)), torch.finfo(torch.float32).min)
        for n, (kv, length) in enumerate(zip(self.rows, lengths, strict=True)):
            bias[n, :length] = 0.0 if kv.bias is None else kv.bias[0].cpu()
        return bias.to(device)

    def prepend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`PassageKV.prepend`."""
        return self._joined.prepend(layer, query, key, value, mask)

    def repeat(self, times: int) -> "RowKV":
        """Every row ``times`` times in a row."""
        return RowKV([row for row in self.rows for _ in range(times)])

    @cached_property
    def _joined(self) -> PassageKV:
        """All rows in one padded batch."""
        longest = max(sum(map(sum, row.lengths)) for row in self.rows)

        def join(states: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in states])

        layers = self.rows[0].keys
        return PassageKV(
            {layer: join([row.keys[layer] for row in self.rows]) for layer in layers},
            {layer: join([row.values[layer] for row in self.rows]) for layer in layers},
            [lengths for row in self.rows for lengths in row.lengths],
        )


@dataclass(frozen=True)
class EncodedPassages:
    """P encoded sequences of passage tokens, right-padded to L.

    Attributes:
        keys, values: for every layer b..t, (P, key heads, L, d_h), after rotary embedding.
        mask: (P, L), True where a token stands.
        embeddings: (P, h_k * d_h) float32, the embedding of each sequence's pooling token.
        attention: for every layer b..t, (P, key heads, L) float32, how much attention each token
            received from the tokens of its sequence in all query heads; {} if not asked for.
    """

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    mask: Tensor
    embeddings: Tensor
    attention: Mapping[int, Tensor] = field(default_factory=dict)

    def blocks(self, kv_keep_ratio: float = 1.0) -> list[Tensor]:
        """The states of each sequence, (2, layers, key heads, its tokens, d_h).

        Args:
            kv_keep_ratio: the share of its tokens that each sequence keeps, in order: in every
                layer and head those that received most attention (heavy hitters; paper, appendix
                C). A share below 1 needs ``attention``.
        """
        states = torch.stack(
            [torch.stack(list(part.values())) for part in (self.keys, self.values)]
        )  # (2, layers, P, key heads, L, d_h)
        blocks = []
        for row, length in enumerate(self.mask.sum(dim=1).tolist()):
            block = states[:, :, row, :, :length]
            if kv_keep_ratio < 1:
                received = torch.stack([x[row, :, :length] for x in self.attention.values()])
                kept = received.topk(math.ceil(kv_keep_ratio * length), dim=-1).indices
                index = kept.sort(dim=-1).values[None, ..., None]
                block = block.gather(3, index.expand(*block.shape[:3], -1, block.shape[4]))
            blocks.append(block)
        return blocks

    @classmethod
    def concatenate(cls, parts: Sequence["EncodedPassages"]) -> "EncodedPassages":
        """The rows of all parts, padded to the longest."""
        if len(parts) == 1:
            return parts[0]  # nothing is copied
        longest = max(part.mask.shape[1] for part in parts)

        def join(states: Sequence[Tensor], dim: int) -> Tensor:
            gaps = [longest - x.shape[dim] for x in states]
            after = [0, 0] * (states[0].ndim - 1 - dim)
            return torch.cat(
                [F.pad(x, (*after, 0, gap)) for x, gap in zip(states, gaps, strict=True)]
            )

        def join_layers(states: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
            return {layer: join([part[layer] for part in states], 2) for layer in states[0]}

        return cls(
            join_layers([part.keys for part in parts]),
            join_layers([part.values for part in parts]),
            join([part.mask for part in parts], 1),
            torch.cat([part.embeddings for part in parts]),
            join_layers([part.attention for part in parts]),
        )

    def for_prompts(self, assignment: list[list[int]]) -> PassageKV:
        """Concatenate the passages of every prompt, without the padding between them.

        Args:
            assignment: for every prompt, the rows of the passages that it reads; prompts may
                read different numbers of passages, or none, and share passages.
        """
        width = self.mask.shape[1]
        tokens_of = self.mask.sum(dim=1).tolist()
        lengths = [[tokens_of[p] for p in passages] for passages in assignment]
        rows = [
            [p * width + token for p in passages for token in range(tokens_of[p])]
            for passages in assignment
        ]
        longest = max(map(len, rows), default=0)
        device = self.mask.device
        index = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        index = index.view(len(rows), longest).long()

        def gather(states: Tensor) -> Tensor:
            tokens = states.transpose(1, 2).flatten(0, 1)  # (P * L, key heads, d_h)
            # Not tokens[index], whose gradient is slow where passages are read by many prompts.
            read = tokens.index_select(0, index.flatten()).view(*index.shape, *tokens.shape[1:])
            return read.transpose(1, 2)  # (batch, key heads, S, d_h)

        return PassageKV(
            {layer: gather(states) for layer, states in self.keys.items()},
            {layer: gather(states) for layer, states in self.values.items()},
            lengths,
        )
