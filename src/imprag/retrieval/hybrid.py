"""Hybrid retrieval: the model's own score of a passage plus the BM25 score of the same prompt.

    s(q, p) = alpha(q) * E_q . E_p * scale + beta(q) * BM25(prompt, p)

Both weights come from a gate that looks at both rankings of the prompt (`imprag.retrieval.gate`).
Where the corpus is one that the model knows, its scores are spread widely and decide; elsewhere the
words do. The sum is a logit, so it can bias the attention to passages as the implicit score does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from imprag.corpus import Corpus
from imprag.index.lexical import LexicalIndex, Terms, query_terms
from imprag.retrieval.gate import Gate, Rankings
from imprag.retrieval.implicit import ImplicitRetriever
from imprag.retrieval.retriever import RetrievedPassage, check_retrieval

HYBRID = "hybrid"
#: Passages that each retriever brings.
CANDIDATES = 100
_SAMPLE = 1024

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HybridRanking:
    """The best passages for a prompt, with the parts of their scores.

    Attributes:
        passages: best first; their score is the weighted sum of both parts.
        implicit: the model's own score of each.
        lexical: the BM25 score of each.
        alpha, beta: the prompt's weights of the two.
    """

    passages: list[RetrievedPassage]
    implicit: list[float]
    lexical: list[float]
    alpha: float
    beta: float


class HybridRetriever:
    """Retrieves by the prompt's hidden state at layer b and by its words.

    Candidates are the first 100 of either; all of them get both scores.

    Args:
        implicit: the model's own retriever.
        lexical: the lexical index of the same corpus.
        gate: weighs the two for each prompt.
    """

    def __init__(self, implicit: ImplicitRetriever, lexical: LexicalIndex, gate: Gate) -> None:
        self.implicit = implicit
        self.lexical = lexical
        self.gate = gate
        self._sample: FloatArray | None = None

    @property
    def corpus(self) -> Corpus:
        """The passages of the index."""
        return self.implicit.corpus

    def settings(self) -> Mapping[str, Any]:
        """Those of the model's own retriever, the terms, and the gate."""
        return {**self.implicit.settings(), "lexical": self.lexical.terms, "gate": self.gate.name}

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt, best first; runs layers 0..b only.

        Raises:
            ImpRAGError: a prompt is empty or too long, or k is larger than the index.
        """
        return [ranking.passages for ranking in self.rank(prompts, k)]

    def search(
        self, prompts: Sequence[str], queries: Tensor, k: int
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt whose query embedding is known, best first.

        Args:
            prompts: texts, for their words.
            queries: their query embeddings at layer b, (prompts, dimension).
            k: at most the number of passages.
        """
        return [ranking.passages for ranking in self.rank_embedded(prompts, queries, k)]

    def rank(self, prompts: Sequence[str], k: int) -> list[HybridRanking]:
        """As :meth:`retrieve`, with the parts of the scores."""
        check_retrieval(self.corpus, prompts, k)
        return self.rank_embedded(prompts, self.implicit.queries(prompts), k)

    def rank_embedded(
        self, prompts: Sequence[str], queries: Tensor, k: int
    ) -> list[HybridRanking]:
        """As :meth:`search`, with the parts of the scores."""
        vectors = queries.float().cpu().numpy()
        n = min(max(k, CANDIDATES), len(self.corpus))
        found = zip(*self.implicit.index.search(vectors, n), strict=True)
        return [
            self._rank(query_terms(prompt), vector, rows, scores, k)
            for prompt, vector, (rows, scores) in zip(prompts, vectors, found, strict=True)
        ]

    def _rank(
        self,
        terms: Terms,
        query: FloatArray,
        own_rows: npt.NDArray[np.int64],
        own: FloatArray,
        k: int,
    ) -> HybridRanking:
        word_rows, word_scores = self.lexical.search(terms, len(own_rows))
        rest = np.setdiff1d(word_rows, own_rows)
        rows = np.concatenate([own_rows, rest])
        implicit = np.concatenate([own, self.implicit.index.embeddings(rest) @ query])
        lexical = self.lexical.scores(terms, rows)
        alpha, beta = self.gate.weights(
            Rankings(
                implicit=own,
                lexical=word_scores,
                sample=self._sample_embeddings() @ query,
                best=self.lexical.best(terms),
                terms=sum(terms.values()),
                corpus=len(self.corpus),
            )
        )
        scores = alpha * implicit + beta * lexical
        best = np.lexsort((rows, -scores))[:k]
        passages = self.corpus.passages(rows[best].tolist())
        return HybridRanking(
            [
                RetrievedPassage(passage, float(scores[at]), int(rows[at]), HYBRID)
                for at, passage in zip(best, passages, strict=True)
            ],
            implicit[best].tolist(),
            lexical[best].tolist(),
            float(alpha),
            float(beta),
        )

    def _sample_embeddings(self) -> FloatArray:
        """Embeddings of passages all over the corpus: how the model scores any passage."""
        if self._sample is None:
            count = len(self.corpus)
            rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
            self._sample = self.implicit.index.embeddings(rows)
        return self._sample
