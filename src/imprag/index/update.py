"""Updates of an index folder: only passages with a new text are embedded."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.fitting import CutText, is_part
from imprag.index.folder import Encoder, IndexFolder
from imprag.index.states import STATES, make_current, next_root, remove_states
from imprag.io.files import expand_home
from imprag.io.locking import only_builder

_ROWS = 1024
_SCRATCH = ".tmp-update-"


@dataclass(frozen=True)
class Updated:
    """What an update did.

    Attributes:
        folder: the new state.
        embedded: number of passages that were embedded.
        kept: number of passages whose embeddings were kept.
        removed: number of ids that are gone.
    """

    folder: IndexFolder
    embedded: int
    kept: int
    removed: int

    def __str__(self) -> str:
        return f"{self.embedded:,} embedded, {self.kept:,} kept, {self.removed:,} removed"


def update_index(
    path: Path | str,
    corpus: Corpus,
    encoder: Encoder,
    *,
    model: str = "MODEL",
    kind: str | None = None,
    location: str = "",
    cut: CutText | None = None,
    progress: bool = True,
) -> Updated:
    """Let an index folder hold these passages instead of its own.

    The result is what a new build gives. An interrupted update leaves the old state, and continues
    when it is called again; readers of the old state are not disturbed.

    Args:
        path: the folder.
        corpus: all passages that it shall hold.
        encoder: the model that made its embeddings.
        model: the model's name, for messages.
        kind: the kind of index; that of the folder, on the same server, if not given.
        location: the URI of the server of another kind, if it needs one.
        cut: as for :meth:`IndexFolder.build`.
        progress: show bars on standard error.

    Raises:
        ImpRAGError: there is no index, it is of another model, or the disk is full.
    """

    def whole(current: Corpus, scratch: Path) -> Corpus:
        return corpus

    settings = {"kind": kind, "location": location} if kind or location else {}
    return _update(expand_home(path), whole, encoder, model, progress, settings, cut)


def upsert_and_remove(
    path: Path | str,
    encoder: Encoder,
    passages: Iterable[Passage] = (),
    ids: Sequence[str] = (),
    *,
    model: str = "MODEL",
    progress: bool = True,
) -> Updated:
    """Add passages to an index folder, replace those that have their ids, and remove others.

    Passages that are parts of a document replace all parts of a document of the same name.

    Args:
        path, encoder, model, progress: as for :func:`update_index`.
        passages: to add. New ones come after the passages that are there.
        ids: of passages to remove.

    Raises:
        ImpRAGError: as for :func:`update_index`; an id of a passage to remove is not there, an id
            is given twice, a passage has no id or no text, or nothing would be left.
    """
    path = expand_home(path)
    new = {}
    for passage in passages:
        if passage.id in new:
            raise ImpRAGError(f"the passage {passage.id!r} is given twice")
        new[passage.id] = passage
    removed = set(ids)
    if both := removed & new.keys():
        raise ImpRAGError(f"the passage {min(both)!r} is to be added and to be removed")

    def changed(current: Corpus, scratch: Path) -> Corpus:
        current.rows(list(ids))  # refuses ids that are not there
        source, credit = current.manifest["source"], current.manifest["credit"]
        stream = _changed(current, new, removed)
        return Corpus.build(stream, scratch / "corpus", source=source, credit=credit)

    return _update(path, changed, encoder, model, progress)


def compact(path: Path | str) -> None:
    """Delete what an index folder keeps of earlier states, and of interrupted updates.

    Programs that have the state before the valid one open must have ended.

    Raises:
        ImpRAGError: there is no index.
    """
    folder = IndexFolder.open(expand_home(path)).path
    with _only_update(folder):
        remove_states(folder, 0)


def _update(
    path: Path,
    wanted: Callable[[Corpus, Path], Corpus],
    encoder: Encoder,
    model: str,
    progress: bool,
    settings: Mapping[str, Any] = MappingProxyType({}),
    cut: CutText | None = None,
) -> Updated:
    IndexFolder.open(path).check_model(encoder.fingerprint(), model)
    with _only_update(path) as scratch:
        current = IndexFolder.open(path)
        manifest = current.index.manifest
        corpus = wanted(current.corpus, scratch)
        before: dict[str, Any] = {"kind": manifest.kind, "location": manifest.location}
        after = {**before, **settings, "kind": settings.get("kind") or manifest.kind}
        if corpus.fingerprint == current.corpus.fingerprint and before == after:
            remove_states(path, 1)  # which an update may not have come to
            return Updated(current, 0, len(corpus), 0)
        reused = ReusedEmbeddings(encoder, current)
        root = next_root(path)
        made = IndexFolder.build(
            corpus,
            reused,
            root,
            overwrite=True,
            cut=cut,
            dtype=manifest.dtype,
            progress=progress,
            **after,
        )
        make_current(root)
        remove_states(path, 1)
        return Updated(made, reused.embedded, reused.kept, _missing(current.corpus, corpus))


class ReusedEmbeddings:
    """An encoder that takes the embeddings of known texts from an index, rather than the model.

    Args:
        encoder: embeds new texts. What else it can do, this can, too.
        folder: its index.

    Attributes:
        embedded, kept: numbers of passages whose embeddings were made anew, or taken.
    """

    def __init__(self, encoder: Encoder, folder: IndexFolder) -> None:
        self.encoder = encoder
        self.folder = folder
        self.embedded = self.kept = 0
        hashes = np.fromiter(map(_text_hash, folder.corpus), np.uint64, len(folder.corpus))
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]

    @property
    def dimension(self) -> int:
        """Size of an embedding."""
        return self.encoder.dimension

    def fingerprint(self) -> str:
        """Of the model."""
        return self.encoder.fingerprint()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def __call__(self, passages: Sequence[Passage]) -> npt.NDArray[np.float32]:
        """Embeddings, (len(passages), dimension) float32."""
        rows = self._known_rows(passages)
        known = np.flatnonzero(rows >= 0)
        new = np.flatnonzero(rows < 0).tolist()
        embeddings = np.empty((len(passages), self.dimension), np.float32)
        if len(known):
            embeddings[known] = self.folder.embeddings(rows[known])
        if len(new):
            embeddings[new] = self.encoder([passages[n] for n in new])
        self.kept += len(known)
        self.embedded += len(new)
        return embeddings

    def _known_rows(self, passages: Sequence[Passage]) -> npt.NDArray[np.int64]:
        """A row of the index with each passage's text, (len(passages),); -1 for a new text."""
        hashes = np.array([_text_hash(passage) for passage in passages], np.uint64)
        places = np.searchsorted(self._hashes, hashes)
        places[places == len(self._hashes)] = 0
        rows = self._rows[places]
        rows[self._hashes[places] != hashes] = -1
        # Texts that differ may share a hash, if hardly ever.
        found = np.flatnonzero(rows >= 0).tolist()
        there = self.folder.corpus.passages(rows[found].tolist())
        for n, passage in zip(found, there, strict=True):
            if _text(passage) != _text(passages[n]):
                rows[n] = -1
        return rows


