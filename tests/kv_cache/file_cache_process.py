"""Uses a file cache in a process of its own, to be killed or to run beside others.

Usage: file_cache_process.py FOLDER MAX_BYTES STEP: is killed in a write that replaces an old file,
at STEP, one of ``STEPS``.
Or: file_cache_process.py FOLDER MAX_BYTES FIRST LAST: writes and reads the numbers from FIRST to
LAST, and checks everything that it reads.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from imprag.io import file_cache
from imprag.io.file_cache import FileCache

SIZE = 1000
STEPS = ("locked", "evicted", "half written", "written", "renamed")


def content(number: int) -> bytes:
    """The content of a number's name, 1000 bytes in the file."""
    return f"{number} ".encode().ljust(SIZE - 4, b".")


def name(number: int) -> str:
    return f"{number:04}"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Half:
    """An open file; half of a content is written when the process is killed."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = path.open(mode, buffering=0)

    def __enter__(self) -> "Half":
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        if len(data) > 4:  # more than the checksum
            kill()


def killed_at(step: str, cache: FileCache) -> None:
    """Kill this process at a step of writing number 99."""
    replace, unlink = os.replace, Path.unlink

    def killed(*arguments: Any) -> None:
        kill()

    def renamed(*arguments: Any) -> None:
        replace(*arguments)
        kill()

    def evicted(path: Path, **settings: Any) -> None:
        unlink(path, **settings)
        if path.suffix == ".cached":
            kill()

    match step:
        case "locked":
            cache._held = killed
        case "evicted":
            Path.unlink = evicted
        case "half written":
            file_cache.open = Half
        case "written":
            os.replace = killed
        case "renamed":
            os.replace = renamed
    cache.write([(name(99), content(99))])


def main(folder: str, max_bytes: str, *what: str) -> None:
    cache = FileCache(Path(folder), int(max_bytes))
    if len(what) == 1:
        killed_at(what[0], cache)
        return
    first, last = map(int, what)
    for number in range(first, last):
        cache.write((name(one), content(one)) for one in (number, number + 1))
        for one in range(first, last):
            assert cache.read(name(one)) in (None, content(one))


if __name__ == "__main__":
    main(*sys.argv[1:])
