"""One builder at a time: other processes that want the same folder wait for it."""

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
def only_builder(out: Path) -> Iterator[bool]:
    """Hold the lock on a folder that is being built; wait while another process holds it.

    The operating system's advisory lock on the file ``OUT.building.lock`` is used. The system
    releases it when the holder dies, so a killed build leaves no stale lock. It works on NFS if the
    server offers locks (NFSv4, or NFSv3 with lockd).

    Args:
        out: the folder to build.

    Yields:
        whether the lock is held: False on a file system without locks, where a note says so.

    Raises:
        ImpRAGError: the lock file cannot be written.
    """
    path = out.with_name(f"{out.name}.building.lock")
    lock = filelock.FileLock(path, thread_local=False)
    held = True
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
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
        # Deleted while it is held: filelock discards a lock on a file that was deleted meanwhile.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Hold the lock on a folder that does not exist yet and is about to be built.

    Args:
        out: the folder; an empty one counts as missing.

    Raises:
        ImpRAGError: the folder is taken, perhaps by the process that held the lock before.
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