def _changed(current: Corpus, new: dict[str, Passage], removed: set[str]) -> Iterator[Passage]:
    """A corpus after changes: replaced passages are in their places, new ones at the end."""
    left = dict(new)
    documents = {passage.meta["file"] for passage in new.values() if is_part(passage)}
    for passage in current:
        if passage.id in left:
            yield left.pop(passage.id)
        elif passage.id not in removed and not (
            is_part(passage) and passage.meta["file"] in documents
        ):
            yield passage
    yield from left.values()


def _missing(before: Corpus, after: Corpus) -> int:
    """How many ids of one corpus another lacks."""
    batches = (range(n, min(n + _ROWS, len(before))) for n in range(0, len(before), _ROWS))
    return sum(after.find(before.ids(rows)).count(None) for rows in batches)


def _text(passage: Passage) -> tuple[str, str]:
    return passage.title, passage.text


def _text_hash(passage: Passage) -> int:
    data = f"{len(passage.title)} {passage.title}{passage.text}".encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


@contextlib.contextmanager
def _only_update(path: Path) -> Iterator[Path]:
    """Hold the lock on the updates of an index folder; a folder for temporary files."""
    with only_builder(path / STATES):
        for left in path.glob(f"{_SCRATCH}*"):  # by a killed update
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path) as scratch:
            yield Path(scratch)
