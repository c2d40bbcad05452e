"""Resumable builds: a working folder, a plan, and files that carry their checksum.

A build writes into ``OUT.building``, next to ``OUT``. Its ``plan.json`` holds the settings that all
parts share; parts are written atomically; the finished folder is renamed to ``OUT`` in one step.
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path, read_json, sha256, write_error, write_json

_Manifest = TypeVar("_Manifest")


@dataclass(frozen=True)
class StoredFile:
    """A file of a finished folder: its name there, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str

    def check(self, folder: Path) -> None:
        """Compare the size, without reading the file.

        Raises:
            ImpRAGError: the file is missing or has another size.
        """
        path = folder / self.name
        if path.parent != folder or not path.is_file():
            raise damaged(path, "it is missing")
        if (size := path.stat().st_size) != self.bytes:
            raise damaged(path, f"{size} bytes instead of {self.bytes}")

    def verify(self, folder: Path) -> None:
        """Read the file and compare its checksum.

        Raises:
            ImpRAGError: the file was changed.
        """
        if sha256(folder / self.name) != self.sha256:
            raise damaged(folder / self.name, "its checksum differs")


def write_file(folder: Path, name: str, write: Callable[[BinaryIO], object]) -> StoredFile:
    """Write a file that carries its checksum in its name: ``ids.arrow``, ``ids-<16 digits>.arrow``.

    Such a file never changes and its name is unique, so the new state of a folder can coexist with
    the old one until the manifest names the new files, in one step.

    Args:
        folder: the folder, created if missing.
        name: the file's name without the checksum.
        write: called with the open file.

    Raises:
        ImpRAGError: the disk is full or the folder cannot be written.
    """
    path = folder / name
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        write(stream)
    digest = sha256(path)
    final = path.with_stem(f"{path.stem}-{digest[:16]}")
    os.replace(path, final)
    return StoredFile(final.name, final.stat().st_size, digest)


def numbered_files(folder: Path) -> dict[int, Path]:
    """The files ``<number>-<checksum>`` written by :func:`write_file`, by number."""
    return {int(path.name.partition("-")[0]): path for path in folder.glob("[0-9]*-*")}


def check_name(path: Path) -> str:
    """Compare a file with the checksum in its name.

    Returns:
        the full SHA-256.

    Raises:
        ImpRAGError: the file was changed.
    """
    digest = sha256(path)
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise ImpRAGError(
            f"{path} is damaged (its checksum differs); delete it and rerun the same command: only "
            "this part is built again"
        )
    return digest


def building_folder(out: Path) -> Path:
    """The folder that holds the parts of ``out`` until it is finished."""
    return out.with_name(f"{out.name}.building")


def is_free(path: Path) -> bool:
    """Whether a folder can be created here: there is nothing, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def check_free(path: Path) -> None:
    """Refuse a path that is taken.

    Raises:
        ImpRAGError: the path is not free (:func:`is_free`).
    """
    if not is_free(path):
        raise ImpRAGError(f"{path} exists already; delete it or choose another folder")


_IN_WORDS = {"corpus_fingerprint": "corpus", "model_fingerprint": "model"}


def differences(wanted: dict[str, Any], there: dict[str, Any]) -> str:
    """The names of the settings that differ, for messages; empty if none does."""
    return ", ".join(
        _IN_WORDS.get(key, key) for key in sorted(wanted) if there.get(key) != wanted[key]
    )


def claim(work: Path, plan: dict[str, Any], *, alone: bool, overwrite: bool = False) -> None:
    """Create the working folder, or continue in one that has the same plan.

    Args:
        work: the folder of :func:`building_folder`.
        plan: everything that determines the parts, as JSON.
        alone: the caller holds the lock of :func:`~imprag.io.locking.only_builder`, so temporary
            files are those of killed builds and are deleted.
        overwrite: delete an unfinished build that has another plan.

    Raises:
        ImpRAGError: the folder has another plan, or holds something else.
    """
    plan_file = work / "plan.json"
    if plan_file.is_file() and (other := differences(plan, _plan(plan_file))):
        if not overwrite:
            raise ImpRAGError(
                f"{work} holds an unfinished build with another {other}; {OVERWRITE}, or build "
                "with the same settings as before"
            )
        remove_work(work)
    if not plan_file.is_file():
        if work.exists() and any(not path.name.startswith(".tmp-") for path in work.iterdir()):
            raise ImpRAGError(
                f"{work} is needed for building, but holds something else; move it away"
            )
        write_json(plan_file, plan)
    if alone:
        for folder in (work, work / "shards", work / "parts"):
            sweep(folder)


def sweep(folder: Path) -> None:
    """Delete temporary files that killed builds left in a folder; only under its lock."""
    for scratch in folder.glob(".tmp-*"):
        shutil.rmtree(scratch, ignore_errors=True)


OVERWRITE = "rerun the command with --overwrite (in Python, overwrite=True) to build it again"
"""The advice for a folder that holds another build."""


def _plan(file: Path) -> dict[str, Any]:
    try:
        plan = read_json(file)
    except ImpRAGError:
        return {}
    return plan if isinstance(plan, dict) else {}


def remove_work(work: Path) -> None:
    """Delete what builds write into a working folder, and the folder unless it holds more.

    The plan is deleted first: after a kill, nothing is left that a later build would continue.
    """
    (work / "plan.json").unlink(missing_ok=True)
    for name in ("index", "shards", "parts", ".tmp-*"):
        for path in work.glob(name):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def discard(folder: Path, work: Path) -> None:
    """Move a finished folder among the temporary files of ``work`` in one step, and delete it.

    A kill in the middle leaves an unfinished build, never a part of the folder under its name.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=work))
        os.replace(folder, scratch / "old")
    except OSError as error:
        raise write_error(folder, error) from error
    shutil.rmtree(scratch, ignore_errors=True)


