"""``baseline.json``: what makes a model's folder that of a baseline."""

from dataclasses import asdict, dataclass
from pathlib import Path

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.io.files import expand_home, read_json, write_json
from imprag.model.load import BASELINE
from imprag.retrieval.registry import RetrieverContext
from imprag.training.teacher import TextRetriever, load_retriever

RETRIEVER = "retriever"
"""The folder of a baseline's own retriever, in that of its model."""


@dataclass(frozen=True)
class Baseline:
    """A trained baseline: the language model of its folder reads what its retriever finds.

    Attributes:
        system: ``ra-it``, ``ra-dit`` or ``ra-dit-lm``.
        retriever: for :func:`imprag.training.teacher.load_retriever`; in the file, ``retriever`` is
            the folder of that name next to it.
    """

    system: str
    retriever: str

    def load_retriever(self, corpus: Corpus) -> TextRetriever:
        """The retriever over a corpus, which is embedded into the cache folder at the first use.

        Raises:
            ImpRAGError: the retriever is missing.
        """
        return load_retriever(self.retriever, corpus)

    def make_retriever(self, context: RetrieverContext) -> TextRetriever:
        """As :meth:`load_retriever`, for commands."""
        return self.load_retriever(context.corpus)

    def save(self, folder: Path) -> None:
        """Write ``baseline.json`` into the folder of a model."""
        write_json(folder / BASELINE, asdict(self))

    @classmethod
    def load(cls, folder: Path | str) -> "Baseline | None":
        """The baseline of a model's folder; None if it is no baseline's.

        Raises:
            ImpRAGError: the file is damaged.
        """
        folder = expand_home(folder)
        if not (folder / BASELINE).is_file():
            return None
        try:
            baseline = cls(**read_json(folder / BASELINE))
            if not all(isinstance(one, str) for one in (baseline.system, baseline.retriever)):
                raise TypeError("a name is no text")
        except TypeError as error:
            raise ImpRAGError(
                f"{folder / BASELINE} is damaged; train the baseline again"
            ) from error
        own = baseline.retriever == RETRIEVER
        return cls(baseline.system, str(folder / RETRIEVER)) if own else baseline
