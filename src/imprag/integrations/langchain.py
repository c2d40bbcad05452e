"""LangChain: a retriever."""

from pathlib import Path
from typing import Any

from imprag.integrations.source import Model, PipelineRetriever, metadata
from imprag.io.optional import require

require("the LangChain retriever", "integrations", "langchain_core")

from langchain_core.callbacks import CallbackManagerForRetrieverRun  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.retrievers import BaseRetriever  # noqa: E402
from pydantic import PrivateAttr  # noqa: E402


class ImpRAGRetriever(BaseRetriever):
    """Retrieves passages as LangChain documents; ``metadata`` holds title and score.

    Args:
        model: a loaded :class:`imprag.ImpRAG`, or the name or folder of a model.
        index: the index folder of a model that is given by name; by default the one that it was
            fitted to, or the built-in corpus for the default model.
        k: passages per query; by default the model's number. ``invoke(query, k=5)`` overrides it.
        retrieval: ``"hybrid"``, ``"implicit"``, ``"lexical"``, ``"dense"`` or a registered name.
        lexical_weight: for hybrid retrieval, the weight of the query's words in place of the gate.

    Raises:
        ImpRAGError: the model, its index or the retriever cannot be loaded.

    Example:
        >>> retriever = ImpRAGRetriever(model="default", k=3)  # doctest: +SKIP
        >>> retriever.invoke("what is the capital of Chad?")  # doctest: +SKIP
    """

    model: Model = "default"
    index: Path | str | None = None
    k: int | None = None
    retrieval: str = "hybrid"
    lexical_weight: float | None = None
    _retrieve: PipelineRetriever = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._retrieve = PipelineRetriever(
            self.model, self.index, self.retrieval, self.lexical_weight
        )

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        found = self._retrieve(query, self.k if k is None else k)
        return [
            Document(
                id=one.passage.id,
                page_content=one.passage.text,
                metadata={**metadata(one.passage), "score": one.score},
            )
            for one in found
        ]
