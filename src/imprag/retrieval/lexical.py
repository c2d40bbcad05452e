"""BM25: search by the words that prompt and passage share."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus
from imprag.index.lexical import TERMS, LexicalIndex, query_terms
from imprag.io.files import cache_dir
from imprag.retrieval.retriever import (
    LEXICAL,
    RetrievedPassage,
    check_retrieval,
    retrieved_passages,
)


class LexicalRetriever:
    """Retrieves by the words of the prompt alone; no model runs.

    Args:
        corpus: the passages.
        index: their lexical index; by default one in the cache folder, made at the first use.
    """

    def __init__(self, corpus: Corpus, index: LexicalIndex | None = None) -> None:
        self.corpus = corpus
        self.index = cached_lexical_index(corpus) if index is None else index

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k passages with the highest scores for every prompt, best first.

        Raises:
            ImpRAGError: k is larger than the corpus.
        """
        return retrieved_passages(self.corpus, *self.rank(prompts, k), LEXICAL)

    def rank(
        self, prompts: Sequence[str], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Corpus rows and scores of what :meth:`retrieve` finds, (prompts, k) each.

        Passages that share no word with the prompt come last, with a score of 0.

        Raises:
            ImpRAGError: k is larger than the corpus, or one text is given in place of a list.
        """
        check_retrieval(self.corpus, prompts, k)
        rows = np.zeros((len(prompts), k), np.int64)
        scores = np.zeros((len(prompts), k), np.float32)
        for n, prompt in enumerate(prompts):
            found, found_scores = self.index.search(query_terms(prompt), k)
            # Among the first k rows at least so many are left as are missing.
            rest = np.setdiff1d(np.arange(k), found)[: k - len(found)]
            rows[n] = np.concatenate([found, rest])
            scores[n, : len(found)] = found_scores
        return rows, scores

    def settings(self) -> Mapping[str, Any]:
        """The terms and the formula."""
        return {"terms": TERMS}

    def fingerprint(self) -> str:
        """Names what the ranks depend on besides the prompts."""
        return hashlib.sha256(f"{self.corpus.fingerprint} {TERMS}".encode()).hexdigest()[:32]


def cached_lexical_index(corpus: Corpus) -> LexicalIndex:
    """The lexical index of a corpus in the cache folder, made at the first use."""
    key = hashlib.sha256(f"{corpus.fingerprint} {TERMS}".encode()).hexdigest()[:16]
    return LexicalIndex.build(corpus, cache_dir() / "lexical" / key)
