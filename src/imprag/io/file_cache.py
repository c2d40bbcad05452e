"""A bounded folder of files that processes share; the least recently used files leave."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

import filelock

from imprag.errors import ImpRAGError
from imprag.io.files import cache_dir

KV_SIZE = "IMPRAG_KV_CACHE_GB"
"""The environment variable with the size of :func:`kv_files` in gigabytes; 0 turns it off."""

_SUFFIX = ".cached"
_LOCK_SECONDS = 10  # a writer holds the lock for milliseconds, unless it was stopped


class FileCache:
    """Bytes by name, one file each, in a folder of bounded size.

    Several processes may use the folder at the same time. Writers take turns by a lock of the
    operating system, which a killed process loses. Readers take no lock: a file gets its name when
    it is complete, and begins with a checksum of its name and content, so nothing half-written or
    damaged is ever returned. The modification time of a file is the time of its last use.

    Args:
        folder: the folder; the first write creates it, readable for its owner alone.
        max_bytes: greatest size of all files together, at any time.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def read(self, name: str) -> bytes | None:
        """The content of a name, which becomes the most recently used; None if there is none.

        A damaged file is deleted.
        """
        path = self._path(name)
        try:
            with open(path, "rb", buffering=0) as file:
                checksum = file.read(4)
                content = file.read()
        except OSError:
            return None
        whole = checksum == _checksum(name, content)
        with contextlib.suppress(OSError):  # such as a folder that can only be read
            if whole:
                os.utime(path)
            else:
                path.unlink()
        return content if whole else None

    def write(self, contents: Iterable[tuple[str, bytes]]) -> None:
        """Store contents by their names, and delete the files that were used longest ago.

        Contents that do not fit into the cache together with those before them are not stored.

        Args:
            contents: names with contents; one name always has the same content.

        Raises:
            OSError, NotImplementedError: the folder cannot be written, the disk is full, or there
                is no lock on this file system or another process does not release it. What was
                written before stays.
        """
        with self._only_writer():
            held = self._held()
            size = sum(held.values())
            for name, content in contents:
                path = self._path(name)
                if path in held:  # from another process, since this one looked for it
                    continue
                size = self._make_room(held, size, 4 + len(content))
                if size + 4 + len(content) <= self.max_bytes:
                    with open(self._unfinished, "wb") as file:
                        file.write(_checksum(name, content))
                        file.write(content)
                    os.replace(self._unfinished, path)
                    size += 4 + len(content)

    def clear(self) -> None:
        """Delete all files.

        Raises:
            OSError, NotImplementedError: as for :meth:`write`.
        """
        if self.folder.is_dir():
            with self._only_writer():
                for path in self._held():
                    path.unlink(missing_ok=True)

    def usage(self) -> tuple[int, int]:
        """Number of files, and their size in bytes."""
        held = self._held()
        return len(held), sum(held.values())

    @property
    def _unfinished(self) -> Path:
        """The file that is being written; there is one at most, since writers take turns."""
        return self.folder / "unfinished"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    @contextlib.contextmanager
    def _only_writer(self) -> Iterator[None]:
        """Hold the lock; an unfinished file of a killed writer is deleted."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / "lock", timeout=_LOCK_SECONDS):
            self._unfinished.unlink(missing_ok=True)
            try:
                yield
            finally:
                self._unfinished.unlink(missing_ok=True)

    def _held(self) -> dict[Path, int]:
        """The sizes of all files, the one that was used longest ago first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # a reader found it damaged
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        return {path: size for _, path, size in sorted(found)}

    def _make_room(self, held: dict[Path, int], size: int, needed: int) -> int:
        """Delete files until another one fits, if it can.

        Args:
            held: the files that may leave; those that do are removed.
            size: of all files.
            needed: the size of the file to come.

        Returns:
            the size of all files that remain.
        """
        while held and needed <= self.max_bytes < size + needed:
            path = next(iter(held))
            freed = held.pop(path)
            with contextlib.suppress(PermissionError):  # on Windows, while it is read
                path.unlink(missing_ok=True)
                size -= freed
        return size


def kv_files() -> FileCache:
    """The files with the keys and values of the passages that were read last.

    They are in :func:`~imprag.io.files.cache_dir` and take at most 1 GB, or as much as ``KV_SIZE``
    says.

    Raises:
        ImpRAGError: ``KV_SIZE`` is no size.
    """
    given = os.environ.get(KV_SIZE) or "1"
    try:
        size = float(given)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise ImpRAGError(
            f"{KV_SIZE} is {given!r}; set it to the size of the KV cache on disk in gigabytes, "
            "such as 2.5, or to 0 to turn the cache off"
        )
    return FileCache(cache_dir() / "kv", int(size * 10**9))


def _checksum(name: str, content: bytes) -> bytes:
    return crc32(content, crc32(name.encode())).to_bytes(4, "big")
