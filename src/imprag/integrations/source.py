"""What the adapters retrieve with: a pipeline and one of its retrievers."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.model.fingerprint import model_fingerprint
from imprag.model.text import passage_settings
from imprag.pipeline import ImpRAG, make_retriever
from imprag.retrieval import RetrievedPassage

#: A loaded pipeline, or a name or folder for `ImpRAG.from_pretrained`.
Model = ImpRAG | Path | str


def load_pipeline(model: Model, index: Path | str | None = None, **settings: Any) -> ImpRAG:
    """The pipeline itself, or the one that is loaded by a model's name.

    Args:
        model: a loaded pipeline, or a name or folder for :meth:`imprag.ImpRAG.from_pretrained`.
        index, **settings: of the same method; None leaves its default. The settings have no effect
            on a loaded pipeline.

    Raises:
        ImpRAGError: an index is given for a loaded pipeline, or the model cannot be loaded.
    """
    if not isinstance(model, ImpRAG):
        given = {name: value for name, value in settings.items() if value is not None}
        return ImpRAG.from_pretrained(model, index, **given)
    if index is not None:
        raise ImpRAGError(
            "a loaded ImpRAG has its index: leave index out, or pass the model's name instead"
        )
    return model


class PipelineRetriever:
    """Retrieves the passages for one prompt after the other; several threads may use it.

    Args:
        model, index: as for :func:`load_pipeline`.
        retrieval: name of the retriever; hybrid finds most, whatever the corpus.
        lexical_weight: for hybrid retrieval, the weight of the prompt's words in place of the gate.

    Raises:
        ImpRAGError: the model, its index or the retriever cannot be loaded.
    """

    def __init__(
        self,
        model: Model = "default",
        index: Path | str | None = None,
        retrieval: str = "hybrid",
        lexical_weight: float | None = None,
    ) -> None:
        choice: dict[str, Any] = {"retrieval": retrieval, "lexical_weight": lexical_weight}
        self.rag = load_pipeline(model, index, **choice)
        self.retriever = make_retriever(self.rag, retrieval, lexical_weight)

    def __call__(self, prompt: str, k: int | None = None) -> list[RetrievedPassage]:
        """The k best passages for a prompt, best first.

        Args:
            prompt: a question, or any other prompt of the model.
            k: by default the model's number, or the size of a smaller index.

        Raises:
            ImpRAGError: the prompt is empty or too long, or k is larger than the index.
        """
        prompts = self.rag.asked_prompts([prompt])
        k = self.rag.config.passages_to_read(k, len(self.retriever.corpus))
        return self.retriever.retrieve(prompts, k)[0] if k else []


def metadata(passage: Passage) -> dict[str, Any]:
    """A passage's metadata and title, which the frameworks keep beside a text."""
    return {**passage.meta, "title": passage.title}


def fingerprint(rag: ImpRAG) -> str:
    """Names all that a pipeline's embeddings and rankings depend on: weights and settings."""
    settings = passage_settings(rag.tokenizer, rag.config)
    weights = model_fingerprint(rag.model.lm, rag.tokenizer, rag.config.b + 1, settings=settings)
    content = json.dumps([weights, dataclasses.asdict(rag.config)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
