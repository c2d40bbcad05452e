"""The model's own retriever: layers 0..b embed the prompt, an index finds the passages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from imprag.corpus import Corpus
from imprag.index.folder import IndexFolder
from imprag.io.text_checks import check_prompts
from imprag.model.inputs import by_length
from imprag.model.model import ImpRAGModel
from imprag.model.query import Queries, queries
from imprag.model.text import prompt_batch
from imprag.retrieval.retriever import (
    IMPLICIT,
    PromptBatch,
    RetrievedPassage,
    retrieved_passages,
)

T = TypeVar("T")

_BATCH = 8


class ImplicitRetriever:
    """Retrieves by the prompt's hidden state at layer b.

    Args:
        model: embeds the prompts.
        tokenizer: the model's.
        index: passages and their embeddings by this model.
    """

    def __init__(self, model: ImpRAGModel, tokenizer: Any, index: IndexFolder) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.index = index

    @property
    def corpus(self) -> Corpus:
        """The passages of the index."""
        return self.index.corpus

    def settings(self) -> Mapping[str, Any]:
        """The kind of the index, and the fingerprint of the model that embedded the passages."""
        manifest = self.index.index.manifest
        return {"index": manifest.kind, "embeddings": manifest.model_fingerprint}

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt, best first; runs layers 0..b only.

        Raises:
            ImpRAGError: a prompt is empty or too long, or k is larger than the index.
        """
        return self.by_batch(prompts, lambda batch, queries: self.search(batch, queries, k))

    def by_batch(
        self, prompts: Sequence[str], search: Callable[[PromptBatch, Queries], list[T]]
    ) -> list[T]:
        """Run prompts through layers 0..b in batches of similar length, and search for each batch.

        Args:
            prompts: texts.
            search: gives one result for each prompt of a batch.

        Returns:
            the results in the order of the prompts.

        Raises:
            ImpRAGError: a prompt is empty or too long.
        """
        return _by_batch(self.model, self.tokenizer, prompts, search)

    def search(
        self, prompts: PromptBatch, queries: Queries, k: int
    ) -> list[list[RetrievedPassage]]:
        """The k best passages for every prompt whose pass has reached layer b, best first."""
        rows, scores = self.index.search(queries.embeddings.float().cpu().numpy(), k)
        return retrieved_passages(self.corpus, rows, scores, IMPLICIT)


def prompt_embeddings(
    model: ImpRAGModel, tokenizer: Any, prompts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Embeddings of prompts, (prompts, dimension); runs layers 0..b only.

    Their inner products with passage embeddings are the implicit scores.

    Raises:
        ImpRAGError: a prompt is empty or too long.
    """
    rows = _by_batch(
        model, tokenizer, prompts, lambda batch, queries: list(queries.embeddings.cpu().numpy())
    )
    return np.array(rows, np.float32).reshape(len(prompts), model.embedding_dim)


def _by_batch(
    model: ImpRAGModel,
    tokenizer: Any,
    prompts: Sequence[str],
    search: Callable[[PromptBatch, Queries], list[T]],
) -> list[T]:
    check_prompts(prompts)
    found: dict[int, T] = {}
    for numbers in by_length(prompts, _BATCH):
        texts = [prompts[n] for n in numbers]
        ids, mask = prompt_batch(tokenizer, texts, model.positions_limit, model.device)
        with torch.inference_mode():
            results = search(PromptBatch(texts, ids), queries(model.decoder, ids, mask))
        found.update(zip(numbers, results, strict=True))
    return [found[n] for n in range(len(prompts))]
