"""Files that are either complete or absent: the cache folder, atomic writes, checksums."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from imprag.errors import ImpRAGError


def cache_dir() -> Path:
    """The folder for what ImpRAG can rebuild: ``$IMPRAG_CACHE``, else the platform's cache."""
    configured = os.environ.get("IMPRAG_CACHE")
    return expand_home(configured) if configured else Path(platformdirs.user_cache_dir("imprag"))


def expand_home(path: Path | str) -> Path:
    """The path with a leading ``~`` replaced by the home directory, as a shell would."""
    return Path(os.path.expanduser(path))


def short_name(name: str, limit: int = 80) -> str:
    """The beginning of a file name, at most ``limit`` bytes long and valid UTF-8.

    File systems allow 255 bytes, and a character can take four.
    """
    return name.encode("utf-8", "ignore")[:limit].decode("utf-8", "ignore")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success it is renamed to ``path``.

    The block may create a file or a folder there. A file replaces an existing file. If another
    process finished the folder first, its folder is kept and ours is dropped: both hold the same.
    If the block fails, nothing is left behind; after a kill, only a ``.tmp-`` entry that is never
    read.

    Raises:
        ImpRAGError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".tmp-{short_name(path.name)}-"
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    except OSError as error:
        raise write_error(path, error) from error
    try:
        temporary = scratch / path.name
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError:
            if not (path.is_dir() and temporary.is_dir()):
                raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_ADVICE = {
    errno.EACCES: "choose another folder, or ask for permission to write there",
    errno.EPERM: "choose another folder, or ask for permission to write there",
    errno.EROFS: "choose another folder: this file system is read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose another folder: a part of this path is a file",
    errno.EEXIST: "choose another folder: a part of this path is a file",
    errno.EISDIR: "choose another name: this is a folder",
}


def write_error(path: Path, error: OSError) -> ImpRAGError:
    """The error for a file or folder that cannot be written, with advice."""
    advice = _ADVICE.get(error.errno or 0, "free some space or choose another folder")
    return ImpRAGError(
        f"cannot write {path}: {error.strerror or error}; {advice}, then run the same command again"
    )


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically.

    Raises:
        ImpRAGError: the disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ImpRAGError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ImpRAGError(f"{path} does not exist") from error
    except OSError as error:
        raise ImpRAGError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise ImpRAGError(f"{path} is not valid JSON: it is nested too deeply") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ImpRAGError(f"{path} is not valid JSON: {error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(path: Path, files: Iterable[Path] | None = None) -> str:
    """Hexadecimal SHA-256 of a file's bytes, or of all files in a folder with their names.

    Only regular files count: dead links, FIFOs and devices are never opened. An unreadable file
    counts as "unreadable"; the code that needs it reports the error.

    Args:
        path: a file or a folder.
        files: the files of the folder that count; all if not given.
    """
    if not path.is_dir():
        return _file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*") if files is None else files):
        if file.is_file():
            name = os.fsencode(os.path.relpath(file, path))
            digest.update(b"%d %s %s\n" % (len(name), name, _file_digest(file).encode()))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else "no regular file"
    except OSError:
        return "unreadable"
