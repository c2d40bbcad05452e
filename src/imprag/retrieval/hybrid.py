"""Hybrid retrieval: the model's own score of a passage plus BM25 scores of the same prompt.

    s(q, p) = a(q) * E_q . E_p * scale + b(q) * BM25(words, p) + c(q) * BM25(attended words, p)

Nobody writes a query: the words are the prompt's own. In the last score they are weighted by the
attention that the prompt's last token pays to them (`imprag.retrieval.terms`). a, b and c come from
a gate that looks at the rankings (`imprag.retrieval.gate`). The sum is a logit, so it biases the
attention to passages as the implicit score does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imprag.corpus import Corpus
from imprag.index.lexical import FloatArray, IntArray, LexicalIndex, Terms, query_terms
from imprag.model.query import Queries
from imprag.retrieval.gate import Gate, Rankings
from imprag.retrieval.implicit import ImplicitRetriever
from imprag.retrieval.retriever import HYBRID, PromptBatch, RetrievedPassage, check_retrieval
from imprag.retrieval.terms import prompt_terms

#: Passages that each retriever brings.
CANDIDATES = 100
_SAMPLE = 1024


@dataclass(frozen=True)
class Candidates:
    """The candidates of a prompt, which both retrievers have found, with both scores.

    Attributes:
        rows: of the corpus, (candidates,) int64.
        scores: the scores that the gate weighs, (3, candidates), in the order of
            `imprag.retrieval.gate.SCORES`.
        rankings: what the gate looks at.
        terms: the prompt's terms with their weights.
    """

    rows: IntArray
    scores: FloatArray
    rankings: Rankings
    terms: Terms


@dataclass(frozen=True)
class HybridRanking:
    """The best passages for a prompt, with the parts of their scores.

    Attributes:
        passages: best first; their score is the weighted sum of their three scores.
        scores: the three scores of each, (3, passages).
        weights: their weights for this prompt.
        terms: the prompt's terms with their weights.
    """

    passages: list[RetrievedPassage]
    scores: FloatArray
    weights: tuple[float, float, float]
    terms: Terms


class HybridRetriever:
    """Retrieves by the prompt's hidden state at layer b and by its words.

    The candidates are the first 100 of either; each of them gets both scores.

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
        """Those of the model's own retriever, and the gate's weights."""
        return {**self.implicit.settings(), "gate": self.gate.to_json()}

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt, best first; runs layers 0..b only.

        Raises:
            ImpRAGError: a prompt is empty or too long, or k is larger than the index.
        """
        return [ranking.passages for ranking in self.rank(prompts, k)]

    def rank(self, prompts: Sequence[str], k: int) -> list[HybridRanking]:
        """As :meth:`retrieve`, with the parts of the scores."""
        check_retrieval(self.corpus, prompts, k)
        return [self._best(found, k) for found in self.candidates(prompts, k)]

    def candidates(self, prompts: Sequence[str], k: int = CANDIDATES) -> list[Candidates]:
        """The candidates of every prompt; runs layers 0..b only.

        Args:
            prompts: texts.
            k: if it is larger than 100, each retriever brings so many.
        """
        return self.implicit.by_batch(
            prompts, lambda batch, queries: self._candidates(batch, queries, k)
        )

    def search(
        self, prompts: PromptBatch, queries: Queries, k: int
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt whose pass has reached layer b, best first."""
        return [self._best(found, k).passages for found in self._candidates(prompts, queries, k)]

    def _candidates(self, prompts: PromptBatch, queries: Queries, k: int) -> list[Candidates]:
        embeddings = queries.embeddings.float().cpu().numpy()
        attention = queries.token_attention()
        terms = prompt_terms(self.implicit.tokenizer, prompts.texts, prompts.input_ids, attention)
        n = min(max(k, CANDIDATES), len(self.corpus))
        rows, scores = self.implicit.index.search(embeddings, n)
        return [
            self._scored(embedding, query_terms(prompt), attended, *own)
            for embedding, prompt, attended, *own in zip(
                embeddings, prompts.texts, terms, rows, scores, strict=True
            )
        ]

    def _scored(
        self,
        query: FloatArray,
        counted: Terms,
        attended: Terms,
        own_rows: IntArray,
        own_scores: FloatArray,
    ) -> Candidates:
        word_rows, word_scores = self.lexical.search(attended, len(own_rows))
        added = np.setdiff1d(word_rows, own_rows)
        rows = np.concatenate([own_rows, added])
        rankings = Rankings(
            implicit=own_scores,
            attended=word_scores,
            sample=self._sample_embeddings() @ query,
            terms=sum(counted.values()),
        )
        scores = np.stack(
            [
                np.concatenate([own_scores, self.implicit.index.embeddings(added) @ query]),
                self.lexical.scores(counted, rows),
                self.lexical.scores(attended, rows),
            ]
        )
        return Candidates(rows, scores, rankings, attended)

    def _best(self, found: Candidates, k: int) -> HybridRanking:
        weights = self.gate.weights(found.rankings)
        scores = np.asarray(weights, np.float32) @ found.scores
        best = np.lexsort((found.rows, -scores))[:k]
        rows = found.rows[best].tolist()
        passages = [
            RetrievedPassage(passage, score, row, HYBRID)
            for passage, score, row in zip(
                self.corpus.passages(rows), scores[best].tolist(), rows, strict=True
            )
        ]
        return HybridRanking(passages, found.scores[:, best], weights, found.terms)

    def _sample_embeddings(self) -> FloatArray:
        """Embeddings of passages all over the corpus, which show how any passage scores."""
        if self._sample is None:
            count = len(self.corpus)
            rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
            self._sample = self.implicit.index.embeddings(rows)
        return self._sample
