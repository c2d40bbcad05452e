"""Selects the files of a folder that belong to a corpus."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


@dataclass
class FolderFiles:
    """The files of a folder and its subfolders, sorted by path.

    Attributes:
        files: the files to read.
        unread: the number of other files, by reason. Hidden files and files that operating
            systems create are not counted.
    """

    files: list[Path] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def is_special(path: Path) -> bool:
    """Whether a path is a FIFO, socket or device: reading one may block."""
    mode = path.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def kind_by_name(file: Path) -> str:
    """The kind of a file according to its name, as :class:`FolderFiles` counts it."""
    return f"{file.suffix.lower()} files" if file.suffix else "other files"


def folder_files(folder: Path, kind_if_unread: Callable[[Path], str | None]) -> FolderFiles:
    """Find the files to read in a folder and its subfolders.

    Links to folders are followed; each folder is visited once.

    Args:
        folder: the folder.
        kind_if_unread: decides by a file's name, and possibly its beginning, whether it is read:
            None if it is, otherwise the kind to count it as.

    Raises:
        OSError: a folder cannot be listed.
    """
    found = FolderFiles()
    for file in sorted(_all_files(folder, set())):
        try:
            special = is_special(file)
        except OSError:
            found.unread["dead links"] += 1
            continue
        if special:
            found.unread["FIFOs, sockets or devices"] += 1
        elif (kind := kind_if_unread(file)) is None:
            found.files.append(file)
        else:
            found.unread[kind] += 1
    return found


def _all_files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    pending = [folder]
    while pending:
        current = pending.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
                    continue
                if _is_folder(entry):
                    pending.append(current / entry.name)
                else:
                    yield current / entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
