"""The text of an answer while its tokens arrive."""

from collections.abc import Sequence
from typing import Any

from imprag.generation import begun_stop, until_stop


class AnswerText:
    """Decodes tokens one by one and ends at a stop string.

    All pieces together are the text that :meth:`imprag.ImpRAG.ask` returns for the same tokens.

    Args:
        tokenizer: the model's.
        stop: strings that end the answer and are not part of it.

    Attributes:
        tokens: the tokens so far.
        ended: a stop string has come.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.tokens: list[int] = []
        self.ended = False
        self._shown = 0

    def push(self, token: int) -> str:
        """Append a token; the text that is certain now and was not before."""
        self.tokens.append(token)
        text = self._decoded().lstrip()
        self.ended = any(stop in text for stop in self.stop)
        if self.ended:
            return self.finish()
        # A character whose bytes are not complete is decoded as the replacement character.
        whole = text.rstrip("\ufffd")
        return self._new(whole[: len(whole) - begun_stop(whole, self.stop)].rstrip())

    def finish(self) -> str:
        """The text that was held back."""
        return self._new(self.text)

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(until_stop([self._decoded()], self.stop)).strip()

    def _decoded(self) -> str:
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text

    def _new(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new
