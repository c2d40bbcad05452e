"""Finds answers in the texts of passages."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate

from imprag.corpus.words import fold, words_and_symbols

_ARTICLES = frozenset({"a", "an", "the"})


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the words of any answer occur in the text, consecutively and in order.

    This is the substring match of DPR and its successors. Only whole words match ("one" is not
    found in "phone"), and accents and punctuation matter ("U.S." is not found in "US"). Case is
    ignored, except in an answer that has only articles: vitamin "A" is not in "a vitamin".

    In scripts without spaces, such as Chinese, Japanese and Thai, characters are compared instead
    of words. Particles may follow a Korean word: "파리" is found in "파리는".
    """
    return any(
        needle in _word_string(text, lower)
        for needle, lower in map(_needle, answers)
        if needle is not None
    )


class AnswerFinder:
    """Finds answers in many texts at once, by the same rule as `contains_answer`.

    Args:
        texts: the texts to search.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def texts_with(self, answers: Iterable[str]) -> set[int]:
        """The indices of the texts that contain any of the answers."""
        found: set[int] = set()
        for needle, lower in map(_needle, answers):
            if needle is None:
                continue
            words, ends = self._lower if lower else self._cased
            start = 0
            while (place := words.find(needle, start)) >= 0:
                text = bisect_right(ends, place)
                found.add(text)
                start = ends[text]
        return found

    @cached_property
    def _lower(self) -> tuple[str, list[int]]:
        return _joined([_word_string(text) for text in self._texts])

    @cached_property
    def _cased(self) -> tuple[str, list[int]]:
        return _joined([_word_string(text, False) for text in self._texts])


def _joined(word_strings: Sequence[str]) -> tuple[str, list[int]]:
    """The word strings, one per line, and the end of each."""
    return "\n".join(word_strings), list(accumulate(len(each) + 1 for each in word_strings))


def _needle(answer: str) -> tuple[str | None, bool]:
    """The string to find in word strings (None: nothing), and whether these are in lower case."""
    words = _word_string(answer)
    if not words.strip():
        return None, True
    if _ARTICLES.issuperset(words.split()):
        return _word_string(answer, False), False
    # Hangul syllables: particles may follow the last one.
    return words[:-1] if "\uac00" <= words[-2] <= "\ud7a3" else words, True


# Cached, because a benchmark retrieves the same passages many times.
@lru_cache(maxsize=2**16)
def _word_string(text: str, lower: bool = True) -> str:
    """The words with spaces around each, so that `in` finds only whole words."""
    return f" {' '.join(words_and_symbols(fold(text, lower=lower)))} "
