"""Passages and their embeddings, side by side in one folder that can be moved as a whole."""

import os
import shlex
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage
from imprag.corpus.store import MANIFEST
from imprag.errors import ImpRAGError
from imprag.index.build import build_index, check_build, discard_index, holds_index
from imprag.index.fitting import Cutter, CutText, count_cut, read_cut_tokens
from imprag.index.lexical import FloatArray, IntArray, LexicalIndex
from imprag.index.passage_index import PassageIndex
from imprag.index.states import (
    CORPUS,
    INDEX,
    LEXICAL,
    current_root,
    has_index,
    make_current,
    next_root,
    only_writer,
    remove_states,
)
from imprag.io.building import OVERWRITE, building_folder, discard, remove_work
from imprag.io.files import atomic_path, expand_home
from imprag.io.locking import only_builder


class Encoder(Protocol):
    """Whatever embeds passages: the model's lower layers, or a teacher's text encoder."""

    @property
    def dimension(self) -> int: ...

    def fingerprint(self) -> str: ...

    def __call__(self, passages: Sequence[Passage]) -> npt.NDArray[np.float32]: ...


class IndexFolder:
    """A corpus and the index of its passages: one state of a folder.

    :meth:`upsert` and :meth:`remove` make the folder's next state; this one stays as it is.

    Attributes:
        corpus: in the state's ``corpus/``.
        index: in the state's ``index/``.
        path: the folder.
        encoder: the model that made the embeddings, for :meth:`upsert`; a pipeline sets it.
    """

    def __init__(self, corpus: Corpus, index: PassageIndex, path: Path | None = None) -> None:
        self.corpus = corpus
        self.index = index
        self.path = path or self.root
        self.encoder: Encoder | None = None
        command = self._rebuild("MODEL")
        index.manifest.check(corpus_fingerprint=corpus.fingerprint, command=command)

    @classmethod
    def open(cls, path: Path) -> "IndexFolder":
        """Open a folder made by :meth:`build`.

        Raises:
            ImpRAGError: there is none, it is damaged, or index and corpus do not belong together.
        """
        path = expand_home(path)
        root = current_root(path)
        try:
            return cls._open(path, root)
        except (ImpRAGError, OSError) as error:
            if current_root(path) != root:
                return cls.open(path)  # there were changes in the meantime
            if isinstance(error, OSError):
                raise ImpRAGError(f"cannot read the index {path}: {error}") from error
            raise

    @classmethod
    def _open(cls, path: Path, root: Path) -> "IndexFolder":
        if not (root / INDEX).is_dir() and building_folder(root / INDEX).is_dir():
            raise ImpRAGError(
                f"the index {path} is not finished; run the imprag index command that builds it "
                "again, and it resumes where it stopped"
            )
        if not (root / INDEX).is_dir() or not (root / CORPUS).is_dir():
            raise ImpRAGError(
                f"{path} is no index folder; make one with: imprag index CORPUS --out {path}"
            )
        return cls(Corpus.open(root / CORPUS), PassageIndex.open(root / INDEX), path)

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        encoder: Encoder,
        path: Path,
        *,
        overwrite: bool = False,
        lexical: bool = True,
        cut: CutText | None = None,
        **build_settings: Any,
    ) -> "IndexFolder":
        """Embed a corpus into a new folder, or resume an interrupted build.

        One process at a time builds or changes a folder; the others wait.

        Args:
            corpus: its files are linked into the folder, or copied to another disk.
            encoder: embeds the passages.
            path: the folder.
            overwrite: replace an index of another corpus or model, or with other settings. A
                finished one stays valid until the new one is finished, and is deleted then.
            lexical: also make the lexical index, where it is missing.
            cut: what the encoder cuts of the corpus. By default it is counted after the build.
            **build_settings: for :func:`imprag.index.build_index`: kind, dtype, shard size ...

        Raises:
            ImpRAGError: the folder holds an index of another corpus (an edited one is another), or
                one that :func:`imprag.index.build_index` refuses.
        """
        path = expand_home(path)
        fingerprint, dimension = encoder.fingerprint(), encoder.dimension
        how: dict[str, Any] = {
            **build_settings,
            "lexical": lexical,
            "cut": cut,
            "fingerprint": fingerprint,
        }

        def found(root: Path) -> IndexFolder | None:
            own = _own_corpus(root, corpus)
            if own is None or not holds_index(
                root / INDEX, corpus, fingerprint, dimension, **build_settings
            ):
                return None
            return cls(own, PassageIndex.open(root / INDEX), path)

        root = _valid_root(path, overwrite)
        there = found(root) if root else None
        if there is not None and there._has_all(lexical, cut is not None, encoder):
            return there
        check_build(corpus, dimension, **build_settings)
        with only_writer(path):
            root = _valid_root(path, overwrite)
            if root and not (overwrite and has_index(root) and found(root) is None):
                return cls.build_state(corpus, encoder, path, root, overwrite=overwrite, **how)
            root = next_root(path, overwrite=True)
            made = cls.build_state(corpus, encoder, path, root, overwrite=True, **how)
            make_current(path, root)
            remove_states(path, 0)
            return made

    @classmethod
    def build_state(
        cls,
        corpus: Corpus,
        encoder: Encoder,
        path: Path,
        root: Path,
        *,
        overwrite: bool = False,
        lexical: bool = True,
        cut: CutText | None = None,
        fingerprint: str | None = None,
        **build_settings: Any,
    ) -> "IndexFolder":
        """Build the parts of one state, or resume; the caller lets it be the valid one.

        Args:
            path: the index folder. The caller holds :func:`imprag.index.states.only_writer`.
            root: of the state.
            corpus, encoder, lexical, cut, **build_settings: as for :meth:`build`.
            overwrite: delete parts of another corpus or model, or with other settings.
            fingerprint: the encoder's, if it is known: computing it reads the model.

        Raises:
            ImpRAGError: as :meth:`build`.
        """
        own = _own_corpus(root, corpus) or _take_corpus(path, root, corpus, overwrite)
        index = build_index(
            own,
            encoder,
            root / INDEX,
            model_fingerprint=fingerprint or encoder.fingerprint(),
            dimension=encoder.dimension,
            overwrite=overwrite,
            # Encoders sort by length, and among a thousand passages little padding is left.
            **{"batch_size": 1024, **build_settings},
        )
        if lexical:
            LexicalIndex.build(own, root / LEXICAL, progress=build_settings.get("progress", True))
        uncounted = read_cut_tokens(root, index.manifest) is None
        if uncounted and cut is None and isinstance(encoder, Cutter):
            cut = count_cut(own, encoder)
        if uncounted and cut is not None:
            cut.write(root, index.manifest)
        return cls(own, index, path)

    def _has_all(self, lexical: bool, counted: bool, encoder: Encoder) -> bool:
        """Whether the parts other than corpus and index are there that are wanted."""
        if lexical:
            try:
                LexicalIndex(self.root / LEXICAL, self.corpus)
            except ImpRAGError:
                return False
        if not counted and not isinstance(encoder, Cutter):
            return True
        return read_cut_tokens(self.root, self.index.manifest) is not None

    def check_model(self, fingerprint: str, model: str) -> None:
        """Refuse an index made by another model.

        Args:
            fingerprint: of the model.
            model: its name or path, for the message.

        Raises:
            ImpRAGError: another model's embeddings are stored.
        """
        self.index.manifest.check(model_fingerprint=fingerprint, command=self._rebuild(model))

    def _rebuild(self, model: str) -> str:
        """The command that embeds the folder's own passages again."""
        own, path = str(self.corpus.path), str(self.path)
        manifest = self.index.manifest
        kind = [] if manifest.kind == "flat" else ["--kind", manifest.kind]
        uri = ["--uri", manifest.location] if manifest.location else []
        command = ["imprag", "index", own, "--model", model, *kind, *uri, "--out", path]
        return shlex.join([*command, "--overwrite"])

    def search(
        self, queries: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the k best passages for every query embedding.

        Args:
            queries: (queries, dimension).
            k: at most the number of passages.

        Returns:
            rows of the corpus (queries, k) int64, best first, and their scores (queries, k)
            float32.
        """
        scores, ids = self.index.search(queries, k)
        distinct = list({passage_id for found in ids for passage_id in found})
        row_of = dict(zip(distinct, self.corpus.rows(distinct), strict=True))
        rows = np.array([[row_of[passage_id] for passage_id in found] for found in ids], np.int64)
        return rows.reshape(scores.shape), scores

    def embeddings(self, rows: IntArray) -> FloatArray:
        """The embeddings of the passages in the given rows of the corpus, (rows, dimension)."""
        return self.index.embeddings(self.corpus.ids(rows.tolist()), rows)

    @cached_property
    def lexical(self) -> LexicalIndex:
        """The lexical index of the passages, in the folder's ``lexical/``.

        Raises:
            ImpRAGError: the folder has none, or it is damaged.
        """
        if not self.has_lexical:
            kind = self.index.manifest.kind
            command = ["imprag", "index", str(self.corpus.path), "--kind", kind]
            raise ImpRAGError(
                f"{self.path} has no lexical index, which hybrid and lexical retrieval need; add "
                f"it with: {shlex.join([*command, '--model', 'MODEL', '--out', str(self.path)])} "
                "(the embeddings are kept), or choose implicit retrieval"
            )
        return LexicalIndex(self.root / LEXICAL, self.corpus)

    @property
    def has_lexical(self) -> bool:
        """Whether the folder has a lexical index."""
        return (self.root / LEXICAL).is_dir()

    @property
    def root(self) -> Path:
        """Where the parts of this state lie."""
        return self.corpus.path.parent

    @property
    def is_current(self) -> bool:
        """Whether the folder has no later state."""
        return current_root(self.path) == self.root

    def upsert(self, passages: Iterable[Passage]) -> "IndexFolder":
        """Add passages to the folder, or replace those that have their ids.

        Args:
            passages: to add, as a corpus or one by one. Parts of a document replace all parts of a
                document of the same name.

        Returns:
            the folder's new state, which the next search of a pipeline uses.

        Raises:
            ImpRAGError: as :func:`imprag.index.update.upsert_and_remove`.
        """
        return self._changed(passages=passages)

    def remove(self, ids: Sequence[str]) -> "IndexFolder":
        """Remove passages from the folder.

        Returns:
            the folder's new state, which the next search of a pipeline uses.

        Raises:
            ImpRAGError: as :func:`imprag.index.update.upsert_and_remove`.
        """
        return self._changed(ids=list(ids))

    def _changed(self, **changes: Any) -> "IndexFolder":
        from imprag.index.update import upsert_and_remove

        if self.encoder is None:
            raise ImpRAGError(
                f"{self.path} is the built-in index, or was opened without its model; build an "
                "index of your own with imprag index, and open it with ImpRAG.from_pretrained"
            )
        made = upsert_and_remove(self.path, self.encoder, progress=False, **changes).folder
        made.encoder = self.encoder
        return made


def _valid_root(path: Path, overwrite: bool) -> Path | None:
    """Where the valid state lies; None if ``state.json`` does not tell and may be overwritten."""
    try:
        return current_root(path)
    except ImpRAGError:
        if overwrite:
            return None
        raise


def _own_corpus(path: Path, corpus: Corpus) -> Corpus | None:
    """The passages of an index folder, if they are those of ``corpus``."""
    try:
        own = Corpus.open(path / CORPUS)
    except ImpRAGError:
        return None
    return own if own.fingerprint == corpus.fingerprint else None


def _take_corpus(path: Path, root: Path, corpus: Corpus, overwrite: bool) -> Corpus:
    """Link or copy a corpus into a state, in the place of another if that is wanted.

    The other's index goes first: after a kill the folder holds no index, rather than an old one.
    """
    if (root / CORPUS).exists():
        if not (root / CORPUS / MANIFEST).is_file():
            raise ImpRAGError(f"{root / CORPUS} is in the way and no corpus; choose another folder")
        if not overwrite:
            Corpus.open(root / CORPUS)  # says if it is damaged
            raise ImpRAGError(
                f"{path} holds an index of another corpus, or of an earlier state of "
                f"this one; embed what has changed with imprag index --update, or {OVERWRITE}, or "
                "choose another folder"
            )
        with only_builder(root / INDEX):
            work = building_folder(root / INDEX)
            discard_index(root / INDEX)
            discard(root / CORPUS, work)
            remove_work(work)
    with atomic_path(root / CORPUS) as temporary:
        temporary.mkdir()
        for name in (MANIFEST, *corpus.manifest["files"]):
            _link_or_copy(corpus.path / name, temporary / name)
    return Corpus.open(root / CORPUS)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
