"""Cleans text and splits it into pieces of about a hundred words."""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from imprag.errors import ImpRAGError

# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Chinese, Japanese.
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3001-\u312f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\ua4cf\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff"
)
# Vowel signs, tone marks and closing punctuation, which stay with the character before them.
_ATTACHED = (
    "\u0300-\u036f\u0e30-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec8-\u0ece\u0f0b\u0f0d\u0f71-\u0f84"
    "\u102b-\u103e\u1056-\u1059\u17b4-\u17d3\u3001\u3002\u3009\u300b\u300d\u300f\u3011\u3099\u309a\u30fc"
    "\uff01\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\"'”’»)"
)
_WORD = re.compile(r"\S+")
_LONG_WORD = 24  # characters; a longer one is an address, data or a compound of many tokens
_UNIT = re.compile(
    rf"(?P<spaceless>[{_SPACELESS}][{_ATTACHED}]{{0,8}})|[^\s{_SPACELESS}]{{1,{_LONG_WORD}}}"
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_CLOSING = r"""["'”’»)\]」』】》〉）]*$"""
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.!?…。．！？།။។]" + _CLOSING)  # "W." is an initial
_CLAUSE_END = re.compile(r"[;:,，、；：]" + _CLOSING)
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))


def tidy(text: str) -> str:
    """The text in Unicode NFC, without invisible characters and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


class _Unit(NamedTuple):
    """A part of the text that is never cut: a word, or a part of a run without spaces."""

    start: int
    end: int
    words: int


def split_text(text: str, max_words: int = 100, *, whole_words: bool = False) -> list[str]:
    """Split text into pieces of at most ``max_words`` words without losing a word.

    Words are separated by white space. In scripts without spaces every character counts as a
    word. In a run of more than 24 characters, such as an address or Base64 data, every four
    characters count as a word, so that the number of tokens per piece is bounded for any text.

    A piece ends after the last sentence or paragraph that fits. A sentence longer than a piece is
    cut after a comma, semicolon or colon in the second half of the piece, or else after any word.
    White space inside a piece is kept.

    Args:
        text: any text.
        max_words: the maximum number of words per piece.
        whole_words: count everything between white space as one word and never cut it. Off by
            default; the Factbook and KILT pages use it, so that their passages are fixed.

    >>> split_text("One two three. Four five. Six, seven, eight, nine, ten.", max_words=4)
    ['One two three.', 'Four five.', 'Six, seven, eight, nine,', 'ten.']
    """
    spans = split_spans(text, max_words, whole_words=whole_words)
    return [text[start:end] for start, end in spans]


def split_spans(
    text: str, max_words: int = 100, *, whole_words: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield the start and end in ``text`` of each piece of :func:`split_text`."""
    if max_words < 1:
        raise ImpRAGError(f"max_words is {max_words}; a piece needs at least one word")
    units = _words(text) if whole_words else _units(text)
    window: list[_Unit] = []
    words = 0
    while True:
        while words <= max_words and (unit := next(units, None)):
            window.append(unit)
            words += unit.words
        if not window:
            return
        stop = _best_break(text, window) if words > max_words and window[1:] else len(window)
        yield window[0].start, window[stop - 1].end
        words -= sum(unit.words for unit in window[:stop])
        window = window[stop:]


def _words(text: str) -> Iterator[_Unit]:
    return (_Unit(*match.span(), 1) for match in _WORD.finditer(text))


def _units(text: str) -> Iterator[_Unit]:
    is_long = False  # whether the run that a unit belongs to is longer than a word
    for match in _UNIT.finditer(text):
        start, end = match.span()
        if match["spaceless"]:
            is_long = False
            yield _Unit(start, end, end - start if start + 1 < end else 1)
            continue
        begins_run = start == 0 or text[start - 1].isspace()
        goes_on = end - start == _LONG_WORD and end < len(text) and not text[end].isspace()
        is_long = goes_on or (is_long and not begins_run)
        length = end - start
        is_ascii = text[start:end].isascii()
        yield _Unit(start, end, (-(-length // 4) if is_ascii else length) if is_long else 1)


def _best_break(text: str, window: list[_Unit]) -> int:
    """The number of units in ``window`` that make the best piece; at most all but the last."""
    longest = len(window) - 1
    for stop in range(longest, 0, -1):
        unit, following = window[stop - 1], window[stop]
        ends_sentence = (
            _SENTENCE_END.search(text, unit.start, unit.end)
            and not text[following.start].islower()
            and (unit.end < following.start or not text[unit.start : unit.end].isascii())
        )
        if ends_sentence or _PARAGRAPH_END.search(text, unit.end, following.start):
            return stop
    for stop in range(longest, longest // 2, -1):
        if _CLAUSE_END.search(text, window[stop - 1].start, window[stop - 1].end):
            return stop
    for stop in range(longest, longest // 2, -1):
        if window[stop - 1].end < window[stop].start:
            return stop
    return longest
