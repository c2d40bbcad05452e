"""Finding a corpus by name or path: the built-in corpora, corpus folders, readable files."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from imprag.corpus import factbook, wiki10k
from imprag.corpus.passage import Passage
from imprag.corpus.readers import read_passages
from imprag.corpus.store import FORMAT_VERSION, MANIFEST, Corpus
from imprag.errors import ImpRAGError
from imprag.files import atomic_path, cache_dir, content_digest, expand_home, short_name
from imprag.locking import make_once

READING_REVISION = 1
"""To be raised when readers make other passages of the same file, so that no cache is stale."""


class _Part(NamedTuple):
    """How to make a part of a built-in corpus. A new revision makes cached corpora stale."""

    passages: Callable[[], Iterable[Passage]]
    source: str
    credit: str
    revision: int


_FACTBOOK = _Part(factbook.factbook_passages, factbook.SOURCE, factbook.CREDIT, factbook.REVISION)
_WIKI10K = _Part(wiki10k.wiki10k_passages, wiki10k.SOURCE, wiki10k.CREDIT, wiki10k.REVISION)
_BUILT_IN = {
    "factbook": (_FACTBOOK,),
    "wiki10k": (_WIKI10K,),
    "default": (_FACTBOOK, _WIKI10K),
}
#: Names that :func:`load_corpus` knows before it looks for a path.
BUILT_IN_CORPORA = tuple(_BUILT_IN)


def load_corpus(
    name_or_path: str | Path | Sequence[str | Path], *, skip_bad_lines: bool = False
) -> Corpus:
    """Open a corpus by name or path; what is no corpus folder yet is built in the cache folder.

    Args:
        name_or_path: ``factbook``, ``wiki10k`` or ``default`` (both); a corpus folder; or a file
            or folder that :func:`read_passages` can read, which is read again when its content
            differs. Several are joined, in their order.
        skip_bad_lines: leave lines out that cannot be read; ``manifest["skipped"]`` lists them.

    Raises:
        ImpRAGError: there is no such corpus, its package is missing, or it cannot be read.
    """
    if not isinstance(name_or_path, str | Path):
        parts = [load_corpus(part, skip_bad_lines=skip_bad_lines) for part in name_or_path]
        return parts[0] if len(parts) == 1 else _joined(parts)
    if name_or_path in _BUILT_IN:
        return _built_in(str(name_or_path))
    path = expand_home(name_or_path)
    if (path / MANIFEST).is_file():
        return Corpus.open(path)
    if not path.exists():
        raise ImpRAGError(
            f"no corpus {str(name_or_path)!r}: it is neither a path nor one of the built-in "
            f"corpora {', '.join(_BUILT_IN)}"
        )
    content = content_digest(path)
    source = str(path.resolve())
    folder = _cache_folder(path.name, [source, content, skip_bad_lines, READING_REVISION])

    def make() -> None:
        with atomic_path(folder) as temporary:
            passages = read_passages(path, skip_bad_lines=skip_bad_lines)
            Corpus.build(passages, temporary, source=source)
            if content_digest(path) != content:
                raise ImpRAGError(f"{path} was changed while it was read; give the command again")

    return Corpus.open(make_once(folder, make))


def _built_in(name: str) -> Corpus:
    parts = _BUILT_IN[name]
    folder = _cache_folder(name, [(part.source, part.revision) for part in parts])

    def make() -> None:
        Corpus.build(
            chain.from_iterable(part.passages() for part in parts),
            folder,
            source="; ".join(part.source for part in parts),
            credit="; ".join(part.credit for part in parts),
        )

    return Corpus.open(make_once(folder, make))


def _joined(parts: Sequence[Corpus]) -> Corpus:
    sources = [part.manifest["source"] or str(part.path) for part in parts]
    credits = [part.manifest["credit"] for part in parts]
    folder = _cache_folder("joined", [[part.fingerprint for part in parts], sources, credits])

    def make() -> None:
        Corpus.build(
            chain.from_iterable(parts),
            folder,
            source="; ".join(sources),
            credit="; ".join(dict.fromkeys(credit for credit in credits if credit)),
        )

    return Corpus.open(make_once(folder, make))


def _cache_folder(name: str, decides: Sequence[Any]) -> Path:
    """The folder of a corpus in the cache.

    Args:
        name: of the corpus; long ones are cut.
        decides: everything that decides its content; JSON.
    """
    state = json.dumps([FORMAT_VERSION, *decides])
    key = hashlib.sha256(state.encode()).hexdigest()[:16]
    return cache_dir() / "corpora" / f"{short_name(name)}-{key}"
