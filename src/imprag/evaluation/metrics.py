"""Metrics of answers and rankings: pure functions of one instance, with values from 0 to 1.

A ranking is a sequence of distinct ids, best first. `imprag.evaluation.statistics` has means over
instances and their confidence intervals.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import regex  # type: ignore[import-untyped]

from imprag.corpus.words import fold, spaced
from imprag.errors import ImpRAGError
from imprag.tasks.matching import contains_answer

_Gold = TypeVar("_Gold", bound=Collection[object])

_ARTICLES = regex.compile(r"\b(?:a|an|the)\b(?!\p{M})")
_ASCII_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
_PUNCTUATION = regex.compile(rf"[\p{{P}}{re.escape(string.punctuation)}]")
_OTHER_SCRIPT = regex.compile(r"[\p{L}--\p{Latin}]", regex.V1)
_FORMS = 3


# --- Answers ------------------------------------------------------------------------------------


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces.

    As in SQuAD, only ASCII punctuation is dropped from text in Latin letters. If the text has
    letters of another script, all punctuation is dropped, and each character of a script without
    spaces is a word, as in MLQA. Unicode is normalised (NFKC).
    """
    return _normal_form(text, 0)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers in SQuAD's normal form, else 0.

    If the normal form of either is empty (vitamin "A"), both keep their articles; if it is still
    empty ("?"), they keep punctuation, too.

    Raises:
        ImpRAGError: the answer list is empty.
    """
    pairs = (_compared(prediction, answer) for answer in _checked(answers))
    return float(any(predicted == expected for predicted, expected in pairs))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, for the best answer; words as in `exact_match`.

    Raises:
        ImpRAGError: the answer list is empty.
    """
    return max(_word_f1(*_compared(prediction, answer)) for answer in _checked(answers))


def _compared(prediction: str, answer: str) -> tuple[list[str], list[str]]:
    """The words of both, in the first normal form in which neither is empty."""
    for kept in range(_FORMS):
        words = _normal_form(prediction, kept).split(), _normal_form(answer, kept).split()
        if all(words):
            break
    return words


def _normal_form(text: str, kept: int) -> str:
    """The normal form: 0 drops punctuation and articles, 1 only punctuation, 2 neither."""
    text = fold(text)
    if kept < 2:
        pattern = _PUNCTUATION if _OTHER_SCRIPT.search(text) else _ASCII_PUNCTUATION
        text = pattern.sub("", text)
    if kept < 1:
        text = _ARTICLES.sub(" ", text)
    return " ".join(spaced(text).split())


def _word_f1(predicted: list[str], expected: list[str]) -> float:
    if predicted == expected:
        return 1.0
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """`exact_match` of labels, such as FEVER's True and False.

    Raises:
        ImpRAGError: the answer list is empty.
    """
    return exact_match(prediction, answers)


#: Answer metrics by the names that a task may give.
ANSWER_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "accuracy": accuracy,
}


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if not answers:
        raise ImpRAGError("the answer list is empty; give at least one answer to compare with")
    return answers


# --- Retrieval by answer string -----------------------------------------------------------------


def answer_recall(texts: Sequence[str], answers: Sequence[str], k: int) -> float:
    """The ImpRAG paper's retrieval recall: 1 if one of the top k texts contains an answer, else 0.

    `contains_answer` decides whether a text contains an answer.

    Args:
        texts: texts of the retrieved passages, best first.
        answers: the gold answers.
        k: depth.

    Raises:
        ImpRAGError: the answer list is empty.
    """
    _checked(answers)
    return float(any(contains_answer(text, answers) for text in texts[:k]))


# --- Retrieval by provenance --------------------------------------------------------------------


def provenance_recall(
    ranking: Sequence[str], evidence_sets: Sequence[Collection[str]], k: int
) -> float:
    """1 if the top k contain one of the evidence sets completely, else 0.

    A question that any of several passages answers has one evidence set for each of them; a two-hop
    question has one set with both passages, and both must be in the top k.

    Raises:
        ImpRAGError: there is no evidence, so recall is undefined.
    """
    top = set(ranking[:k])
    return float(any(top.issuperset(evidence) for evidence in _distinct(evidence_sets)))


def reciprocal_rank(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """1 / the rank of the first relevant id, or 0 if none is ranked; its mean is MRR.

    Raises:
        ImpRAGError: nothing is relevant.
    """
    relevant = set(_known(relevant))
    return next((1 / rank for rank, id in enumerate(ranking, 1) if id in relevant), 0.0)


def ndcg(ranking: Sequence[str], relevance: Mapping[str, int], k: int = 10) -> float:
    """Normalised discounted cumulative gain of the top k, whose gains are their relevance.

    This is trec_eval's ``ndcg_cut``.

    Raises:
        ImpRAGError: nothing is relevant.
    """
    best = sorted(_known(relevance).values(), reverse=True)
    found = [relevance.get(id, 0) for id in ranking]
    gain, ideal = (
        sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:k], 1))
        for gains in (found, best)
    )
    return gain / ideal


# --- KILT's page-level measures -----------------------------------------------------------------
# A page is ranked more than once if several of its passages are; only its best rank counts. Each
# answer of a KILT instance has one evidence set.


def r_precision(ranking: Sequence[str], evidence_sets: Sequence[Collection[str]]) -> float:
    """Share of an evidence set of R pages among the top R pages, for the best evidence set.

    Raises:
        ImpRAGError: there is no evidence.
    """
    pages = list(dict.fromkeys(ranking))
    sets = _distinct(evidence_sets)
    return max(
        len(evidence.intersection(pages[: len(evidence)])) / len(evidence) for evidence in sets
    )


def _distinct(evidence_sets: Sequence[Collection[str]]) -> list[frozenset[str]]:
    """The distinct evidence sets, without the empty sets of answers without provenance."""
    return _known(list(dict.fromkeys(frozenset(ids) for ids in evidence_sets if ids)))


def _known(gold: _Gold) -> _Gold:
    if not gold:
        raise ImpRAGError(
            "the instance has no gold passage; leave it out of the retrieval metrics by provenance"
        )
    return gold
