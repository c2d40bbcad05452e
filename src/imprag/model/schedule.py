"""When an answer retrieves again, and what it reads from then on.

Beyond the paper, which retrieves once, at the end of the prompt. A new token's pass goes through
layer b anyway, where its query state is a new query embedding: asking again costs a search. That
token and all later ones read what comes back; tokens before it keep the keys and values that they
were computed with.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from imprag.errors import ImpRAGError

PassagesKept = Literal["beside", "instead"]
"""What becomes of the passages that were read before: new ones are read ``beside`` them or
``instead`` of them."""

MOST_RETRIEVALS = 16
"""Retrievals of one answer, the prompt's included; after them, nothing more is retrieved."""

_LONGEST = 64  # characters of a separator


@dataclass(frozen=True)
class RetrievalSchedule:
    """The tokens of an answer that retrieve.

    Attributes:
        every: after every so many new tokens, if given.
        separator: whenever the answer's text contains this once more, if given.
        kept: whether new passages are read beside the former ones or instead of them.

    Example:
        >>> RetrievalSchedule.parse("on:;").separator
        ';'
        >>> RetrievalSchedule.parse("once").again
        False
    """

    every: int | None = None
    separator: str | None = None
    kept: PassagesKept = "beside"

    @classmethod
    def parse(cls, text: str, kept: PassagesKept = "beside") -> "RetrievalSchedule":
        """The schedule that ``once``, ``every:N`` or ``on:SEPARATOR`` describes.

        Args:
            text: the description.
            kept: what becomes of the former passages.

        Raises:
            ImpRAGError: it is none of these, or ``kept`` is neither ``beside`` nor ``instead``.
        """
        if kept not in get_args(PassagesKept):
            raise ImpRAGError(f"passages_kept must be beside or instead, not {kept!r}")
        kind, _, value = text.partition(":") if isinstance(text, str) else ("", "", "")
        if text == "once":
            return cls(kept=kept)
        if kind == "every" and re.fullmatch("0*[1-9][0-9]{0,5}", value[:_LONGEST]):
            return cls(every=int(value), kept=kept)
        if kind == "on" and value.strip() and len(value) <= _LONGEST:
            return cls(separator=value, kept=kept)
        raise ImpRAGError(
            f"retrieve is {str(text)[:_LONGEST]!r}, but must be once, every:N (such as every:4, at "
            "most 999999) or on:SEPARATOR (such as on:;), of at most "
            f"{_LONGEST} characters that are not all white space"
        )

    def __str__(self) -> str:
        """The text that :meth:`parse` reads."""
        if self.every is not None:
            return f"every:{self.every}"
        return "once" if self.separator is None else f"on:{self.separator}"

    @property
    def again(self) -> bool:
        """Whether an answer may retrieve at all."""
        return self.every is not None or self.separator is not None

    def due(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> bool:
        """Whether the last of an answer's tokens retrieves.

        It depends on the tokens alone, so an answer retrieves at the same tokens in any batch.

        Args:
            tokens: of the answer so far, at least one.
            decode: the text of tokens.
        """
        if self.every is not None:
            return len(tokens) % self.every == 0
        if self.separator is None:
            return False
        count = decode(tokens).count(self.separator)
        return count > 0 and count > decode(tokens[:-1]).count(self.separator)

    def last_part(self, answer: str) -> str:
        """What follows the last separator: the answer to the last hop; all of it without one."""
        if self.separator is None:
            return answer
        return answer.rsplit(self.separator, 1)[-1].strip()


class ContinuedPrompt(str):
    """A prompt with what has been written of its answer: the text of a later query.

    Attributes:
        prompt: the prompt, marked for its template.
        tokens: of the answer so far.
    """

    prompt: str
    tokens: tuple[int, ...]

    def __new__(cls, prompt: str, written: str, tokens: Sequence[int]) -> "ContinuedPrompt":
        text = super().__new__(cls, f"{prompt} {written.strip()}")
        text.prompt, text.tokens = prompt, tuple(tokens)
        return text
