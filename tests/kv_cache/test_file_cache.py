"""The folder that processes share: what is read was written whole, and the size holds."""

import contextlib
import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from file_cache_process import SIZE, STEPS, content, name

from imprag.errors import ImpRAGError
from imprag.io import file_cache
from imprag.io.file_cache import KV_SIZE, FileCache, kv_files


def filled(folder: Path, count: int, places: int) -> FileCache:
    """A cache with places for some contents, to which numbers are written one after the other."""
    cache = FileCache(folder, places * SIZE)
    for number in range(count):
        cache.write([(name(number), content(number))])
        used(cache, number, number)
    return cache


def used(cache: FileCache, number: int, seconds: int) -> None:
    os.utime(cache._path(name(number)), (seconds, seconds))


def held(cache: FileCache, count: int = 100) -> list[int]:
    """The numbers that are stored, without a change of what was used last."""
    there = [number for number in range(count) if cache._path(name(number)).exists()]
    assert cache.usage() == (len(there), SIZE * len(there))
    return there


def size(folder: Path) -> int:
    """The size of all files in a folder that other processes may be changing."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def start(cache: FileCache, *what: object) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("file_cache_process.py")
    command = [sys.executable, script, cache.folder, cache.max_bytes, *what]
    return subprocess.Popen([str(one) for one in command], stderr=subprocess.PIPE, text=True)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 10 * SIZE)
    assert cache.read(name(1)) is None
    assert cache.usage() == (0, 0)
    cache.clear()
    assert not cache.folder.exists()
    cache.write((name(number), content(number)) for number in range(3))
    assert [cache.read(name(number)) for number in range(4)] == [*map(content, range(3)), None]
    assert cache.usage() == (3, 3 * SIZE)
    cache.clear()
    assert cache.usage() == (0, 0)
    assert cache.read(name(1)) is None


def test_the_least_recently_used_leave(tmp_path: Path) -> None:
    cache = filled(tmp_path, 5, places=4)
    assert held(cache) == [1, 2, 3, 4]
    assert cache.read(name(1)) == content(1)
    cache.write([(name(5), content(5)), (name(6), content(6))])
    assert held(cache) == [1, 4, 5, 6]


def test_a_batch_that_is_larger_than_the_cache_is_stored_in_part(tmp_path: Path) -> None:
    cache = filled(tmp_path, 2, places=3)
    cache.write((name(number), content(number)) for number in range(10, 20))
    assert held(cache) == [10, 11, 12]
    cache.write([("long", b"." * (3 * SIZE))])
    assert held(cache) == [10, 11, 12]


def test_a_smaller_bound_holds_from_the_next_write_on(tmp_path: Path) -> None:
    filled(tmp_path, 5, places=5)
    cache = FileCache(tmp_path, 2 * SIZE)
    cache.write([(name(9), content(9))])
    assert held(cache) == [4, 9]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "of another name"])
def test_a_damaged_file_is_deleted(tmp_path: Path, damage: str) -> None:
    cache = filled(tmp_path, 2, places=4)
    path = cache._path(name(0))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "flipped": whole[:500] + bytes([whole[500] ^ 1]) + whole[501:],
            "cut": whole[:-1],
            "empty": b"",
            "of another name": cache._path(name(1)).read_bytes(),
        }[damage]
    )
    assert cache.read(name(0)) is None
    assert not path.exists()
    cache.write([(name(0), content(0))])
    assert cache.read(name(0)) == content(0)


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_is_killed(tmp_path: Path, step: str) -> None:
    cache = filled(tmp_path, 3, places=3)
    child = start(cache, step)
    child.communicate()
    assert child.returncode < 0
    assert size(tmp_path) <= cache.max_bytes
    rest = {"locked": [0, 1, 2], "renamed": [1, 2, 99]}.get(step, [1, 2])
    assert held(cache) == rest
    assert all(cache.read(name(number)) == content(number) for number in rest)
    assert cache.read(name(99)) == (content(99) if step == "renamed" else None)
    cache.write((name(number), content(number)) for number in (99, 7))
    assert held(cache)[-2:] == [7, 99]
    assert size(tmp_path) <= cache.max_bytes
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".cached") == ["lock"]


def test_several_processes_fill_one_cache(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 20 * SIZE)
    cache.folder.mkdir()
    children = [start(cache, first, first + 30) for first in (0, 10, 20)]
    while any(child.poll() is None for child in children):
        # A file that is renamed meanwhile may be counted under both of its names.
        assert size(cache.folder) <= cache.max_bytes + SIZE
        time.sleep(0.005)
    assert [child.communicate()[1] for child in children] == [""] * 3
    assert size(cache.folder) <= cache.max_bytes
    numbers = held(cache)
    assert len(numbers) == 20
    assert all(cache.read(name(number)) == content(number) for number in numbers)


class Full:
    """An open file on a disk with room for half of what is written."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = path.open(mode)

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, 2, places=4)
    with monkeypatch.context() as patch:
        patch.setattr(file_cache, "open", Full, raising=False)
        with pytest.raises(OSError, match="No space left"):
            cache.write([(name(5), content(5))])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000.cached",
        "0001.cached",
        "lock",
    ]
    assert [cache.read(name(number)) for number in (0, 1, 5)] == [content(0), content(1), None]
    cache.write([(name(5), content(5))])
    assert held(cache) == [0, 1, 5]


def test_a_folder_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, 2, places=4)
    cache._path(name(1)).write_bytes(b"damaged")

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert [cache.read(name(number)) for number in range(2)] == [content(0), None]
    with pytest.raises(OSError, match="Read-only"):
        cache.write([(name(5), content(5))])


def test_the_lock_of_a_stopped_process_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(file_cache, "_LOCK_SECONDS", 0)
    cache, other = filled(tmp_path, 2, places=4), FileCache(tmp_path, 4 * SIZE)

    def contents():
        with pytest.raises(TimeoutError):
            other.write([(name(6), content(6))])
        assert other.read(name(1)) == content(1)
        yield name(5), content(5)

    cache.write(contents())
    assert held(cache) == [0, 1, 5]


def test_the_size_comes_from_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path))
    for given, expected in ((None, 10**9), ("", 10**9), ("0", 0), ("2.5", 2_500_000_000)):
        monkeypatch.delenv(KV_SIZE, raising=False)
        if given is not None:
            monkeypatch.setenv(KV_SIZE, given)
        assert (kv_files().folder, kv_files().max_bytes) == (tmp_path / "kv", expected)
    for wrong in ("many", "-1", "inf", "nan"):
        monkeypatch.setenv(KV_SIZE, wrong)
        with pytest.raises(ImpRAGError, match="in gigabytes, such as 2.5, or to 0"):
            kv_files()
