"""Finding an answer in a passage's text."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_WORD_OR_SYMBOL = re.compile(r"[^\W_]+|[^\w\s]|_")


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the words of one of the answers stand in the text, in order and side by side.

    This is the substring match of DPR and its successors: whole words only ("one" is not found in
    "phone"), case is ignored, accents and punctuation are not ("U.S." is not found in "US").
    """
    words = _word_string(text)
    return any(_word_string(answer) in words for answer in answers if answer.strip())


# A benchmark retrieves the same passages again and again, so their word strings are kept.
@lru_cache(maxsize=2**16)
def _word_string(text: str) -> str:
    """The words with spaces around each, so that `in` finds whole words only."""
    words = _WORD_OR_SYMBOL.findall(unicodedata.normalize("NFC", text).lower())
    return f" {' '.join(words)} "
