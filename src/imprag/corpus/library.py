"""Finding a corpus by name or path: the built-in corpora, corpus folders, readable files."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from imprag.corpus import factbook, wiki10k
from imprag.corpus.passage import Passage
from imprag.corpus.readers import read_passages
from imprag.corpus.store import MANIFEST, Corpus
from imprag.errors import ImpRAGError
from imprag.files import cache_dir


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
            or folder that :func:`read_passages` can read. A file is read again when its size or
            time of change differs. Several are joined, in their order.
        skip_bad_lines: leave lines out that cannot be read; ``manifest["skipped"]`` lists them.

    Raises:
        ImpRAGError: there is no such corpus, its package is missing, or it cannot be read.
    """
    if not isinstance(name_or_path, str | Path):
        parts = [load_corpus(part, skip_bad_lines=skip_bad_lines) for part in name_or_path]
        return parts[0] if len(parts) == 1 else _joined(parts)
    if name_or_path in _BUILT_IN:
        return _built_in(str(name_or_path))
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return Corpus.open(path)
    if not path.exists():
        raise ImpRAGError(
            f"no corpus {str(name_or_path)!r}: it is neither a path nor one of the built-in "
            f"corpora {', '.join(_BUILT_IN)}"
        )
    folder = _cache_folder(path.name, f"{_state(path)} {skip_bad_lines}")
    if folder.exists():
        return Corpus.open(folder)
    passages = read_passages(path, skip_bad_lines=skip_bad_lines)
    return Corpus.build(passages, folder, source=str(path.resolve()))


def _built_in(name: str) -> Corpus:
    parts = _BUILT_IN[name]
    folder = _cache_folder(name, str([(part.source, part.revision) for part in parts]))
    if folder.exists():
        return Corpus.open(folder)
    return Corpus.build(
        chain.from_iterable(part.passages() for part in parts),
        folder,
        source="; ".join(part.source for part in parts),
        credit="; ".join(part.credit for part in parts),
    )


def _joined(parts: Sequence[Corpus]) -> Corpus:
    folder = _cache_folder("joined", str([part.fingerprint for part in parts]))
    if folder.exists():
        return Corpus.open(folder)
    credits = dict.fromkeys(part.manifest["credit"] for part in parts)
    return Corpus.build(
        chain.from_iterable(parts),
        folder,
        source="; ".join(part.manifest["source"] or str(part.path) for part in parts),
        credit="; ".join(credit for credit in credits if credit),
    )


def _cache_folder(name: str, state: str) -> Path:
    key = hashlib.sha256(state.encode()).hexdigest()[:16]
    return cache_dir() / "corpora" / f"{name}-{key}"


def _state(path: Path) -> str:
    """What changes when a file, or any file in a folder, is changed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
