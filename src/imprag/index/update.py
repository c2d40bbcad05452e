"""Updates of an index folder: only passages with a new text are embedded."""

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from imprag.corpus import Corpus, Passage
from imprag.corpus.passage import KnownTexts, text_hashes
from imprag.errors import ImpRAGError
from imprag.index.build import MakeShards
from imprag.index.fitting import Cutter, CutText, batches, count_cut, is_part, read_cut_tokens
from imprag.index.folder import Encoder, IndexFolder
from imprag.index.states import (
    NEW,
    changes,
    make_current,
    next_root,
    only_writer,
    remove_states,
)
from imprag.io.files import expand_home

_AND = "; "  # between the sources of a corpus
_NAMED = ("source", "credit")
_WHOLE = "run imprag index with all corpora of the index and --update, which embeds only new texts"


@dataclass(frozen=True)
class Updated:
    """What an update did.

    Attributes:
        folder: the new state.
        embedded: number of passages that were embedded.
        kept: number of passages whose embeddings were kept.
        added: number of new ids.
        replaced: number of ids whose passage is another now: its text, title or metadata.
        removed: number of ids that are gone.
    """

    folder: IndexFolder
    embedded: int
    kept: int
    added: int = 0
    replaced: int = 0
    removed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.embedded:,} embedded, {self.kept:,} kept; {self.added:,} added, "
            f"{self.replaced:,} replaced, {self.removed:,} removed"
        )


