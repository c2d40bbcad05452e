"""Passage embeddings and search: the contract, its back ends, building."""

from typing import TYPE_CHECKING, Any

from imprag.index.backends import register_index_backend
from imprag.index.manifest import IndexManifest
from imprag.index.passage_index import PassageIndex

if TYPE_CHECKING:
    from imprag.index.build import build_index

__all__ = ["IndexManifest", "PassageIndex", "build_index", "register_index_backend"]


def __getattr__(name: str) -> Any:
    # FAISS and Arrow are loaded when an index is built or opened, not before.
    if name == "build_index":
        from imprag.index.build import build_index

        return build_index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
