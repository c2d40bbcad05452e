"""MTEB: a model that embeds and one that searches, for ``mteb.evaluate``."""

import tempfile
from pathlib import Path
from typing import Any

from imprag.corpus import Corpus, Passage
from imprag.index.folder import IndexFolder
from imprag.integrations.source import Model, fingerprint, load_pipeline
from imprag.io.optional import require
from imprag.pipeline import ImpRAG, make_retriever
from imprag.retrieval.implicit import prompt_embeddings

require("the MTEB model", "integrations", "mteb")

from mteb._create_dataloaders import create_dataloader  # noqa: E402
from mteb.models import ModelMeta  # noqa: E402
from mteb.similarity_functions import dot_score, pairwise_dot_score  # noqa: E402
from mteb.types import PromptType  # noqa: E402


class ImpRAGEncoder:
    """Embeds queries as the model embeds prompts, and all other texts as it embeds passages.

    The revision under which MTEB stores results is the fingerprint of weights and settings.

    Args:
        model: a loaded :class:`imprag.ImpRAG`, or the name or folder of a model.
        revision: has no effect.
        **settings: for a model given by name, of :meth:`imprag.ImpRAG.from_pretrained`: ``device``
            and others.

    Example:
        >>> mteb.evaluate(ImpRAGEncoder("default"), mteb.get_tasks(["SciFact"]))  # doctest: +SKIP
    """

    def __init__(
        self, model: Model = "default", revision: str | None = None, **settings: Any
    ) -> None:
        self.rag = load_pipeline(model, **settings)
        name = model.config.base_model if isinstance(model, ImpRAG) else str(model)
        facts = {"name": f"imprag/{Path(name).name}", "revision": fingerprint(self.rag)}
        self.mteb_model_meta = ModelMeta.create_empty({**facts, "framework": ["PyTorch"]})

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **task: Any) -> Any:
        """Embeddings of batches of texts, (texts, dimension) float32; see ``EncoderProtocol``."""
        rows = [dict(zip(batch, row)) for batch in inputs for row in zip(*batch.values())]  # noqa: B905
        if prompt_type != PromptType.query:
            return self.rag.encoder([_passage(row) for row in rows])
        prompts = self.rag.asked_prompts(row["text"] for row in rows)
        return prompt_embeddings(self.rag.model, self.rag.tokenizer, prompts)

    similarity = staticmethod(dot_score)
    similarity_pairwise = staticmethod(pairwise_dot_score)


class ImpRAGSearch(ImpRAGEncoder):
    """Searches the corpus of a retrieval task as the pipeline would; embeds for other tasks.

    Args:
        model, revision, **settings: as for :class:`ImpRAGEncoder`.
        retrieval: ``"hybrid"``, ``"implicit"``, ``"lexical"`` or a registered name.
        lexical_weight: for hybrid retrieval, the weight of the query's words in place of the gate.
    """

    def __init__(
        self,
        model: Model = "default",
        revision: str | None = None,
        *,
        retrieval: str = "hybrid",
        lexical_weight: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, revision, **settings)
        self._choice = (retrieval, lexical_weight)
        weight = "gate" if lexical_weight is None else lexical_weight
        chosen = {"retrieval": retrieval, "lexical_weight": weight}
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update={"experiment_kwargs": chosen})

    def index(self, corpus: Any, *, encode_kwargs: Any, **task: Any) -> None:
        """Index a corpus in a temporary folder, which is deleted with this object."""
        self._folder = tempfile.TemporaryDirectory(prefix="imprag-mteb-")
        path = Path(self._folder.name)
        built = Corpus.build((_passage(row) for row in corpus), path / "corpus")
        shown = bool(encode_kwargs.get("show_progress_bar", True))
        folder = IndexFolder.build(built, self.rag.encoder, path / "index", progress=shown)
        rag = ImpRAG(self.rag.model, self.rag.tokenizer, folder)
        self._retriever = make_retriever(rag, *self._choice)

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, top_ranked: Any = None, **task: Any
    ) -> dict[str, dict[str, float]]:
        """The scores of the best documents for each query, by ids; see ``SearchProtocol``."""
        given = {"task_metadata": task_metadata, "prompt_type": PromptType.query}
        batches = create_dataloader(queries, **given)
        prompts = self.rag.asked_prompts(text for batch in batches for text in batch["text"])
        count = len(self._retriever.corpus)
        found = self._retriever.retrieve(prompts, count if top_ranked else min(top_k, count))
        results: dict[str, dict[str, float]] = {}
        for query, passages in zip(queries["id"], found, strict=True):
            wanted = None if top_ranked is None else set(top_ranked.get(query, ()))
            scores = {one.passage.id: one.score for one in passages}
            best = [name for name in scores if wanted is None or name in wanted][:top_k]
            results[query] = {name: scores[name] for name in best}
        return results


def _passage(row: dict[str, Any]) -> Passage:
    """A row of a task as a passage; without a text, its title or id stands for it."""
    name, title = row.get("id", "text"), row.get("title") or ""
    text = row.get("body") or row["text"]
    return Passage(name, title, text if text.strip() else title or name)