def update_index(
    path: Path | str,
    corpus: Corpus,
    encoder: Encoder,
    *,
    model: str = "MODEL",
    kind: str | None = None,
    location: str = "",
    cut: CutText | None = None,
    make_shards: MakeShards | None = None,
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
        make_shards: embeds the new texts in the place of ``encoder``; see
            `imprag.index.build.MakeShards`.
        progress: show bars on standard error.

    Raises:
        ImpRAGError: there is no index, it is of another model, or the disk is full.
    """

    def whole(current: Corpus, scratch: Path) -> Corpus:
        return corpus

    settings = {"kind": kind, "location": location} if kind or location else {}
    return _update(expand_home(path), whole, encoder, model, progress, make_shards, settings, cut)


def upsert_and_remove(
    path: Path | str,
    encoder: Encoder,
    passages: Iterable[Passage] = (),
    ids: Sequence[str] = (),
    *,
    model: str = "MODEL",
    make_shards: MakeShards | None = None,
    progress: bool = True,
) -> Updated:
    """Add passages to an index folder, replace those that have their ids, and remove others.

    Passages that are parts of a document replace all parts of a document of the same name. Of a
    corpus, only ids that its author gave may replace passages: a record's number, or a file's name
    in one folder, may also be that of another record or file.

    Args:
        path, encoder, model, make_shards, progress: as for :func:`update_index`.
        passages: to add, as a corpus or one by one. New ones come after the passages that are
            there.
        ids: of passages to remove.

    Raises:
        ImpRAGError: as for :func:`update_index`; an id of a passage to remove is not there, an id
            is given twice, a passage has no id or no text, an id that ImpRAG made for a corpus
            could replace other passages, or nothing would be left.
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
        if not new and len(removed) == len(current):
            raise ImpRAGError(
                f"these are all passages of {path}, and an index cannot be empty: leave some, add "
                f"others in the same call, or delete the folder {path}"
            )
        parts = [current]
        if isinstance(passages, Corpus):
            _check_made_ids(current, passages)
            parts.append(passages)
        named = {name: _joined(part.manifest[name] for part in parts) for name in _NAMED}
        return Corpus.build(_changed(current, new, removed), scratch / "corpus", **named)

    return _update(path, changed, encoder, model, progress, make_shards, go_on=True)


def compact(path: Path | str) -> None:
    """Delete what an index folder keeps of earlier states, and of interrupted updates.

    Programs that have the state before the valid one open must have ended.

    Raises:
        ImpRAGError: there is no index.
    """
    folder = IndexFolder.open(expand_home(path)).path
    with only_writer(folder):
        remove_states(folder, 0)


def _update(
    path: Path,
    wanted: Callable[[Corpus, Path], Corpus],
    encoder: Encoder,
    model: str,
    progress: bool,
    make_shards: MakeShards | None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    cut: CutText | None = None,
    go_on: bool = False,
) -> Updated:
    """Make the next state; ``go_on`` adds its changes to those of the states before."""
    IndexFolder.open(path).check_model(encoder.fingerprint(), model)
    with only_writer(path) as scratch:
        current = IndexFolder.open(path)
        manifest = current.index.manifest
        corpus = wanted(current.corpus, scratch)
        before: dict[str, Any] = {"kind": manifest.kind, "location": manifest.location}
        after = {**before, **settings, "kind": settings.get("kind") or manifest.kind}
        if corpus.fingerprint == current.corpus.fingerprint and before == after:
            remove_states(path, 1)  # which an update may not have come to
            return Updated(current, 0, len(corpus))
        reused = ReusedEmbeddings(encoder, current)
        root = next_root(path)
        shared: dict[str, Any] = {"dtype": manifest.dtype, "progress": progress}
        if make_shards is not None:
            reused.embed_before(corpus, root / NEW, make_shards=make_shards, **shared)
        if cut is None and isinstance(encoder, Cutter):
            cut = count_cut(corpus, KnownCuts(encoder, current, reused.texts))
        made = IndexFolder.build_state(
            corpus, reused, path, root, overwrite=True, cut=cut, **shared, **after
        )
        shutil.rmtree(root / NEW, ignore_errors=True)
        counts = Counter(_changes(current.corpus, corpus))
        make_current(path, root, Counter(changes(path)) + counts if go_on else None)
        remove_states(path, 1)
        return Updated(made, reused.embedded, reused.kept, **counts)


class ReusedEmbeddings:
    """An encoder that takes the embeddings of known texts from an index, rather than the model.

    Args:
        encoder: embeds new texts.
        folder: its index.

    Attributes:
        embedded, kept: numbers of passages whose embeddings were made, or taken.
        texts: of the index.
    """

    def __init__(self, encoder: Encoder, folder: IndexFolder) -> None:
        self.encoder = encoder
        self.embedded = self.kept = 0
        self.texts = _texts(folder)
        self._folder = folder
        self._new: tuple[IndexFolder, KnownTexts] | None = None

    @property
    def dimension(self) -> int:
        """Size of an embedding."""
        return self.encoder.dimension

    def fingerprint(self) -> str:
        """Of the model, as the index names it."""
        return self._folder.index.manifest.model_fingerprint

    def __call__(self, passages: Sequence[Passage]) -> npt.NDArray[np.float32]:
        """Embeddings, (len(passages), dimension) float32."""
        rows = self.texts.find(passages)
        known, new = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        embeddings = np.empty((len(passages), self.dimension), np.float32)
        if len(known):
            embeddings[known] = self._folder.embeddings(rows[known])
        if len(new):
            embeddings[new] = self._embed_new([passages[n] for n in new.tolist()])
        self.kept += len(known)
        self.embedded += len(new)
        return embeddings

    def embed_before(self, corpus: Corpus, path: Path, **build_settings: Any) -> None:
        """Embed the new texts of a corpus into a folder of their own, from which they are taken.

        Args:
            corpus: the passages.
            path: the folder; an interrupted call resumes there.
            **build_settings: as for :meth:`IndexFolder.build`.
        """
        new = self._new_passages(corpus)
        if (first := next(new, None)) is None:
            return
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=".tmp-") as scratch:
            own = Corpus.build(itertools.chain([first], new), Path(scratch) / "corpus")
            made = IndexFolder.build_state(
                own, self.encoder, path, path, overwrite=True, lexical=False, **build_settings
            )
        self._new = made, _texts(made)

    def _new_passages(self, corpus: Corpus) -> Iterator[Passage]:
        for batch in batches(iter(corpus)):
            for passage, row in zip(batch, self.texts.find(batch).tolist(), strict=True):
                if row < 0:
                    yield passage

    def _embed_new(self, passages: Sequence[Passage]) -> npt.NDArray[np.float32]:
        if self._new is None:
            return self.encoder(passages)
        folder, texts = self._new
        return folder.embeddings(texts.find(passages))


