"""Cleaning text and splitting it into pieces of about a hundred words."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

from imprag.errors import ImpRAGError

_WORD = re.compile(r"\S+")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"""(?<!\b[A-Z])[.!?…。！？]["'”’»)\]]*$""")  # "W." is an initial
_CLAUSE_END = re.compile(r"""[;:,]["'”’»)\]]*$""")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))


def tidy(text: str) -> str:
    """Text in Unicode NFC, without invisible characters, with single spaces as white space."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


def split_text(text: str, max_words: int = 100) -> list[str]:
    """Split text into pieces of at most ``max_words`` words that lose no word.

    Words are what stands between white space. A piece ends with the last sentence or paragraph
    that fits. A sentence longer than a piece is cut after a comma, semicolon or colon in the
    second half of the piece, or else after any word. White space inside a piece stays as it is.

    >>> split_text("One two three. Four five. Six, seven, eight, nine, ten.", max_words=4)
    ['One two three.', 'Four five.', 'Six, seven, eight, nine,', 'ten.']
    """
    return [text[start:end] for start, end in split_spans(text, max_words)]


def split_spans(text: str, max_words: int = 100) -> Iterator[tuple[int, int]]:
    """Start and end in ``text`` of each piece that :func:`split_text` makes."""
    if max_words < 1:
        raise ImpRAGError(f"max_words is {max_words}; a piece needs at least one word")
    words = _WORD.finditer(text)
    window = list(islice(words, max_words + 1))
    while window:
        stop = _best_break(text, window) if len(window) > max_words else len(window)
        yield window[0].start(), window[stop - 1].end()
        window = window[stop:] + list(islice(words, stop))


def _best_break(text: str, window: list[re.Match[str]]) -> int:
    """How many of the words in ``window``, all but the last at most, make the best piece."""
    longest = len(window) - 1
    for stop in range(longest, 0, -1):
        word, following = window[stop - 1], window[stop]
        ends_sentence = _SENTENCE_END.search(word[0]) and not following[0][0].islower()
        if ends_sentence or _PARAGRAPH_END.search(text, word.end(), following.start()):
            return stop
    for stop in range(longest, longest // 2, -1):
        if _CLAUSE_END.search(window[stop - 1][0]):
            return stop
    return longest
