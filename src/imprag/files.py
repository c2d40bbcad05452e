"""Files that are either whole or absent: the cache folder, atomic writing, checksums."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from imprag.errors import ImpRAGError


def cache_dir() -> Path:
    """What ImpRAG can make again lies here: ``$IMPRAG_CACHE``, else the platform's cache."""
    configured = os.environ.get("IMPRAG_CACHE")
    return Path(configured) if configured else Path(platformdirs.user_cache_dir("imprag"))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``.

    The block may create a file or a folder there. A file replaces a file that exists. A folder
    that another process finished first is kept and ours dropped: both hold the same. If the block
    fails, nothing is left behind; after a kill, only a ``.tmp-`` entry that nobody reads.

    Raises:
        ImpRAGError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        temporary = scratch / path.name
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_error(path: Path, error: OSError) -> ImpRAGError:
    return ImpRAGError(
        f"cannot write {path}: {error.strerror or error}; "
        "free some space or choose another folder, then run the same command again"
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
        ImpRAGError: the file is missing, cannot be read, or is no JSON.
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
