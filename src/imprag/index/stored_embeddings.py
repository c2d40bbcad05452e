"""Embeddings of a whole corpus in 8 bits, small enough to lie in a package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import Encoder
from imprag.io.progress import progress_bar

_LEVELS = 127
_BATCH = 1024


def write_embeddings(corpus: Corpus, encoder: Encoder, path: Path) -> None:
    """Embed a corpus and write the embeddings, an 8-bit integer for each number.

    Args:
        corpus: the passages.
        encoder: the model.
        path: a safetensors file: ``codes`` (passages, dimension) int8, ``scales`` (dimension)
            float32, and the fingerprints of model and corpus.
    """
    embeddings = np.empty((len(corpus), encoder.dimension), np.float32)
    with progress_bar("Embedding", len(corpus), True) as bar:
        for start in range(0, len(corpus), _BATCH):
            rows = range(start, min(start + _BATCH, len(corpus)))
            embeddings[rows.start : rows.stop] = encoder(corpus.passages(rows))
            bar.update(len(rows))
    scales = np.maximum(np.abs(embeddings).max(axis=0), 1e-12) / _LEVELS
    codes = np.rint(embeddings / scales).astype(np.int8)
    fingerprints = {"model": encoder.fingerprint(), "corpus": corpus.text_fingerprint}
    save_file({"codes": codes, "scales": scales.astype(np.float32)}, path, fingerprints)


class OtherEmbeddingsError(ImpRAGError):
    """Stored embeddings are of another corpus or model."""


class StoredEmbeddings:
    """What :func:`write_embeddings` wrote, in the place of the model that made it.

    Args:
        path: the file.
        corpus: that the embeddings are of.
        model_fingerprint: of the model that made them.

    Raises:
        ImpRAGError: the file is damaged.
        OtherEmbeddingsError: it is of another corpus or model.
    """

    def __init__(self, path: Path, corpus: Corpus, model_fingerprint: str) -> None:
        try:
            with safe_open(path, "np") as file:
                made_of = file.metadata() or {}
                of_model, of_corpus = made_of["model"], made_of["corpus"]
                self._codes, self._scales = file.get_tensor("codes"), file.get_tensor("scales")
        except (OSError, SafetensorError, KeyError) as error:
            raise ImpRAGError(
                f"{path} is damaged ({error}); install ImpRAG again, or export the model again"
            ) from error
        for what, own, wanted in (
            ("model", of_model, model_fingerprint),
            ("corpus", of_corpus, corpus.text_fingerprint),
        ):
            if own != wanted:
                raise OtherEmbeddingsError(
                    f"the embeddings in {path} are of another {what} ({own[:12]}, not "
                    f"{wanted[:12]})"
                )
        self._corpus = corpus
        self._fingerprint = model_fingerprint

    @property
    def dimension(self) -> int:
        """Size of an embedding."""
        return len(self._scales)

    def fingerprint(self) -> str:
        """Of the model that made the embeddings."""
        return self._fingerprint

    def __call__(self, passages: Sequence[Passage]) -> npt.NDArray[np.float32]:
        """Embeddings of passages of the corpus, (len(passages), dimension) float32."""
        rows = self._corpus.rows([passage.id for passage in passages])
        found: npt.NDArray[np.float32] = self._codes[rows] * self._scales
        return found
