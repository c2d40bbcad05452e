"""Splits text in any script into words, for comparing answers and for BM25.

Most scripts have spaces between words. Chinese, Japanese, Thai, Lao, Khmer, Burmese and their
relatives have none; their units are single characters, as in the evaluations of MLQA, CMRC and
DRCD. Combining marks and joiners never split a word: Hindi vowel signs and decomposed accents
belong to the letter before them.
"""

import re
import unicodedata
from itertools import pairwise

import regex  # type: ignore[import-untyped]

_MARKS = r"[\p{M}\u200c\u200d]*"
_LETTER = rf"[\p{{L}}\p{{N}}]{_MARKS}"
# Letters of scripts without spaces. "Complex_Context" is Unicode's word for Thai and its relatives.
_UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Javanese}\p{Balinese}\u30fc"
    rf"\p{{Line_Break=Complex_Context}}]&&[\p{{L}}\p{{N}}]]{_MARKS}"
)
_HANGUL = rf"[\p{{Hangul}}]{_MARKS}"

_CHARACTER = regex.compile(_LETTER)
_UNSPACED_CHARACTER = regex.compile(_UNSPACED, regex.V1)
_WORD_OR_SYMBOL = regex.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED}){_LETTER})+|\S", regex.V1)
_RUN = regex.compile(
    rf"(?P<pairs>(?:{_UNSPACED})+|(?:{_HANGUL})+)"
    rf"|(?:(?!{_UNSPACED}|{_HANGUL})(?:{_LETTER}|_))+",
    regex.V1,
)
# Text without any of these characters, such as English, can be split by the faster module.
_MARKS_OR_UNSPACED = re.compile("[\u0300-\u1fff\u200c\u200d\u20d0-\u20ff\u2c00-\U0010ffff]")
_PLAIN_WORD_OR_SYMBOL = re.compile(r"[^\W_]+|[^\w\s]|_")
_PLAIN_RUN = re.compile(r"\w+")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))


def fold(text: str, *, lower: bool = True) -> str:
    """The text in Unicode NFKC without invisible characters, in lower case by default.

    Composed and decomposed, half-width and full-width, and presentation forms become equal.
    """
    if text.isascii():
        return text.lower() if lower else text
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    return unicodedata.normalize("NFKC", text.lower()) if lower else text


def spaced(text: str) -> str:
    """The text with spaces around every character of a script without spaces.

    >>> spaced("iPhone 手机").split()
    ['iPhone', '手', '机']
    """
    if not _MARKS_OR_UNSPACED.search(text):
        return text
    result: str = _UNSPACED_CHARACTER.sub(r" \g<0> ", text)
    return result


def words_and_symbols(text: str) -> list[str]:
    """Words, characters of scripts without spaces, and single symbols, in order.

    >>> words_and_symbols("U.S. 法国")
    ['U', '.', 'S', '.', '法', '国']
    """
    pattern = _WORD_OR_SYMBOL if _MARKS_OR_UNSPACED.search(text) else _PLAIN_WORD_OR_SYMBOL
    found: list[str] = pattern.findall(text)
    return found


def search_terms(text: str) -> list[str]:
    """Terms for a lexical index: folded words; in some scripts, characters and character pairs.

    Scripts without spaces and Korean, which joins particles to words, get characters and pairs.
    Lucene's analyser for Chinese, Japanese and Korean indexes the same pairs; the single
    characters find words of one character.

    >>> search_terms("The 法国人")
    ['the', '法', '国', '人', '法国', '国人']
    """
    text = fold(text)
    if text.isascii() or not _MARKS_OR_UNSPACED.search(text):
        return _PLAIN_RUN.findall(text)
    terms: list[str] = []
    for run in _RUN.finditer(text):
        if run["pairs"] is None:
            terms.append(run[0])
        else:
            characters = _CHARACTER.findall(run[0])
            terms += characters
            terms += map("".join, pairwise(characters))
    return terms
