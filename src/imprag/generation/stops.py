"""What ends an answer: strings, and a caller that has left."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class StopAt:
    """A stopping criterion: ends a row when its new text contains a stop string."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, prompt_length: int) -> None:
        self.stop = stop
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :])
        ended = [any(stop in text.lstrip() for stop in self.stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class StopWhen:
    """A stopping criterion: ends all rows when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text from its first character that is not white space to the first stop string."""
    held, begun = "", False
    for piece in pieces:
        held = held + piece if begun else (held + piece).lstrip()
        begun = begun or bool(held)
        ends = [held.index(text) for text in stop if text in held]
        if ends:
            yield held[: min(ends)]
            return
        keep = begun_stop(held, stop)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def begun_stop(text: str, stop: Sequence[str]) -> int:
    """Number of characters at the end of the text that may be the beginning of a stop string."""
    return max(
        (
            n
            for one in stop
            for n in range(1, min(len(one), len(text) + 1))
            if text.endswith(one[:n])
        ),
        default=0,
    )
