"""Finding an answer in a passage's text."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

_WORD_OR_SYMBOL = re.compile(r"[^\W_]+|[^\w\s]|_")


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the words of one of the answers stand in the text, in order and side by side.

    This is the substring match of DPR and its successors: whole words only ("one" is not found in
    "phone"), case is ignored, accents and punctuation are not ("U.S." is not found in "US").
    """
    words = _word_string(text)
    return any(_word_string(answer) in words for answer in answers if answer.strip())


class AnswerFinder:
    """Finds answers in many texts at once, by the rule of `contains_answer`.

    Args:
        texts: to search.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        words = [_word_string(text) for text in texts]
        self._words = "\n".join(words)
        self._ends = list(accumulate(len(each) + 1 for each in words))

    def texts_with(self, answers: Iterable[str]) -> set[int]:
        """Which texts contain one of the answers, as indices."""
        found: set[int] = set()
        for answer in answers:
            start = 0
            while answer.strip() and (place := self._words.find(_word_string(answer), start)) >= 0:
                text = bisect_right(self._ends, place)
                found.add(text)
                start = self._ends[text]
        return found


# A benchmark retrieves the same passages again and again, so their word strings are kept.
@lru_cache(maxsize=2**16)
def _word_string(text: str) -> str:
    """The words with spaces around each, so that `in` finds whole words only."""
    words = _WORD_OR_SYMBOL.findall(unicodedata.normalize("NFC", text).lower())
    return f" {' '.join(words)} "
