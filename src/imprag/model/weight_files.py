"""Weight files: broken files are named in errors, and only tensors are unpickled."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.io.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_NAMED = 3


def named(names: Sequence[str]) -> str:
    """The first three of some names, and the number of the others."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_readable(path: Path) -> None:
    """Refuse a file that cannot be read, or a Git LFS pointer in its place.

    Raises:
        ImpRAGError: the file cannot be read, or is a pointer.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise ImpRAGError(f"cannot read {path}: {error.strerror or error}") from error
    if start == _POINTER:
        raise ImpRAGError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")


def check_safetensors(path: Path) -> None:
    """Refuse a file that is not in the safetensors format or is truncated.

    Raises:
        ImpRAGError: the file is not a complete safetensors file.
    """
    check_readable(path)
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error


def check_model_files(folder: Path) -> None:
    """Check the files of a model folder, without reading the weights.

    Raises:
        ImpRAGError: a file is missing, damaged or a pointer, or has quantised weights that
            ``config.json`` does not mention.
    """
    for path in [*folder.glob("*.json"), *folder.glob("*.model")]:
        check_readable(path)
    config = read_json(folder / "config.json")
    is_quantized = isinstance(config, dict) and config.get("quantization_config") is not None
    for path in _files(folder):
        check_safetensors(path)
        if not is_quantized:
            _check_numbers(path)
    for path in (*folder.glob("*.bin"), *folder.glob("*.pt")):
        check_readable(path)


def _check_numbers(path: Path) -> None:
    """Refuse weights that are not floating-point numbers: they would be used as they are."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            kind = file.get_slice(name).get_dtype() if name.endswith(".weight") else "F"
            if "F" not in kind:
                raise ImpRAGError(
                    f"{path} holds {name} as {kind}, but config.json names no quantization_config: "
                    "take the model before it was quantised"
                )


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
    """The weights of a model folder by name, each read on demand."""

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        self._pickled: dict[str, Tensor] = {}
        for path in _files(folder):
            with safe_open(path, "pt") as file:
                self._file_of |= dict.fromkeys(file.keys(), path)
        if not self._file_of:
            for path in folder.glob("pytorch_model*.bin"):
                self._pickled |= torch.load(path, "cpu", mmap=True, weights_only=True)

    def get(self, name: str) -> Tensor | None:
        """A tensor by name; names in files of a decoder that was saved alone lack the prefix."""
        plain = name.partition(".")[2]
        if (pickled := self._pickled.get(name, self._pickled.get(plain))) is not None:
            return pickled
        name = name if name in self._file_of else plain
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
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise ImpRAGError(f"{folder / INDEX} is damaged: it has no weight_map of file names")
    return [folder / name for name in sorted(set(places.values()))]


def _broken(path: Path, error: Exception) -> ImpRAGError:
    return ImpRAGError(
        f"{path} is no safetensors file, or was cut ({str(error).splitlines()[0]}); "
        "fetch or copy it again"
    )
