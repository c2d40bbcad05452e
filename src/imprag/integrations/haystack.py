"""Haystack: a component that retrieves, and one that retrieves and answers in one pass."""

from pathlib import Path
from typing import Any

from imprag.errors import ImpRAGError
from imprag.integrations.source import Model, PipelineRetriever, load_pipeline, metadata
from imprag.io.optional import require
from imprag.pipeline import ImpRAG
from imprag.retrieval import RetrievedPassage

require("the Haystack component", "integrations", "haystack")

from haystack import Document, GeneratedAnswer, component, default_to_dict  # noqa: E402


@component
class ImpRAGRetriever:
    """Retrieves passages as Haystack documents.

    ``Pipeline.loads(text, allowed_modules=["imprag.*"])`` reads a pipeline's file back: Haystack
    imports only modules that are allowed.

    Args:
        model: a loaded :class:`imprag.ImpRAG`, which cannot be written to a file, or the name or
            folder of a model, which is loaded when the pipeline first runs.
        index: the index folder of a model that is given by name; by default the one that it was
            fitted to, or the built-in corpus for the default model.
        top_k: documents per query; by default the model's number.
        retrieval: ``"hybrid"``, ``"implicit"``, ``"lexical"``, ``"dense"`` or a registered name.
        lexical_weight: for hybrid retrieval, the weight of the query's words in place of the gate.

    Example:
        >>> retriever = ImpRAGRetriever("default", top_k=3)
        >>> retriever.run("what is the capital of Chad?")["documents"]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model = "default",
        index: Path | str | None = None,
        top_k: int | None = None,
        retrieval: str = "hybrid",
        lexical_weight: float | None = None,
    ) -> None:
        self.top_k = top_k
        self._source = (model, index, retrieval, lexical_weight)
        self._retrieve: PipelineRetriever | None = None

    def warm_up(self) -> None:
        """Load the model and its index."""
        self._retrieve = self._retrieve or PipelineRetriever(*self._source)

    def to_dict(self) -> dict[str, Any]:
        """The names and numbers that the component is made of."""
        model, index, retrieval, weight = self._source
        chosen = {"top_k": self.top_k, "retrieval": retrieval, "lexical_weight": weight}
        return default_to_dict(self, **_names(model, index), **chosen)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """The best documents for a query; ``top_k`` replaces the component's own."""
        self.warm_up()
        assert self._retrieve is not None
        found = self._retrieve(query, self.top_k if top_k is None else top_k)
        return {"documents": _documents(found)}


@component
class ImpRAGAnswerer:
    """Retrieves passages and answers, in one pass of the prompt through the model.

    Args:
        model, index, top_k: as for :class:`ImpRAGRetriever`.
        max_new_tokens: the most new tokens of an answer.
    """

    def __init__(
        self,
        model: Model = "default",
        index: Path | str | None = None,
        max_new_tokens: int = 32,
        top_k: int | None = None,
    ) -> None:
        self.top_k = top_k
        self.max_new_tokens = max_new_tokens
        self._source = (model, index)
        self._rag: ImpRAG | None = None

    def warm_up(self) -> None:
        """Load the model."""
        self._rag = self._rag or load_pipeline(*self._source)

    def to_dict(self) -> dict[str, Any]:
        """The names and numbers that the component is made of."""
        chosen = {"top_k": self.top_k, "max_new_tokens": self.max_new_tokens}
        return default_to_dict(self, **_names(*self._source), **chosen)

    @component.output_types(answers=list[GeneratedAnswer])
    def run(self, query: str) -> dict[str, list[GeneratedAnswer]]:
        """One answer, with the documents that the model has read."""
        self.warm_up()
        assert self._rag is not None
        answer = self._rag.ask(query, self.top_k, max_new_tokens=self.max_new_tokens)
        return {"answers": [GeneratedAnswer(answer.text, query, _documents(answer.passages))]}


def _documents(found: list[RetrievedPassage]) -> list[Document]:
    return [
        Document(one.passage.id, one.passage.text, meta=metadata(one.passage), score=one.score)
        for one in found
    ]


def _names(model: Model, index: Path | str | None) -> dict[str, str | None]:
    if isinstance(model, ImpRAG):
        raise ImpRAGError("a loaded ImpRAG cannot be written to a file: pass the model's name")
    return {"model": str(model), "index": None if index is None else str(index)}
