"""The states of an index folder: a change makes a new one, and a small file says which is valid.

A folder is built in its first state, with the parts in the folder itself. A change writes all
parts of the next state into ``states/<number>/``; then ``state.json`` names it, in one step. So
whoever opens the folder, at any moment, finds a whole state. The state before an update stays on
disk for those who have it open, until the next update or ``imprag index --compact``.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imprag.corpus.store import MANIFEST as CORPUS_MANIFEST
from imprag.errors import ImpRAGError
from imprag.index.lexical import MANIFEST as LEXICAL_MANIFEST
from imprag.index.manifest import MANIFEST as INDEX_MANIFEST
from imprag.index.passage_index import drop_vectors
from imprag.io.building import building_folder, discard, remove_work, sweep
from imprag.io.files import read_json, write_json
from imprag.io.locking import only_builder

FORMAT_VERSION = 1
STATES = "states"
POINTER = "state.json"
CORPUS = "corpus"
INDEX = "index"
LEXICAL = "lexical"
NEW = "new"  # the new texts of an update, embedded before the rest
CUT, CUT_TOKENS = "cut.json", "cut-tokens.npy"
_MANIFESTS = {CORPUS: CORPUS_MANIFEST, INDEX: INDEX_MANIFEST, LEXICAL: LEXICAL_MANIFEST}


def current_root(folder: Path) -> Path:
    """The folder that holds the parts of an index folder's valid state.

    Raises:
        ImpRAGError: ``state.json`` is damaged or missing, or names a state that is not there.
    """
    return _root(folder, current_state(folder))


def current_state(folder: Path) -> int:
    """The number of an index folder's valid state; 0 for a folder that was never changed.

    Raises:
        ImpRAGError: as :func:`current_root`.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        if any(state and _is_whole(root) for state, root in _states(folder)):
            raise ImpRAGError(
                f"{pointer} is missing, but {folder} has been changed since it was built; "
                f"{_repair(folder)}"
            )
        return 0
    content = _content(folder)
    number, version = content.get("state"), content.get("format_version")
    if type(number) is not int or number < 0:  # True is an int in Python
        raise ImpRAGError(f"{pointer} is damaged: it names no state; {_repair(folder)}")
    if version != FORMAT_VERSION:
        raise ImpRAGError(
            f"{pointer} has format version {version}, this ImpRAG reads {FORMAT_VERSION}; "
            f"{_repair(folder)}"
        )
    if number and not _root(folder, number).is_dir():
        if _content(folder) != content:
            return current_state(folder)  # there were changes in the meantime
        raise ImpRAGError(
            f"{pointer} names the state {number}, which is missing; {_repair(folder)}"
        )
    return number


def changes(folder: Path) -> dict[str, int]:
    """What was added, replaced and removed since the valid state's corpus was read whole."""
    found = _content(folder).get("changes")
    return found if isinstance(found, dict) else {}


def next_root(folder: Path, *, overwrite: bool = False) -> Path:
    """Where the state after the valid one is made. The caller holds :func:`only_writer`.

    Args:
        folder: the index folder.
        overwrite: take the last whole state for the valid one if ``state.json`` does not tell.

    Raises:
        ImpRAGError: as :func:`current_root`; or nothing in the folder is an index.
    """
    try:
        number = current_state(folder)
    except ImpRAGError:
        if not overwrite:
            raise
        last = _last_whole(folder)
        if last is None and "state" not in _content(folder):
            raise ImpRAGError(
                f"{folder / POINTER} is in the way and belongs to no index; choose another folder"
            ) from None
        number = last or 0
    else:
        if not (folder / POINTER).is_file():
            make_current(folder, folder)  # so that a missing file is noticed from now on
    return _root(folder, number + 1)


def make_current(folder: Path, root: Path, changes: Mapping[str, int] | None = None) -> None:
    """Let a finished state be the valid one.

    Args:
        folder: the index folder.
        root: of the state.
        changes: since its corpus was read whole, by kind; none if it was just read.
    """
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "state": 0 if root == folder else int(root.name),
    }
    write_json(folder / POINTER, content | ({"changes": dict(changes)} if changes else {}))


def remove_states(folder: Path, keep: int) -> None:
    """Delete the states before the valid one, and unfinished ones.

    A state with vectors on a server that fails stays whole, and a note says so; the next call
    deletes it. Only parts of an index are deleted: files of the user among them stay.

    Args:
        folder: the index folder. The caller holds :func:`only_writer`.
        keep: number of states before the valid one that stay.
    """
    valid = current_state(folder)
    for number, root in _states(folder):
        if not valid - keep <= number <= valid:
            try:
                _delete(root)
                if root != folder:
                    _delete_scratch(root)
            except ImpRAGError as error:
                print(f"note: {root} stays for now: {error}", file=sys.stderr)
    with contextlib.suppress(OSError):
        (folder / STATES).rmdir()


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[Path]:
    """Hold the lock on changes of an index folder, which all builds and updates take.

    Yields:
        a folder for temporary files.

    Raises:
        ImpRAGError: the folder cannot be written.
    """
    with only_builder(folder, inside=True) as alone:
        if alone:
            sweep(folder)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as scratch:
            yield Path(scratch)


def has_index(root: Path) -> bool:
    """Whether a state has a finished index, which need not be readable."""
    return (root / INDEX / INDEX_MANIFEST).is_file()


def _root(folder: Path, number: int) -> Path:
    return folder / STATES / f"{number:06}" if number else folder


def _states(folder: Path) -> list[tuple[int, Path]]:
    """Number and folder of all states, in order, whether or not they are whole."""
    numbered = sorted((folder / STATES).glob("[0-9]" * 6))
    return [(0, folder), *((int(path.name), path) for path in numbered if path.is_dir())]


def _is_whole(root: Path) -> bool:
    return (root / CORPUS / CORPUS_MANIFEST).is_file() and has_index(root)


def _last_whole(folder: Path) -> int | None:
    return max((number for number, root in _states(folder) if _is_whole(root)), default=None)


def _content(folder: Path) -> dict[str, Any]:
    """What ``state.json`` says; empty if it is no JSON object."""
    try:
        content = read_json(folder / POINTER)
    except ImpRAGError:
        return {}
    return content if isinstance(content, dict) else {}


def _repair(folder: Path) -> str:
    last = _last_whole(folder)
    if last is None:
        return "build the index again, with --overwrite"
    content = f'{{"format_version": {FORMAT_VERSION}, "state": {last}}}'
    return (
        f"write {content} into it to go on with the last state that is there, or build the index "
        "again, with --overwrite"
    )


def _delete(root: Path) -> None:
    """Delete the parts of a state, with its vectors if they lie on a server.

    Raises:
        ImpRAGError: the server fails, or a part is in use on Windows.
    """
    drop_vectors(root / INDEX)
    own = [root / name for name, file in _MANIFESTS.items() if (root / name / file).is_file()]
    for path in own:
        discard(path, root)
    if own:
        for name in (CUT, CUT_TOKENS):
            (root / name).unlink(missing_ok=True)


def _delete_scratch(root: Path) -> None:
    """Delete what interrupted builds left of a state, and its folder if that is then empty."""
    for name in (INDEX, LEXICAL):
        remove_work(building_folder(root / name))
    if (root / NEW).is_dir():
        _delete(root / NEW)
        _delete_scratch(root / NEW)
    for lock in root.glob("*building.lock"):
        lock.unlink()
    sweep(root)
    with contextlib.suppress(OSError):
        root.rmdir()
