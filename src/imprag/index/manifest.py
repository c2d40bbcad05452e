"""``index.json``: the contents of an index folder, its origin, and checksums of its files."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from imprag.errors import ImpRAGError
from imprag.io.building import (
    StoredFile,
    building_folder,
    check_fingerprints,
    is_free,
    read_manifest,
    read_plan,
)
from imprag.io.files import atomic_path, write_json

FORMAT_VERSION = 1
MANIFEST = "index.json"


@dataclass(frozen=True)
class IndexManifest:
    """The description of an index.

    Attributes:
        backend: the engine that searches it, such as ``"faiss"``.
        kind: ``"flat"``, ``"ivfpq"``, ``"hnsw"``, or a name that a plug-in registered.
        metric: ``"inner_product"``, the only one.
        dimension: size of the embeddings.
        count: number of passages that can be found.
        dtype: dtype of the stored embeddings, ``"float16"`` or ``"float32"``.
        model_fingerprint: fingerprint of the model that made the embeddings and must embed queries.
        corpus_fingerprint: fingerprint of the corpus of the passages.
        settings: settings of the kind, such as the number of lists; chosen by the index's size.
        files: the files of the index by role.
        versions: versions of ImpRAG and of the engine that wrote the index.
        location: the URI of the server that holds the vectors; empty if they are in the folder.
        format_version: version of the folder's format.
    """

    backend: str
    kind: str
    dimension: int
    count: int
    dtype: str
    model_fingerprint: str
    corpus_fingerprint: str
    settings: dict[str, int]
    files: dict[str, StoredFile]
    versions: dict[str, str]
    location: str = ""
    metric: str = "inner_product"
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> "IndexManifest":
        """Read the manifest of an index folder and check that its files are there.

        Only sizes are compared; :meth:`verify_files` reads the files.

        Raises:
            ImpRAGError: there is no finished index, its format is unknown, or a file is missing or
                has another size.
        """

        def parse(content: dict[str, Any]) -> IndexManifest:
            files = {role: StoredFile(**file) for role, file in content.pop("files").items()}
            return cls(files=files, **content)

        manifest = read_manifest(folder, MANIFEST, "index", "imprag index", FORMAT_VERSION, parse)
        for file in manifest.files.values():
            file.check(folder)
        return manifest

    @classmethod
    def unfinished(cls, folder: Path) -> "IndexManifest | None":
        """The manifest, without files, that an unfinished build of a folder is to make, if any."""
        plan = read_plan(building_folder(folder))
        try:
            return cls(**{field.name: plan[field.name] for field in fields(cls)})
        except KeyError:
            return None

    def write(self, folder: Path) -> None:
        """Write the manifest; from this moment the folder holds this index."""
        write_json(folder / MANIFEST, asdict(self))

    def check(
        self,
        *,
        model_fingerprint: str | None = None,
        corpus_fingerprint: str | None = None,
        command: str = "imprag index CORPUS --model MODEL --out INDEX --overwrite",
    ) -> None:
        """Refuse an index made by another model or from another corpus.

        Args:
            model_fingerprint, corpus_fingerprint: the wanted ones; not compared if not given.
            command: the command that builds the index again, for the message.

        Raises:
            ImpRAGError: a fingerprint that is given differs from the manifest's.
        """
        check_fingerprints(
            "index",
            command,
            (
                "by another model or version of ImpRAG, or with other passage settings",
                model_fingerprint,
                self.model_fingerprint,
            ),
            ("from another corpus", corpus_fingerprint, self.corpus_fingerprint),
        )

    def verify_files(self, folder: Path) -> None:
        """Compare every file with its checksum.

        Raises:
            ImpRAGError: a file was changed.
        """
        for file in self.files.values():
            file.verify(folder)


def save_state(
    path: Path, opened: IndexManifest, write: Callable[[Path], IndexManifest]
) -> IndexManifest:
    """Write the present state of an index into a new folder, or over the state that was opened.

    Whoever opens the folder, at any moment, finds the old state or the new one.

    Args:
        path: the folder.
        opened: the manifest that the index was opened with.
        write: writes the files into a folder, next to those of the old state, with
            :func:`imprag.io.building.write_file`, and returns the manifest that names them.

    Returns:
        the new manifest.

    Raises:
        ImpRAGError: the folder holds something else, or another process changed the index.
    """
    if is_free(path):
        with atomic_path(path) as folder:
            folder.mkdir()
            write(folder).write(folder)
    elif (path / MANIFEST).is_file() and IndexManifest.read(path) == opened:
        made = write(path)
        made.write(path)
        named = {file.name for file in made.files.values()}
        for old in {file.name for file in opened.files.values()} - named:
            (path / old).unlink(missing_ok=True)
    else:
        raise ImpRAGError(
            f"{path} is not the index that was opened, or has been changed since; "
            "save into a new folder, or open it again and repeat the changes"
        )
    return IndexManifest.read(path)
