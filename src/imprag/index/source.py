"""Which index a pipeline retrieves from."""

from pathlib import Path

from imprag.corpus import Corpus, load_corpus
from imprag.errors import FaultError, ImpRAGError
from imprag.index.folder import Encoder, IndexFolder
from imprag.index.stored_embeddings import OtherEmbeddingsError, StoredEmbeddings
from imprag.io.files import cache_dir
from imprag.model.load import DEFAULT, DEFAULT_FOLDER, EMBEDDINGS


class IndexSource:
    """An index folder in its latest state, or the index of the built-in corpus.

    Args:
        encoder: the model's encoder, which made the embeddings.
        model: the model's name, for messages.
        base_model: the name of what it was trained from.
        folder: the index folder, if any.

    Attributes:
        fitted: the folder that ``imprag adapt`` fitted the model to, if any.
        built_in: whether to search the built-in corpus if there is no folder.

    Raises:
        ImpRAGError: the index was made by another model.
    """

    def __init__(
        self, encoder: Encoder, model: str, base_model: str, folder: IndexFolder | None
    ) -> None:
        self._encoder = encoder
        self._model = model
        self._base_model = base_model
        self.folder = None if folder is None else self._checked(folder)
        self.fitted: Path | None = None
        self.built_in = False

    def latest(self) -> IndexFolder | None:
        """The index, opened again if it was updated; None if it is not known yet.

        Raises:
            FaultError: it cannot be opened again.
        """
        try:
            if self.folder is not None and not self.folder.is_current:
                self.folder = self._checked(IndexFolder.open(self.folder.path))
        except ImpRAGError as error:
            raise FaultError(str(error)) from error
        return self.folder

    @property
    def corpus(self) -> Corpus:
        """The passages of the index, which need not be embedded yet.

        Raises:
            ImpRAGError: there is no index.
        """
        if (folder := self.latest()) is not None:
            return folder.corpus
        if self.fitted is not None:
            raise ImpRAGError(
                f"no index to retrieve from: the model was fitted to {self.fitted}, which no "
                "longer exists; pass its present folder with --index DIR"
            )
        if not self.built_in:
            raise ImpRAGError(
                "no index to retrieve from; make one with: imprag index CORPUS --model "
                f"{self._base_model} --out DIR, and pass it with --index DIR"
            )
        return load_corpus(DEFAULT)

    @property
    def index(self) -> IndexFolder:
        """The index; that of the built-in corpus is made at the first use.

        Raises:
            ImpRAGError: there is no index.
        """
        if (folder := self.latest()) is None:
            corpus = self.corpus
            fingerprint = self._encoder.fingerprint()  # reads all weights of layers 0..b
            path = cache_dir() / "indexes" / f"{fingerprint[:12]}-{corpus.fingerprint[:12]}"
            encoder = _shipped_embeddings(corpus, fingerprint) or self._encoder
            folder = IndexFolder.build(corpus, encoder, path, overwrite=True)
            self.folder = folder
        return folder

    def _checked(self, folder: IndexFolder) -> IndexFolder:
        folder.check_model(self._encoder.fingerprint(), self._model)
        folder.encoder = self._encoder
        return folder


def _shipped_embeddings(corpus: Corpus, fingerprint: str) -> Encoder | None:
    """The shipped embeddings of the default model, unless its settings were changed."""
    try:
        return StoredEmbeddings(DEFAULT_FOLDER / EMBEDDINGS, corpus, fingerprint)
    except OtherEmbeddingsError:
        return None
