"""The part of a passage that a model sees: text after ``max_passage_tokens`` is cut off."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from imprag.corpus import Passage

if TYPE_CHECKING:
    from imprag.pipeline import ImpRAG

#: Number of characters of a passage's text that a model sees.
VisibleCharacters = Callable[[Passage], int]

_CACHED = 2**16  # passages; a benchmark retrieves the same ones repeatedly
_NO_LIMIT = 2**40


def visible_characters(rag: "ImpRAG") -> VisibleCharacters:
    """A function that counts the characters of a passage's text that a model sees."""
    from imprag.model.text import passage_tokens

    limit = rag.config.max_passage_tokens
    uncut = replace(rag.config, max_passage_tokens=_NO_LIMIT)

    def tokens(passage: Passage, characters: int) -> int:
        start = replace(passage, text=passage.text[:characters])
        return len(passage_tokens(rag.tokenizer, uncut, [start])[0])

    @lru_cache(_CACHED)
    def count(id: str, title: str, text: str) -> int:
        passage = Passage(id, title, text)
        if tokens(passage, len(text)) <= limit:
            return len(text)
        lengths = range(len(text) + 1)
        fitting = bisect_right(lengths, limit, key=lambda n: tokens(passage, n))
        return max(0, fitting - 1)

    return lambda passage: count(passage.id, passage.title, passage.text)
