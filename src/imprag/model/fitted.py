"""The index that ``imprag adapt`` fitted a model to, in a file of the model's folder."""

from pathlib import Path

from imprag.errors import ImpRAGError
from imprag.io.files import read_json, write_json

FITTED = "fitted_to.json"


def write_fitted_index(folder: Path, index: Path | None) -> None:
    """Record which index a model was fitted to.

    Args:
        folder: the model's folder.
        index: an index folder, or None for the built-in corpus.
    """
    write_json(folder / FITTED, {"index": None if index is None else str(index.resolve())})


def fitted_to_default(folder: Path) -> bool:
    """Whether a model was fitted to the built-in corpus."""
    return (folder / FITTED).is_file() and _read(folder) is None


def fitted_index(folder: Path) -> Path | None:
    """The index folder that a model was fitted to, whether it is still there or not.

    Raises:
        ImpRAGError: the file is damaged.
    """
    return _read(folder) if (folder / FITTED).is_file() else None


def _read(folder: Path) -> Path | None:
    values = read_json(folder / FITTED)
    index = values.get("index") if isinstance(values, dict) else 0
    if index is not None and not isinstance(index, str):
        raise ImpRAGError(f"{folder / FITTED} names no index; delete it, and pass --index DIR")
    return None if index is None else Path(index)
