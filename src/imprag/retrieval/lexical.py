"""BM25: search by the words that query and passage share."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus
from imprag.corpus.words import search_terms
from imprag.io.files import atomic_path, cache_dir
from imprag.io.locking import make_once
from imprag.io.optional import require
from imprag.retrieval.retriever import RetrievedPassage, check_retrieval, retrieved_passages

SETTINGS = {"method": "lucene", "k1": 1.5, "b": 0.75}
_TERMS = "words, characters and pairs"  # what `search_terms` makes; part of the cache key


def require_bm25() -> None:
    """Ask for the package before the work begins.

    Raises:
        ImpRAGError: bm25s is missing.
    """
    require("BM25", "eval", "bm25s")


class BM25:
    """Lexical search with ``bm25s``, over title and text of the passages.

    Terms are words in lower case, and characters and pairs of them in scripts without spaces (see
    `imprag.corpus.words.search_terms`). There is no stop list (it would leave nothing of "The Who",
    and changes recall by about a point on most tasks) and no stemmer.

    Args:
        corpus: indexed at the first use, into the cache folder; the index is memory-mapped.

    Raises:
        ImpRAGError: bm25s is missing.
    """

    def __init__(self, corpus: Corpus) -> None:
        require_bm25()
        import bm25s

        self.corpus = corpus
        folder = cache_dir() / "bm25" / self.fingerprint()[:16]
        make_once(folder, lambda: _build(corpus, folder))
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def retrieve(self, queries: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k passages with the highest scores for every query, best first.

        Raises:
            ImpRAGError: k is larger than the corpus.
        """
        return retrieved_passages(self.corpus, *self.rank(queries, k), "lexical")

    def rank(
        self, queries: Sequence[str], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Corpus rows and scores of what :meth:`retrieve` finds, (queries, k) each.

        Raises:
            ImpRAGError: k is larger than the corpus, or one text is given in place of a list.
        """
        check_retrieval(self.corpus, queries, k)
        if not queries:
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        terms = [search_terms(query) for query in queries]
        rows, scores = self._index.retrieve(terms, k=k, show_progress=False)
        return rows.astype(np.int64), scores

    def settings(self) -> Mapping[str, Any]:
        """BM25's variant and its constants."""
        return SETTINGS

    def fingerprint(self) -> str:
        """Names what the ranks depend on besides the queries."""
        content = f"{self.corpus.fingerprint} {SETTINGS} {_TERMS}"
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _build(corpus: Corpus, folder: Path) -> None:
    import bm25s

    numbers = {"": 0}  # what bm25s takes a query without any known term for
    documents = [
        [numbers.setdefault(term, len(numbers)) for term in search_terms(text)]
        for text in (f"{passage.title} {passage.text}" for passage in corpus)
    ]
    index = bm25s.BM25(**SETTINGS)
    index.index((documents, numbers), show_progress=False)
    with atomic_path(folder) as temporary:
        index.save(temporary, show_progress=False)
