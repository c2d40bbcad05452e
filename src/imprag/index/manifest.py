"""``index.json``: what an index folder holds, who made it, and the checksums of its files."""

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from imprag.errors import ImpRAGError
from imprag.files import atomic_path, read_json, sha256, write_json

FORMAT_VERSION = 1
MANIFEST = "index.json"


@dataclass(frozen=True)
class IndexFile:
    """A file of an index: its name in the folder, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexManifest:
    """Everything there is to know about an index without opening its data.

    Attributes:
        backend: the engine that searches it, ``"faiss"``.
        kind: ``"flat"``, ``"ivfpq"`` or ``"hnsw"``.
        metric: ``"inner_product"``, the only one.
        dimension: of the embeddings.
        count: passages that can be found.
        dtype: ``"float16"`` or ``"float32"``, in which embeddings are stored.
        model_fingerprint: of the model that made the embeddings and must make the queries.
        corpus_fingerprint: of the corpus whose passages they are.
        settings: of the kind, such as the number of lists; chosen by the size of the index.
        files: the files of the index by their role.
        versions: of ImpRAG and of the engine that wrote the index.
        format_version: of the folder.
    """

    backend: str
    kind: str
    dimension: int
    count: int
    dtype: str
    model_fingerprint: str
    corpus_fingerprint: str
    settings: dict[str, int]
    files: dict[str, IndexFile]
    versions: dict[str, str]
    metric: str = "inner_product"
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of an index folder and check that its files are there.

        Only sizes are compared, which costs nothing; :meth:`verify_files` reads everything.

        Raises:
            ImpRAGError: there is no finished index, its format is unknown, or a file is missing or
                has another size.
        """
        path = folder / MANIFEST
        if not path.is_file():
            building = building_folder(folder)
            if building.is_dir():
                raise ImpRAGError(
                    f"the index {folder} is not finished (its parts are in {building}); "
                    "give the command that builds it again, and it goes on where it stopped"
                )
            raise ImpRAGError(
                f"{folder} holds no index (there is no {MANIFEST}); make one with: imprag index"
            )
        content = read_json(path)
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise ImpRAGError(
                f"{path} has format version {version}, this ImpRAG reads {FORMAT_VERSION}; "
                "build the index again"
            )
        try:
            files = {role: IndexFile(**file) for role, file in content.pop("files").items()}
            manifest = cls(files=files, **content)
        except (AttributeError, KeyError, TypeError) as error:
            raise ImpRAGError(f"{path} is damaged ({error}); build the index again") from error
        for file in files.values():
            data = folder / file.name
            if data.parent != folder or not data.is_file():
                raise damaged(data, "it is missing")
            if (size := data.stat().st_size) != file.bytes:
                raise damaged(data, f"{size} bytes instead of {file.bytes}")
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest; from this moment the folder holds this index."""
        write_json(folder / MANIFEST, asdict(self))

    def check(
        self, *, model_fingerprint: str | None = None, corpus_fingerprint: str | None = None
    ) -> None:
        """Refuse an index made by another model or from another corpus.

        Raises:
            ImpRAGError: a fingerprint that is given differs from the manifest's.
        """
        for what, wanted, own in (
            ("by another model", model_fingerprint, self.model_fingerprint),
            ("from another corpus", corpus_fingerprint, self.corpus_fingerprint),
        ):
            if wanted is not None and wanted != own:
                raise ImpRAGError(
                    f"the index was made {what} (fingerprint {own[:12]}, not {wanted[:12]}); "
                    "build it again or choose the one that belongs to it"
                )

    def verify_files(self, folder: Path) -> None:
        """Compare every file with its checksum.

        Raises:
            ImpRAGError: a file was changed.
        """
        for file in self.files.values():
            if sha256(folder / file.name) != file.sha256:
                raise damaged(folder / file.name, "its checksum differs")


def building_folder(out: Path) -> Path:
    """Where the parts of an index lie until it is finished."""
    return out.with_name(f"{out.name}.building")


def is_free(path: Path) -> bool:
    """Whether a folder can be made here: nothing is there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def damaged(path: Path, reason: str) -> ImpRAGError:
    """The error for a file that is not what was written."""
    return ImpRAGError(f"{path} is damaged ({reason}); delete its folder and build the index again")


def versions(engine: str) -> dict[str, str]:
    """Versions of ImpRAG and of an engine, for the manifest."""
    return {"imprag": importlib.metadata.version("imprag"), "engine": engine}


def write_file(folder: Path, name: str, write: Callable[[BinaryIO], object]) -> IndexFile:
    """Write a file that carries its checksum in its name: ``ids.arrow``, ``ids-<16 digits>.arrow``.

    A file of an index never changes and never has the name of another, so that a new state of the
    index can lie beside the old one until the manifest, in one step, names the new files.

    Args:
        folder: exists.
        name: without the checksum.
        write: is given the open file.

    Raises:
        ImpRAGError: the disk is full or the folder cannot be written.
    """
    path = folder / name
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        write(stream)
    digest = sha256(path)
    final = path.with_stem(f"{path.stem}-{digest[:16]}")
    os.replace(path, final)
    return IndexFile(final.name, final.stat().st_size, digest)
