"""Attribution: how much of its attention an answer paid to each passage.

A passage's share of a token is the attention on the passage's tokens at the position whose output
predicts the token: the sum of their softmax weights, averaged over all heads of layers b..t. The
shares of all passages and of the prompt's and the answer's own tokens add up to 1. They are summed
while the model reads, layer by layer; no attention matrix is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from imprag.model.decoder import Decoder
from imprag.model.kv import PassageKV, RowKV

_CARRIED = 0.5  # of the attention that passages get


class ReadingShares:
    """Sums up the attention that the last position of each row pays to its passages.

    Args:
        decoder: the model.

    Attributes:
        steps: the shares of each pass, (rows, most passages of a row) float32, in the order in
            which the pass reads them; 0 for passages that a row lacks.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._first, self._last = decoder.config.b, decoder.config.t
        self._weights = decoder.num_heads * (self._last - self._first + 1)
        self._sum = torch.empty(0)
        self.steps: list[Tensor] = []

    def note(self, layer: int, kv: PassageKV | RowKV, attention: Tensor) -> None:
        """Add one layer's attention; with layer t, the pass is complete.

        Args:
            layer: the layer's number.
            kv: what the rows read.
            attention: of each row to each passage token, summed over heads, (rows, S) float32.
        """
        self._sum = attention if layer == self._first else self._sum + attention
        if layer == self._last:
            self.steps.append(kv.by_passage(self._sum) / self._weights)

    def of_row(self, row: int) -> list[list[float]]:
        """The shares of each pass in one row, padded with zeros to the same length.

        Args:
            row: its number.
        """
        steps = [step[row] for step in self.steps]
        return pad_sequence(steps, batch_first=True).tolist() if steps else []


@dataclass(frozen=True)
class AttributedToken:
    """A token of an answer, and what was read to write it.

    Attributes:
        text: its text.
        start, end: where the text stands in the answer, in characters.
        shares: the share of each passage, 0 to 1.
    """

    text: str
    start: int
    end: int
    shares: list[float]


@dataclass(frozen=True)
class Attribution:
    """What an answer was read from.

    Attributes:
        shares: the share of each passage, in the order of the answer's passages: the mean over the
            answer's tokens.
        tokens: those that the answer's text is made of; without white space before it, the stop
            string and the end token.
    """

    shares: list[float]
    tokens: list[AttributedToken]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, with the properties."""
        return {**asdict(self), "own": self.own, "carried_by": self.carried_by}

    @property
    def own(self) -> float:
        """The share of the prompt's and the answer's own tokens."""
        return 1 - sum(self.shares)

    @property
    def carried_by(self) -> list[int]:
        """The passages that carried the answer, most read first.

        They are the fewest that got at least half of the attention that all passages got. An
        answer without text or passages has none.
        """
        order = sorted(range(len(self.shares)), key=lambda n: -self.shares[n])
        carried: list[int] = []
        left = _CARRIED * sum(self.shares)
        for n in order:
            if left <= 0:
                break
            carried.append(n)
            left -= self.shares[n]
        return carried


def attribute(
    spans: Sequence[tuple[int, int]], shares: Sequence[list[float]], text: str, passages: int
) -> Attribution:
    """The attribution of an answer.

    Args:
        spans: where each token's text stands in it, as `token_spans` gives it.
        shares: of each token, for every passage.
        text: the answer.
        passages: the number of passages that were read.
    """
    found = [
        AttributedToken(text[start:end], start, end, share)
        for (start, end), share in zip(spans, shares, strict=False)
        if start < end
    ]
    means = [sum(one.shares[n] for one in found) / max(len(found), 1) for n in range(passages)]
    return Attribution(means, found)


def token_spans(tokenizer: Any, tokens: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Where each token's text stands in an answer, as (start, end) in characters.

    Args:
        tokenizer: the model's.
        tokens: the new tokens, which may go on after the answer's end.
        text: the answer: the tokens' text without white space around it, cut at the stop string.

    Returns:
        a span for each token, empty if the answer has none of its text. All tokens of a character
        that several make have its span.
    """
    lead, ends, last = None, [], 0
    for decoded in _growing_texts(tokenizer, tokens):
        if lead is None and decoded.added.strip():
            added = decoded.added
            lead = decoded.before + len(added) - len(added.lstrip())
        # A character whose bytes are not complete is decoded as the replacement character.
        last = max(last, decoded.before + len(decoded.added.rstrip("\ufffd")))
        ends.append((last, decoded.added.endswith("\ufffd")))
        if lead is not None and last - lead >= len(text):
            break
    spans, start = [], 0
    for n, (end, cut) in enumerate(ends):
        whole = next((later for later, still in ends[n:] if not still), end) if cut else end
        shift = lead or 0
        span = max(start - shift, 0), min(whole - shift, len(text))
        spans.append(span if span[0] < span[1] else (0, 0))
        start = end
    return spans + [(0, 0)] * (len(tokens) - len(spans))


class _Growing(NamedTuple):
    """The text of an answer's first tokens: what is complete, and what the last ones add to it."""

    before: int  # characters
    added: str


def _growing_texts(tokenizer: Any, tokens: Sequence[int]) -> Iterator[_Growing]:
    """The text after every token.

    Only the last tokens are decoded: those that an unfinished character may need, behind a piece of
    text that is complete, since a tokenizer may drop white space where a text begins.
    """
    before, start, whole = 0, 0, 0
    for count in range(1, len(tokens) + 1):
        complete = tokenizer.decode(tokens[start:whole], skip_special_tokens=True)
        decoded = tokenizer.decode(tokens[start:count], skip_special_tokens=True)
        added = decoded[len(complete) :]
        yield _Growing(before, added)
        if added and not added.endswith("\ufffd"):
            before, start, whole = before + len(added), whole, count
