"""Loads a corpus by name or path: a built-in corpus, a corpus folder or readable files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from imprag.corpus import factbook, wiki10k
from imprag.corpus.passage import Passage
from imprag.corpus.readers import REVISION as READING_REVISION
from imprag.corpus.readers import JoinedReader, PassageReader, read_passages, source_files
from imprag.corpus.store import FORMAT_VERSION, MANIFEST, Corpus
from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, cache_dir, content_digest, expand_home, short_name
from imprag.io.locking import make_once


class _Part(NamedTuple):
    """How to make one part of a built-in corpus. A new revision invalidates cached corpora."""

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
#: Names that :func:`load_corpus` takes for a built-in corpus rather than a path.
BUILT_IN_CORPORA = tuple(_BUILT_IN)


def load_corpus(
    name_or_path: str | Path | Sequence[str | Path], *, skip_bad_lines: bool = False
) -> Corpus:
    """Open a corpus by name or path. Unless it is a corpus folder, it is built in the cache folder.

    Args:
        name_or_path: ``factbook``, ``wiki10k`` or ``default`` (both); a corpus folder; or a file
            or folder that :func:`read_passages` can read, which is read again when its content
            changes. Several are joined in the given order; generated ids then begin with the name
            of their file or folder.
        skip_bad_lines: skip lines that cannot be read, and list them in ``manifest["skipped"]``.
            By default the first such line is an error.

    Raises:
        ImpRAGError: there is no such corpus, its package is missing, or it cannot be read.
    """
    if not isinstance(name_or_path, str | Path):
        if len(name_or_path) == 1:
            return load_corpus(name_or_path[0], skip_bad_lines=skip_bad_lines)
        return _joined([str(part) for part in name_or_path], skip_bad_lines)
    if name_or_path in _BUILT_IN:
        return _built_in(str(name_or_path))
    path = expand_home(name_or_path)
    if os.path.isfile(path / MANIFEST):
        return Corpus.open(path)
    passages = _reader(path, skip_bad_lines)
    content = _content(path)
    source = str(path.resolve())
    folder = _cache_folder(path.name, [source, content, skip_bad_lines, READING_REVISION])

    def make() -> None:
        with atomic_path(folder) as temporary:
            Corpus.build(passages, temporary, source=source)
            _check_unchanged(path, content)

    return Corpus.open(make_once(folder, make))


def _content(path: Path) -> str:
    return content_digest(path, source_files(path))


def _check_unchanged(path: Path, content: str) -> None:
    if _content(path) != content:
        raise ImpRAGError(f"{path} was changed while it was read; run the command again")


def _reader(path: Path, skip_bad_lines: bool) -> PassageReader:
    if not os.path.exists(path):  # also False if the name is too long
        raise ImpRAGError(
            f"no corpus {str(path)!r}: it is neither a path nor one of the built-in "
            f"corpora {', '.join(_BUILT_IN)}"
        )
    return read_passages(path, skip_bad_lines=skip_bad_lines)


def built_in_folder(name: str) -> Path:
    """The cache folder of a built-in corpus, which is made at its first use."""
    return _cache_folder(name, [(part.source, part.revision) for part in _BUILT_IN[name]])


def _built_in(name: str) -> Corpus:
    parts = _BUILT_IN[name]
    folder = built_in_folder(name)

    def make() -> None:
        Corpus.build(
            chain.from_iterable(part.passages() for part in parts),
            folder,
            source="; ".join(part.source for part in parts),
            credit="; ".join(part.credit for part in parts),
        )

    return Corpus.open(make_once(folder, make))


def _joined(names: Sequence[str], skip_bad_lines: bool) -> Corpus:
    """Join several corpora. Generated ids get the name of their file or folder as a prefix."""
    whole = {
        name for name in names if name in _BUILT_IN or os.path.isfile(expand_home(name) / MANIFEST)
    }
    read = {name: expand_home(name) for name in names if name not in whole}
    prefixes = dict(zip(read, distinct_names(read.values()), strict=True))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ImpRAGError(f"the corpus {twice} is given twice")
    parts: list[Corpus | PassageReader] = [
        load_corpus(name)
        if name in whole
        else _reader(read[name], skip_bad_lines).with_prefix(f"{prefixes[name]}/")
        for name in names
    ]
    contents = {name: _content(path) for name, path in read.items()}
    states = [
        part.fingerprint if isinstance(part, Corpus) else [contents[name], prefixes[name]]
        for name, part in zip(names, parts, strict=True)
    ]
    built = [part for part in parts if isinstance(part, Corpus)]
    credits = [corpus.manifest["credit"] for corpus in built]
    sources = [
        (part.manifest["source"] or str(part.path))
        if isinstance(part, Corpus)
        else str(part.path.resolve())
        for part in parts
    ]
    inputs = [states, sources, credits, skip_bad_lines, READING_REVISION]
    folder = _cache_folder("joined", inputs)

    def make() -> None:
        with atomic_path(folder) as temporary:
            Corpus.build(
                JoinedReader(parts),
                temporary,
                source="; ".join(sources),
                credit="; ".join(dict.fromkeys(credit for credit in credits if credit)),
            )
            for name, path in read.items():
                _check_unchanged(path, contents[name])

    return Corpus.open(make_once(folder, make))


def distinct_names(paths: Iterable[Path]) -> list[str]:
    """The shortest path endings that tell the paths apart; all have the same number of parts.

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


def _cache_folder(name: str, inputs: Sequence[Any]) -> Path:
    """The folder of a corpus in the cache.

    Args:
        name: the corpus's name; a long one is cut.
        inputs: everything that decides the corpus's content, as JSON values.
    """
    state = json.dumps([FORMAT_VERSION, *inputs])
    key = hashlib.sha256(state.encode()).hexdigest()[:16]
    return cache_dir() / "corpora" / f"{short_name(name)}-{key}"
