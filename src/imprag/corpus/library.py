"""Finding a corpus by name or path: the built-in corpora, corpus folders, readable files."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from imprag.corpus import factbook, wiki10k
from imprag.corpus.passage import Passage
from imprag.corpus.readers import REVISION as READING_REVISION
from imprag.corpus.readers import JoinedReader, PassageReader, read_passages, source_files
from imprag.corpus.store import MANIFEST, Corpus
from imprag.errors import ImpRAGError
from imprag.files import cache_dir

_NAME_BYTES = 100


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
            time of change differs. Several are joined, in their order; ids that ImpRAG makes
            then begin with the name of their file or folder.
        skip_bad_lines: leave lines out that cannot be read; ``manifest["skipped"]`` lists them.

    Raises:
        ImpRAGError: there is no such corpus, its package is missing, or it cannot be read.
    """
    if not isinstance(name_or_path, str | Path):
        if len(name_or_path) == 1:
            return load_corpus(name_or_path[0], skip_bad_lines=skip_bad_lines)
        return _joined([str(part) for part in name_or_path], skip_bad_lines)
    if name_or_path in _BUILT_IN:
        return _built_in(str(name_or_path))
    path = Path(name_or_path)
    if os.path.isfile(path / MANIFEST):
        return Corpus.open(path)
    passages = _reader(path, skip_bad_lines)
    folder = _cache_folder(path.name, f"{_state(path)} {skip_bad_lines}")
    if folder.exists():
        return Corpus.open(folder)
    return Corpus.build(passages, folder, source=str(path.resolve()))


def _reader(path: Path, skip_bad_lines: bool) -> PassageReader:
    if not os.path.exists(path):  # False, too, where a name is too long
        raise ImpRAGError(
            f"no corpus {str(path)!r}: it is neither a path nor one of the built-in "
            f"corpora {', '.join(_BUILT_IN)}"
        )
    return read_passages(path, skip_bad_lines=skip_bad_lines)


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


def _joined(names: Sequence[str], skip_bad_lines: bool) -> Corpus:
    """Several corpora in one. Made ids get the name of their file or folder as a prefix."""
    whole = {name for name in names if name in _BUILT_IN or os.path.isfile(Path(name) / MANIFEST)}
    read = {name: Path(name) for name in names if name not in whole}
    prefixes = dict(zip(read, distinct_names(read.values()), strict=True))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ImpRAGError(f"the corpus {twice} is given twice")
    parts: list[Corpus | PassageReader] = [
        load_corpus(name)
        if name in whole
        else _reader(Path(name), skip_bad_lines).with_prefix(f"{prefixes[name]}/")
        for name in names
    ]
    states = [
        part.fingerprint if isinstance(part, Corpus) else f"{_state(part.path)} {prefixes[name]}"
        for name, part in zip(names, parts, strict=True)
    ]
    folder = _cache_folder("joined", f"{states} {skip_bad_lines}")
    if folder.exists():
        return Corpus.open(folder)
    built = [part for part in parts if isinstance(part, Corpus)]
    credits = dict.fromkeys(corpus.manifest["credit"] for corpus in built)
    sources = [
        (part.manifest["source"] or str(part.path))
        if isinstance(part, Corpus)
        else str(part.path.resolve())
        for part in parts
    ]
    return Corpus.build(
        JoinedReader(parts),
        folder,
        source="; ".join(sources),
        credit="; ".join(credit for credit in credits if credit),
    )


def distinct_names(paths: Iterable[Path]) -> list[str]:
    """The shortest ends of paths, of equally many parts each, by which no two are the same.

    >>> distinct_names([Path("a/README.md"), Path("b/README.md")])
    ['a/README.md', 'b/README.md']

    Raises:
        ImpRAGError: two paths lead to the same file or folder.
    """
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path in resolved if resolved.count(path) > 1), None):
        raise ImpRAGError(f"the corpus {twice} is given twice")
    for length in range(1, max((len(path.parts) for path in resolved), default=0) + 1):
        names = [Path(*path.parts[-length:]).as_posix() for path in resolved]
        if len(set(names)) == len(names):
            break
    else:
        names = []
    return names


def _cache_folder(name: str, state: str) -> Path:
    key = hashlib.sha256(state.encode(errors="replace")).hexdigest()[:16]
    # Names of files have at most 255 bytes, and those of temporary folders are longer.
    short = name.encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")
    return cache_dir() / "corpora" / f"{short}-{key}"


def _state(path: Path) -> str:
    """What changes when a file, or any file in a folder, is changed."""
    stats = [(str(file.resolve()), file.stat()) for file in source_files(path)]
    return f"{READING_REVISION}\n" + "\n".join(
        f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats
    )
