"""The states of an index folder: an update makes a new one, and a small file says which is valid.

A folder is built in its first state, with the parts in the folder itself. An update writes all
parts of the next state into ``states/<number>/``; then ``state.json`` names it, in one step. So
whoever opens the folder, at any moment, finds a whole state. The state before stays on disk for
those who have it open, until the next update or ``imprag index --compact``.
"""

import contextlib
import shutil
import sys
from pathlib import Path

from imprag.corpus.store import MANIFEST as CORPUS_MANIFEST
from imprag.errors import ImpRAGError
from imprag.index.lexical import MANIFEST as LEXICAL_MANIFEST
from imprag.index.manifest import MANIFEST as INDEX_MANIFEST
from imprag.index.passage_index import drop_vectors
from imprag.io.files import read_json, write_json
from imprag.io.locking import only_builder

STATES = "states"
POINTER = "state.json"
CORPUS = "corpus"
INDEX = "index"
LEXICAL = "lexical"
CUT, CUT_TOKENS = "cut.json", "cut-tokens.npy"
_MANIFESTS = {CORPUS: CORPUS_MANIFEST, INDEX: INDEX_MANIFEST, LEXICAL: LEXICAL_MANIFEST}


def current_root(folder: Path) -> Path:
    """The folder that holds the parts of an index folder's valid state.

    Raises:
        ImpRAGError: ``state.json`` is damaged.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return folder
    try:
        content = read_json(pointer)
    except ImpRAGError:
        content = None
    number = content.get("state") if isinstance(content, dict) else None
    if not isinstance(number, int) or number < 1:
        raise ImpRAGError(
            f"{pointer} is damaged: it names no state; build the index again, with --overwrite"
        )
    return folder / STATES / f"{number:06}"


def folder_of(root: Path) -> Path:
    """The index folder of a state's parts; the inverse of :func:`current_root`."""
    return root.parent.parent if root.parent.name == STATES else root


def next_root(folder: Path) -> Path:
    """Where the state after the valid one is made."""
    return folder / STATES / f"{_number(current_root(folder)) + 1:06}"


def make_current(root: Path) -> None:
    """Let a finished state be the valid one."""
    write_json(folder_of(root) / POINTER, {"format_version": 1, "state": _number(root)})


def remove_states(folder: Path, keep: int) -> None:
    """Delete the states before the valid one, and unfinished ones.

    A state with vectors on a server that fails stays whole, and a note says so; the next call
    deletes it.

    Args:
        folder: the index folder; nobody else may be updating it.
        keep: number of states before the valid one that stay.
    """
    valid = _number(current_root(folder))
    for root in _states(folder):
        if not valid - keep <= _number(root) <= valid:
            try:
                _delete(root)
            except ImpRAGError as error:
                print(f"note: {root} stays for now: {error}", file=sys.stderr)


def forget_states(folder: Path) -> None:
    """Delete all states of an index folder for a new build, even if ``state.json`` is damaged.

    Raises:
        ImpRAGError: the folder holds no index, or a server with vectors of a state fails; that
            state and later ones are as before then.
    """
    with only_builder(folder / STATES):
        roots = _states(folder)
        if not any((root / CORPUS / CORPUS_MANIFEST).is_file() for root in roots):
            raise ImpRAGError(
                f"{folder / POINTER} is in the way and belongs to no index; choose another folder"
            )
        for root in roots:
            _delete(root)
        with contextlib.suppress(OSError):
            (folder / STATES).rmdir()
        (folder / POINTER).unlink()


def _states(folder: Path) -> list[Path]:
    """The folders of all states, in order, whether or not they are whole."""
    numbered = (folder / STATES).glob("[0-9]" * 6)
    return [folder, *sorted(path for path in numbered if path.is_dir())]


def _number(root: Path) -> int:
    return int(root.name) if root.parent.name == STATES else 0


def _delete(root: Path) -> None:
    """Delete a state, with its vectors if they lie on a server.

    Raises:
        ImpRAGError: the server fails. Nothing is deleted then.
    """
    drop_vectors(root / INDEX)
    own = [root / name for name, file in _MANIFESTS.items() if (root / name / file).is_file()]
    if folder_of(root) != root:
        own = [root]
    elif own:
        for name in (CUT, CUT_TOKENS):
            (root / name).unlink(missing_ok=True)
    for path in own:
        shutil.rmtree(path, ignore_errors=True)  # Windows keeps files that are open
