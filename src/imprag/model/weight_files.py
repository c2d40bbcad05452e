"""Files of weights: what is no such file is named, and nothing is ever unpickled from them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_NAMED = 3


def named(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_readable(path: Path) -> None:
    """Refuse what is no file that can be read, or a Git LFS pointer to one.

    Raises:
        ImpRAGError: so.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise ImpRAGError(f"cannot read {path}: {error.strerror or error}") from error
    if start == _POINTER:
        raise ImpRAGError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")


def check_safetensors(path: Path) -> None:
    """Refuse a file that is not in the safetensors format, or was cut.

    Raises:
        ImpRAGError: so.
    """
    check_readable(path)
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error


def check_model_files(folder: Path) -> None:
    """Look into the files of a model folder, without reading the weights.

    Raises:
        ImpRAGError: a file is missing, damaged, or a pointer.
    """
    for path in [*folder.glob("*.json"), *folder.glob("*.model")]:
        check_readable(path)
    read_json(folder / "config.json")
    for path in _files(folder):
        check_safetensors(path)
    for path in (*folder.glob("*.bin"), *folder.glob("*.pt")):
        check_readable(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ImpRAGError: there is no such file, or it is damaged.
    """
    check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error


class TensorFiles:
    """The weights of a model folder by their names, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        for path in _files(folder):
            with safe_open(path, "pt") as file:
                self._file_of |= dict.fromkeys(file.keys(), path)

    def get(self, name: str) -> Tensor | None:
        """A tensor as it is in its file."""
        if (path := self._file_of.get(name)) is None:
            return None
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def _files(folder: Path) -> Iterable[Path]:
    """The safetensors files that transformers reads for a folder."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        return []
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise ImpRAGError(f"{folder / INDEX} is damaged: it has no weight_map")
    return [folder / name for name in sorted(set(places.values()))]


def _broken(path: Path, error: Exception) -> ImpRAGError:
    return ImpRAGError(
        f"{path} is no safetensors file, or was cut ({str(error).splitlines()[0]}); "
        "fetch or copy it again"
    )
