"""The states of an index folder: an update makes a new one, and a small file says which is valid.

A folder is built in its first state, with the parts in the folder itself. An update writes all
parts of the next state into ``states/<number>/``; then ``state.json`` names it, in one step. So
whoever opens the folder, at any moment, finds a whole state. The state before stays on disk for
those who have it open, until the next update or ``imprag index --compact``.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from imprag.errors import ImpRAGError
from imprag.io.files import read_json, write_json

STATES = "states"
POINTER = "state.json"


def current_root(folder: Path) -> Path:
    """The folder that holds the parts of an index folder's valid state.

    Raises:
        ImpRAGError: ``state.json`` is damaged.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return folder
    content = read_json(pointer)
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


def remove_states(
    folder: Path, keep: int, parts: tuple[str, ...], before: Callable[[Path], None]
) -> None:
    """Delete the states before the valid one, and unfinished ones.

    Args:
        folder: the index folder; nobody else may be updating it.
        keep: number of states before the valid one that stay.
        parts: names of a state's files and folders, to delete the first one by.
        before: called with the folder of a state before it is deleted.
    """
    valid = _number(current_root(folder))
    kept = range(valid - keep, valid + 1)
    for path in (folder / STATES).glob("*"):
        if not (path.name.isdecimal() and int(path.name) in kept):
            before(path)
            _delete(path)
    if 0 not in kept:
        before(folder)
        for name in parts:
            _delete(folder / name)


def forget_states(folder: Path) -> None:
    """Let the first state, or nothing, be valid again, and delete all later ones."""
    (folder / POINTER).unlink(missing_ok=True)
    shutil.rmtree(folder / STATES, ignore_errors=True)


def _number(root: Path) -> int:
    return int(root.name) if root.parent.name == STATES else 0


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # Windows keeps files that are open
    else:
        path.unlink(missing_ok=True)
