"""LlamaIndex: a retriever."""

import asyncio
from pathlib import Path
from typing import Any

from imprag.integrations.source import Model, PipelineRetriever, metadata
from imprag.io.optional import require

require("the LlamaIndex retriever", "integrations", "llama_index.core")

from llama_index.core.retrievers import BaseRetriever  # noqa: E402
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode  # noqa: E402


class ImpRAGRetriever(BaseRetriever):
    """Retrieves passages as LlamaIndex nodes with scores; ``metadata`` holds the title.

    Args:
        model: a loaded :class:`imprag.ImpRAG`, or the name or folder of a model.
        index: the index folder of a model that is given by name; by default the one that it was
            fitted to, or the built-in corpus for the default model.
        k: passages per query; by default the model's number.
        retrieval: ``"hybrid"``, ``"implicit"``, ``"lexical"``, ``"dense"`` or a registered name.
        lexical_weight: for hybrid retrieval, the weight of the query's words in place of the gate.
        **settings: of LlamaIndex's ``BaseRetriever``: ``callback_manager``, ``verbose`` ...

    Raises:
        ImpRAGError: the model, its index or the retriever cannot be loaded.

    Example:
        >>> retriever = ImpRAGRetriever("default", k=3)  # doctest: +SKIP
        >>> retriever.retrieve("what is the capital of Chad?")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model = "default",
        index: Path | str | None = None,
        *,
        k: int | None = None,
        retrieval: str = "hybrid",
        lexical_weight: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.k = k
        self._passages = PipelineRetriever(model, index, retrieval, lexical_weight)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=one.passage.id, text=one.passage.text, metadata=metadata(one.passage)
                ),
                score=one.score,
            )
            for one in self._passages(query_bundle.query_str, self.k)
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
