"""Locks: processes that need the same folder wait for the one that builds it."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from imprag.io.building import check_free
from imprag.io.files import write_error

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def only_builder(out: Path, *, inside: bool = False) -> Iterator[bool]:
    """Hold the lock on a folder that is being built; wait while another process holds it.

    The lock is an advisory lock of the operating system on the file ``OUT.building.lock``. The
    system releases it when its holder dies, so a killed build leaves no stale lock. It works on NFS
    if the server offers locks (NFSv4, or NFSv3 with lockd).

    Args:
        out: the folder to build.
        inside: keep the lock file in the folder, which is created, rather than next to it.

    Yields:
        Whether the lock is held. It is not on a file system without locks; a note on standard
        error says so.

    Raises:
        ImpRAGError: the lock file cannot be written.
    """
    path = out / "building.lock" if inside else out.with_name(f"{out.name}.building.lock")
    lock = filelock.FileLock(path, thread_local=False)
    held = True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            print(f"another process is building {out}; waiting for it", file=sys.stderr, flush=True)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(out, error) from error
        print(
            f"note: {out.parent} is on a file system without locks; do not build {out.name} "
            "twice at the same time",
            file=sys.stderr,
        )
        held = False
    try:
        yield held
    finally:
        # Delete the file before releasing it: filelock discards a lock on a deleted file.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Hold the lock on a new folder while it is built.

    Args:
        out: the folder, which must be missing or empty.

    Raises:
        ImpRAGError: the folder exists, possibly because another process has just built it.
    """
    check_free(out)
    with only_builder(out):
        check_free(out)
        yield


def make_once(folder: Path, make: Callable[[], object]) -> Path:
    """The folder, built by ``make`` if it is missing; concurrent processes build it only once."""
    if not folder.is_dir():
        with only_builder(folder):
            if not folder.is_dir():
                make()
    return folder