def move_into_place(made: Path, out: Path) -> None:
    """Rename a finished folder to its final name.

    Raises:
        ImpRAGError: the name is taken by now, or the parent cannot be written.
    """
    try:
        os.replace(made, out)
    except OSError as error:
        raise write_error(out, error) from error


def read_manifest(
    folder: Path,
    name: str,
    what: str,
    command: str,
    format_version: int,
    parse: Callable[[dict[str, Any]], _Manifest],
) -> _Manifest:
    """Read the manifest of a finished folder.

    Args:
        folder: the finished folder.
        name: the manifest's file name.
        what: the kind of folder, for messages: "index".
        command: the command that makes one, such as "imprag index".
        format_version: the version that can be read.
        parse: turns the file's content into the manifest.

    Raises:
        ImpRAGError: the folder is missing, unfinished or of another kind, its format is unknown, or
            the manifest is damaged.
    """
    path = folder / name
    if not path.is_file():
        building = building_folder(folder)
        if building.is_dir():
            raise ImpRAGError(
                f"the {what} {folder} is not finished (its parts are in {building}); rerun the "
                "command that builds it, and it continues where it stopped"
            )
        raise ImpRAGError(
            f"{folder} holds no {what} (there is no {name}); make one with: {command}"
        )
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != format_version:
        raise ImpRAGError(
            f"{path} has format version {version}, this ImpRAG reads {format_version}; build the "
            f"{what} again with: {command} --out {folder} --overwrite"
        )
    try:
        return parse(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ImpRAGError(
            f"{path} is damaged ({error}); build the {what} again with: {command} --out {folder} "
            "--overwrite"
        ) from error


def check_fingerprints(what: str, command: str, *made: tuple[str, str | None, str]) -> None:
    """Refuse a folder whose fingerprints are not the wanted ones.

    Args:
        what: the kind of folder: "index".
        command: the command that builds it again.
        made: for each fingerprint, what a difference means ("by another model"), the wanted
            fingerprint, if any, and the folder's own.

    Raises:
        ImpRAGError: a wanted fingerprint differs from the folder's.
    """
    for how, wanted, own in made:
        if wanted is not None and wanted != own:
            if is_of_earlier_version(own, wanted):
                raise ImpRAGError(
                    f"the {what} was made by an earlier version of ImpRAG, which did not note the "
                    f"model's configuration and tokenizer; build it again: {command}"
                )
            raise ImpRAGError(
                f"the {what} was made {how} (fingerprint {own[:12]}, not {wanted[:12]}); choose "
                f"the one that belongs to it, or build it again with: {command}"
            )


def is_of_earlier_version(own: str, wanted: str) -> bool:
    """Whether a model's fingerprint has the earlier form, which covers rounded weights only."""
    return wanted.startswith("v2-") and re.fullmatch("[0-9a-f]{32}", own) is not None


def damaged(path: Path, reason: str) -> ImpRAGError:
    """The error for a file that is not what was written."""
    return ImpRAGError(f"{path} is damaged ({reason}); delete its folder and build it again")


def versions(**engines: str) -> dict[str, str]:
    """Versions of ImpRAG and of the given libraries, for a manifest."""
    return {"imprag": importlib.metadata.version("imprag"), **engines}


def readable_size(number: float) -> str:
    """A number of bytes for people: ``76.3 MB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
