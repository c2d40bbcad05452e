"""The model's own retriever: layers 0..b embed the prompt, an index finds the passages."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from imprag.corpus import Corpus
from imprag.index.folder import IndexFolder
from imprag.io.text_checks import check_prompts
from imprag.model.inputs import by_length
from imprag.model.model import ImpRAGModel
from imprag.model.text import prompt_batch
from imprag.retrieval.retriever import IMPLICIT, RetrievedPassage, retrieved_passages

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
        check_prompts(prompts)
        found: dict[int, list[RetrievedPassage]] = {}
        for batch in by_length(prompts, _BATCH):
            ids, mask = prompt_batch(
                self.tokenizer,
                [prompts[n] for n in batch],
                self.model.positions_limit,
                self.model.device,
            )
            with torch.inference_mode():
                queries = self.model.query_embeddings(ids, mask)
            found.update(zip(batch, self.search(queries, k), strict=True))
        return [found[n] for n in range(len(prompts))]

    def search(self, queries: Tensor, k: int) -> list[list[RetrievedPassage]]:
        """The k best passages for every query embedding of layer b, best first.

        Args:
            queries: (queries, dimension).
            k: at most the number of passages.
        """
        rows, scores = self.index.search(queries.cpu().numpy(), k)
        return retrieved_passages(self.corpus, rows, scores, IMPLICIT)