class KnownCuts:
    """What a model cuts of passages, taken from an index for those whose text is there.

    Args:
        encoder: counts tokens of new texts.
        folder: its index.
        texts: those of the index, if they are at hand.
    """

    def __init__(
        self, encoder: Cutter, folder: IndexFolder, texts: KnownTexts | None = None
    ) -> None:
        self._encoder = encoder
        self._texts = texts or _texts(folder)
        self._tokens = read_cut_tokens(folder.root, folder.index.manifest)

    @property
    def max_passage_tokens(self) -> int:
        """Greatest length of a passage in tokens."""
        return self._encoder.max_passage_tokens

    def fingerprint(self) -> str:
        """Of the model."""
        return self._encoder.fingerprint()

    def cut_tokens(self, passages: Sequence[Passage]) -> list[int]:
        """The number of tokens that the model cuts from each passage."""
        if self._tokens is None:
            return self._encoder.cut_tokens(passages)
        rows = self._texts.find(passages)
        tokens = self._tokens[rows]  # those of the last passage where the text is new
        if len(new := np.flatnonzero(rows < 0)):
            tokens[new] = self._encoder.cut_tokens([passages[n] for n in new.tolist()])
        counts: list[int] = tokens.tolist()
        return counts


def _texts(folder: IndexFolder) -> KnownTexts:
    hashes = [text_hashes(batch) for batch in batches(iter(folder.corpus))]
    return KnownTexts(np.concatenate(hashes))


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


def _changes(before: Corpus, after: Corpus) -> dict[str, int]:
    """How many ids were added, have another passage now, and are gone."""
    added = replaced = 0
    for passages in batches(iter(after)):
        rows = before.find([passage.id for passage in passages])
        there = [
            (passage, row) for passage, row in zip(passages, rows, strict=True) if row is not None
        ]
        old = before.passages([row for _, row in there])
        added += len(passages) - len(there)
        replaced += sum(new != known for (new, _), known in zip(there, old, strict=True))
    removed = len(before) - (len(after) - added)
    return {"added": added, "replaced": replaced, "removed": removed}


def _check_made_ids(current: Corpus, added: Corpus) -> None:
    """Refuse ids that ImpRAG made for a corpus if they could replace other passages of an index.

    Raises:
        ImpRAGError: the corpus has records without ids; or documents that lie where those of the
            index come from, or have their names.
    """
    source = added.manifest["source"]
    if count := added.manifest["skipped"].get("numbered"):
        raise ImpRAGError(
            f"{count:,} passages of {source} have no id, and their numbers could replace other "
            f"passages: give every passage an id, or {_WHOLE}"
        )
    if not (new := _documents(added)):
        return
    pairs = itertools.product(_paths(added), _paths(current))
    if any(one.is_relative_to(other) or other.is_relative_to(one) for one, other in pairs):
        raise ImpRAGError(
            f"{source} has documents of the corpus that the index was made from, where they may "
            f"have other ids: {_WHOLE}"
        )
    if both := new & _documents(current):
        raise ImpRAGError(
            f"the index has another document {min(both)} already, which {source} would replace: "
            f"give it another name, or {_WHOLE}"
        )


def _documents(corpus: Corpus) -> set[str]:
    return {str(passage.meta["file"]) for passage in corpus if is_part(passage)}


def _paths(corpus: Corpus) -> list[Path]:
    """The files and folders that a corpus was read from."""
    paths = map(Path, corpus.manifest["source"].split(_AND))
    return [path for path in paths if path.is_absolute()]


def _joined(names: Iterable[str]) -> str:
    """Sources or credits, each once."""
    parts = (part for name in names for part in name.split(_AND) if part)
    return _AND.join(dict.fromkeys(parts))
