"""The Milvus back end: a collection with a vector field, by HNSW or inverted lists.

The token, or user and password as ``user:password``, comes from the environment: ``MILVUS_TOKEN``.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import isqrt
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from imprag.errors import ImpRAGError
from imprag.index.manifest import IndexManifest
from imprag.index.passage_index import FloatArray
from imprag.index.remote import (
    Collection,
    RemoteIndex,
    ServerError,
    StoredVectors,
    check_password_free,
)
from imprag.io.optional import require

_FIELDS = ["id", "row", "embedding"]
_LONGEST_ID = 65_535  # bytes, Milvus's limit
_PATIENCE = 60.0  # seconds to wait for an answer
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})


class MilvusIndex(RemoteIndex):
    """Vectors in a collection of Milvus: the kind ``milvus`` is a graph, ``milvus-ivf`` lists."""

    backend = "milvus"

    @classmethod
    def settings(cls, kind: str, dimension: int, count: int, seed: int) -> dict[str, int]:
        if kind == "milvus-ivf":
            nlist = max(1, min(4 * isqrt(count), count // 40))
            return {"nlist": nlist, "nprobe": min(max(nlist // 4, 8), nlist, 256)}
        return {"neighbours": 32, "ef_construction": 128, "ef_search": 200}

    @classmethod
    def server_footprint(cls, goal: IndexManifest) -> int:
        # A float32 vector with its further coordinate. A graph has, on its lowest level, twice
        # the neighbours.
        graph = 8 * goal.settings.get("neighbours", 0)
        return goal.count * (4 * (goal.dimension + 1) + graph)

    @classmethod
    def versions(cls) -> dict[str, str]:
        from importlib.metadata import version

        return {"pymilvus": version("pymilvus")}

    @classmethod
    def connect(cls, name: str, manifest: IndexManifest) -> Collection:
        require(f"indexes of the kind {manifest.kind}", "milvus", "pymilvus")
        _check_address(manifest.location)
        return _MilvusCollection(name, manifest.location, manifest)


def _check_address(location: str) -> None:
    """Refuse what is no address of a server, without showing it: it may hold a password."""
    try:
        parts = urlsplit(location)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https"):
        raise ImpRAGError(
            "--uri must be the address of a Milvus server, such as http://localhost:19530; for an "
            "index in files choose another kind, such as flat or hnsw"
        )
    secrets = [parts.password, *(parse_qs(parts.query).get("token", []))]
    check_password_free(secrets, "set MILVUS_TOKEN to user:password")


class _MilvusCollection:
    """A collection with ids, rows and embeddings.

    Args:
        name: of the collection.
        location: the server's URI.
        manifest: of the index.
    """

    def __init__(self, name: str, location: str, manifest: IndexManifest) -> None:
        self._name = name
        self._location = location
        self._dimension = manifest.dimension
        self._settings = manifest.settings

    @cached_property
    def _client(self) -> Any:
        from pymilvus import MilvusClient

        # It logs errors that it raises, with their tracebacks.
        logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)
        token = os.environ.get("MILVUS_TOKEN", "")
        return MilvusClient(uri=self._location, token=token, timeout=_PATIENCE)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[Any]:
        from grpc import RpcError
        from pymilvus import MilvusException

        try:
            yield self._client
        except (MilvusException, RpcError, ValueError) as error:
            raise ServerError(self._location, error) from error

    def prepare(self) -> None:
        self.count()

    def create(self) -> None:
        from pymilvus import DataType

        with self._talking() as client:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_LONGEST_ID)
            schema.add_field("row", DataType.INT64)
            schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self._dimension)
            client.create_collection(self._name, schema=schema, consistency_level="Strong")

    def insert(self, vectors: StoredVectors) -> None:
        for one in vectors.ids:
            if len(one.encode()) > _LONGEST_ID:
                raise ImpRAGError(f"the id {one[:50]!r}… is longer than Milvus allows")
        rows = zip(vectors.ids, vectors.rows.tolist(), vectors.embeddings.tolist(), strict=True)
        with self._talking() as client:
            client.insert(self._name, [dict(zip(_FIELDS, row, strict=True)) for row in rows])

    def finish(self) -> None:
        settings = self._settings
        kind, build = "IVF_FLAT", {"nlist": settings.get("nlist")}
        if "neighbours" in settings:
            kind = "HNSW"
            build = {"M": settings["neighbours"], "efConstruction": settings["ef_construction"]}
        with self._talking() as client:
            client.flush(self._name)
            params = client.prepare_index_params()
            # Together, as all servers read them; pymilvus 3 sends them one by one, too.
            both = {**build, "params": build}
            params.add_index("embedding", index_type=kind, metric_type="IP", params=both)
            client.create_index(self._name, params)
            client.load_collection(self._name)

    def count(self) -> int | None:
        with self._talking() as client:
            if not client.has_collection(self._name):
                return None
            client.load_collection(self._name)
            (found,) = client.query(self._name, filter="", output_fields=["count(*)"])
            return int(found["count(*)"])

    def dimension(self) -> int:
        with self._talking() as client:
            fields = client.describe_collection(self._name)["fields"]
        return next(int(one["params"]["dim"]) for one in fields if one["name"] == "embedding")

    def search(self, queries: FloatArray, k: int) -> list[StoredVectors]:
        settings = self._settings
        search = {"nprobe": settings.get("nprobe")}
        if "ef_search" in settings:
            search = {"ef": max(settings["ef_search"], 2 * k)}
        found = self._search(queries, k, search)
        if "nlist" in settings and any(len(one.ids) < k for one in found):
            found = self._search(queries, k, {"nprobe": settings["nlist"]})
        return found

    def _search(self, queries: FloatArray, k: int, search: dict[str, Any]) -> list[StoredVectors]:
        with self._talking() as client:
            found = client.search(
                self._name,
                data=queries.tolist(),
                anns_field="embedding",
                limit=k,
                output_fields=_FIELDS,
                search_params={"metric_type": "IP", "params": search},
            )
        return [self._vectors([hit["entity"] for hit in hits]) for hits in found]

    def fetch(self, ids: Sequence[str]) -> StoredVectors:
        if not ids:
            return self._vectors([])
        # pymilvus's own `get` does not escape, and not every server takes filter templates.
        condition = f"id in [{', '.join(map(_quoted, ids))}]"
        with self._talking() as client:
            return self._vectors(
                client.query(self._name, filter=condition, output_fields=_FIELDS, limit=len(ids))
            )

    def block(self, rows: range) -> StoredVectors:
        condition = f"row >= {rows.start} and row < {rows.stop}"
        with self._talking() as client:
            found = client.query(
                self._name, filter=condition, output_fields=_FIELDS, limit=len(rows)
            )
        return self._vectors(found)

    def drop(self) -> None:
        with self._talking() as client:
            client.drop_collection(self._name)

    def _vectors(self, records: Sequence[dict[str, Any]]) -> StoredVectors:
        shape = len(records), self._dimension
        embeddings = np.array([one["embedding"] for one in records], np.float32).reshape(shape)
        rows = np.array([one["row"] for one in records], np.int64)
        return StoredVectors([one["id"] for one in records], rows, embeddings)


def _quoted(text: str) -> str:
    """A string literal of Milvus's filter expressions."""
    return f'"{text.translate(_ESCAPES)}"'
