"""Resumable builds: a working folder with a plan, and files that are named by their checksum.

A build of ``OUT`` works in the folder ``OUT.building`` next to it. ``plan.json`` there holds the
settings that all parts share. Parts are written atomically, and the finished folder becomes ``OUT``
in one step.
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

from imprag.errors import FaultError, ImpRAGError
from imprag.io.files import atomic_path, read_json, sha256, write_error, write_json

_Manifest = TypeVar("_Manifest")


@dataclass(frozen=True)
class StoredFile:
    """A file of a finished folder: its name, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str

    def check(self, folder: Path) -> None:
        """Check that the file exists and has its size, without reading it.

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
    """Write a file with its checksum in its name: ``ids.arrow`` becomes ``ids-<16 digits>.arrow``.

    Such a file never changes, and no other content has its name. So the files of a folder's new
    state can lie next to those of the old one, until the manifest names the new ones in one step.

    Args:
        folder: the folder; created if it is missing.
        name: the name without the checksum.
        write: a function that writes the content into the open file.

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
    """The files ``<number>-<checksum>`` that :func:`write_file` has written, by number."""
    return {int(path.name.partition("-")[0]): path for path in folder.glob("[0-9]*-*")}


def check_name(path: Path) -> str:
    """Compare a file with the checksum in its name.

    Returns:
        The complete SHA-256.

    Raises:
        ImpRAGError: the file was changed.
    """
    digest = sha256(path)
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise ImpRAGError(
            f"{path} is damaged (its checksum differs); delete it and run the same command "
            "again, which rebuilds only this part"
        )
    return digest


def building_folder(out: Path) -> Path:
    """The folder that holds the parts of ``out`` until it is finished."""
    return out.with_name(f"{out.name}.building")


def is_free(path: Path) -> bool:
    """Whether a folder can be created at a path: nothing is there, or only an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def check_free(path: Path) -> None:
    """Refuse a path at which no folder can be created.

    Raises:
        ImpRAGError: the path is not free, as defined by :func:`is_free`.
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
    """Create the working folder, or resume in one with the same plan.

    Args:
        work: the working folder, from :func:`building_folder`.
        plan: everything that decides the parts, as JSON values.
        alone: whether the caller holds the lock of :func:`~imprag.io.locking.only_builder`.
            Temporary files then belong to killed builds, and are deleted.
        overwrite: delete an unfinished build with another plan. By default it is an error.

    Raises:
        ImpRAGError: the folder has another plan, or holds other files.
    """
    plan_file = work / "plan.json"
    if plan_file.is_file() and (other := differences(plan, read_plan(work))):
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
    """Delete the temporary files of killed builds in a folder. The caller must hold its lock."""
    for scratch in folder.glob(".tmp-*"):
        shutil.rmtree(scratch, ignore_errors=True)


OVERWRITE = "run the command again with --overwrite (in Python, overwrite=True) to rebuild it"
"""Advice for a folder that holds another build."""


def read_plan(work: Path) -> dict[str, Any]:
    """The plan of an unfinished build; empty if there is none, or it is damaged."""
    try:
        plan = read_json(work / "plan.json")
    except ImpRAGError:
        return {}
    return plan if isinstance(plan, dict) else {}


def remove_work(work: Path) -> None:
    """Delete a working folder's build files, and the folder unless it holds other files.

    The plan is deleted first, so that a kill in the middle leaves nothing that could be resumed.
    """
    (work / "plan.json").unlink(missing_ok=True)
    for name in ("index", "shards", "parts", ".tmp-*"):
        for path in work.glob(name):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def discard(folder: Path, work: Path) -> None:
    """Move a finished folder to the temporary files of ``work`` in one step, then delete it.

    A kill in the middle leaves an unfinished build, never an incomplete folder under this name.
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
        ImpRAGError: something else has that name by now, or the parent cannot be written.
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
        name: the name of the manifest's file.
        what: the kind of folder for messages, such as "index".
        command: the command that makes such a folder, such as "imprag index".
        format_version: the format version that can be read.
        parse: a function that makes the manifest from the file's content.

    Raises:
        ImpRAGError: the folder is missing, unfinished or of another kind, its format version is
            not the given one, or the manifest is damaged.
    """
    path = folder / name
    if not path.is_file():
        building = building_folder(folder)
        if building.is_dir():
            raise ImpRAGError(
                f"the {what} {folder} is not finished (its parts are in {building}); run the "
                "command that builds it again, and it resumes where it stopped"
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
    """Refuse a folder that was made from another model or corpus.

    Args:
        what: the kind of folder for messages, such as "index".
        command: the command that builds it again.
        made: for each input, the words for a difference ("by another model"), the expected
            fingerprint (None accepts any), and the folder's fingerprint.

    Raises:
        ImpRAGError: the folder's fingerprint differs from the expected one.
    """
    for how, wanted, own in made:
        if wanted is not None and wanted != own:
            if is_of_earlier_version(own, wanted):
                raise ImpRAGError(
                    f"the {what} was made by an earlier version of ImpRAG, which did not record "
                    f"the model's configuration and tokenizer; build it again: {command}"
                )
            raise ImpRAGError(
                f"the {what} was made {how} (fingerprint {own[:12]}, not {wanted[:12]}); choose "
                f"the one that belongs to it, or build it again with: {command}"
            )


def is_of_earlier_version(own: str, wanted: str) -> bool:
    """Whether a model's fingerprint has the earlier form, which covered only rounded weights."""
    return wanted.startswith("v2-") and re.fullmatch("[0-9a-f]{32}", own) is not None


def damaged(path: Path, reason: str) -> FaultError:
    """The error for a file that differs from what was written."""
    return FaultError(f"{path} is damaged ({reason}); delete its folder and build it again")


def versions(**engines: str) -> dict[str, str]:
    """The versions of ImpRAG and of the given libraries, for a manifest."""
    return {"imprag": importlib.metadata.version("imprag"), **engines}


def readable_size(number: float) -> str:
    """A number of bytes in words, such as ``76.3 MB``."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} PB"
