"""The PostgreSQL back end: a table with a vector column, by the extension pgvector.

User and password come from libpq's environment (``PGUSER``, ``PGPASSWORD``, ``PGPASSFILE``).
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from imprag.index.manifest import IndexManifest
from imprag.index.passage_index import FloatArray
from imprag.index.remote import (
    Collection,
    RemoteIndex,
    StoredVectors,
    password_free,
    server_error,
)
from imprag.io.optional import require

_PAGE = 8192  # bytes, PostgreSQL's
_MOST_SEARCHED = 1000  # pgvector's greatest ef_search


class PgvectorIndex(RemoteIndex):
    """Vectors in a table of PostgreSQL, found by pgvector's HNSW."""

    backend = "pgvector"

    @classmethod
    def settings(cls, kind: str, dimension: int, count: int, seed: int) -> dict[str, int]:
        return {"neighbours": 32, "ef_construction": 128, "ef_search": 200}

    @classmethod
    def server_footprint(cls, goal: IndexManifest) -> int:
        vector = 8 + goal.dimension * np.dtype(goal.dtype).itemsize
        # Values beyond 2 KB are cut into pieces of a quarter of a page, which leave gaps.
        row = 64 + (vector if vector < 2000 else round(1.35 * vector))
        # The graph holds the vectors, too. A page takes whole nodes, each with room for twice the
        # neighbours, at 6 bytes; the keys of ids and rows take 80 bytes.
        node = vector + 88 + 12 * goal.settings["neighbours"]
        return goal.count * (row + 80 + _PAGE // max(1, _PAGE // node))

    @classmethod
    def versions(cls) -> dict[str, str]:
        from importlib.metadata import version

        return {"pgvector": version("pgvector")}

    @classmethod
    def connect(cls, name: str, manifest: IndexManifest) -> Collection:
        require("indexes of the kind pgvector", "pgvector", "psycopg", "pgvector")
        advice = "set PGPASSWORD or PGPASSFILE"
        return _Table(name, password_free(manifest.location, advice), manifest)


class _Table:
    """A table with ids, rows and embeddings.

    Args:
        name: of the table.
        location: a connection URI of libpq.
        manifest: of the index.
    """

    def __init__(self, name: str, location: str, manifest: IndexManifest) -> None:
        self._name = name
        self._location = location
        self._settings = manifest.settings
        self._dimension = manifest.dimension
        self._lock = threading.Lock()  # a connection has one transaction at a time
        self._type = "halfvec" if manifest.dtype == "float16" else "vector"

    @cached_property
    def _connection(self) -> Any:
        import psycopg
        from pgvector.psycopg import register_vector

        connection = psycopg.connect(self._location, autocommit=True)
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        return connection

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor in a transaction."""
        import psycopg

        try:
            with self._lock:
                if self._connection.closed:
                    del self._connection
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
        except psycopg.Error as error:
            self.__dict__.pop("_connection", None)
            raise server_error(self._location, error) from error

    def create(self) -> None:
        with self._cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {self._name}")
            cursor.execute(
                f"CREATE TABLE {self._name} (id text PRIMARY KEY, row bigint UNIQUE NOT NULL, "
                f"embedding {self._type}({self._dimension}) NOT NULL)"
            )

    def insert(self, vectors: StoredVectors) -> None:
        command = f"COPY {self._name} (id, row, embedding) FROM STDIN WITH (FORMAT BINARY)"
        with self._cursor() as cursor, cursor.copy(command) as copy:
            copy.set_types(["text", "int8", self._type])
            for one in zip(vectors.ids, vectors.rows.tolist(), vectors.embeddings, strict=True):
                copy.write_row([*one[:2], self._value(one[2])])

    def finish(self) -> None:
        build = "m = {neighbours}, ef_construction = {ef_construction}"
        with self._cursor() as cursor:
            cursor.execute(
                f"CREATE INDEX ON {self._name} USING hnsw (embedding {self._type}_ip_ops) "
                f"WITH ({build.format(**self._settings)})"
            )

    def count(self) -> int | None:
        with self._cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", [self._name])
            if cursor.fetchone()[0] is None:
                return None
            cursor.execute(f"SELECT count(*) FROM {self._name}")
            count: int = cursor.fetchone()[0]
            return count

    def search(self, queries: FloatArray, k: int) -> list[StoredVectors]:
        return [self._nearest(query, k) for query in queries]

    def _nearest(self, query: FloatArray, k: int) -> StoredVectors:
        breadth = min(max(self._settings["ef_search"], 2 * k), _MOST_SEARCHED)
        command = (
            f"SELECT id, row, embedding FROM {self._name} "
            f"ORDER BY embedding <#> %s::{self._type} LIMIT {int(k)}"
        )
        with self._cursor() as cursor:
            cursor.execute(f"SET LOCAL hnsw.ef_search = {breadth}")
            found = self._vectors(cursor.execute(command, [self._value(query)]))
            if len(found.ids) < k:  # the part of the graph that was looked at holds fewer
                cursor.execute("SET LOCAL enable_indexscan = off")
                found = self._vectors(cursor.execute(command, [self._value(query)]))
        return found

    def fetch(self, ids: Sequence[str]) -> StoredVectors:
        return self._select("id = ANY(%s)", [list(ids)])

    def block(self, rows: range) -> StoredVectors:
        return self._select("row >= %s AND row < %s", [rows.start, rows.stop])

    def drop(self) -> None:
        with self._cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {self._name}")

    def _select(self, condition: str, values: list[Any]) -> StoredVectors:
        command = f"SELECT id, row, embedding FROM {self._name} WHERE {condition}"
        with self._cursor() as cursor:
            return self._vectors(cursor.execute(command, values))

    def _value(self, embedding: FloatArray) -> Any:
        from pgvector import HalfVector, Vector

        return HalfVector(embedding) if self._type == "halfvec" else Vector(embedding)

    def _vectors(self, cursor: Any) -> StoredVectors:
        records = cursor.fetchall()
        embeddings = np.empty((len(records), self._dimension), np.float32)
        for n, (_, _, value) in enumerate(records):
            embeddings[n] = value if isinstance(value, np.ndarray) else value.to_numpy()
        rows = np.array([row for _, row, _ in records], np.int64)
        return StoredVectors([one for one, _, _ in records], rows, embeddings)
