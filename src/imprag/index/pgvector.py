"""The PostgreSQL back end: a table with a vector column, by the extension pgvector.

User and password come from libpq's environment (``PGUSER``, ``PGPASSWORD``, ``PGPASSFILE``).
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

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

_PAGE = 8192  # bytes, PostgreSQL's
_MOST_SEARCHED = 1000  # pgvector's greatest ef_search
_MOST_DIMENSIONS = {"float16": 3999, "float32": 1999}  # pgvector's HNSW allows one more
_T = TypeVar("_T")


class PgvectorIndex(RemoteIndex):
    """Vectors in a table of PostgreSQL, found by pgvector's HNSW."""

    backend = "pgvector"

    @classmethod
    def settings(cls, kind: str, dimension: int, count: int, seed: int) -> dict[str, int]:
        return {"neighbours": 32, "ef_construction": 128, "ef_search": 200}

    @classmethod
    def check_location(cls, goal: IndexManifest) -> None:
        if goal.dimension > (most := _MOST_DIMENSIONS[goal.dtype]):
            raise ImpRAGError(
                f"pgvector searches {goal.dtype} embeddings of at most {most} numbers, and the "
                f"model's have {goal.dimension}; choose another kind of index"
            )
        super().check_location(goal)

    @classmethod
    def server_footprint(cls, goal: IndexManifest) -> int:
        vector = 8 + (goal.dimension + 1) * np.dtype(goal.dtype).itemsize
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
        _check_address(manifest.location)
        return _Table(name, manifest.location, manifest)


def _check_address(location: str) -> None:
    """Refuse what is no address of libpq's, without showing it: it may hold a password."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(location)
    except psycopg.Error:
        raise ImpRAGError(
            "--uri must be an address of PostgreSQL, such as postgresql://localhost/wiki or "
            "'host=localhost dbname=wiki'"
        ) from None
    secrets = [str(value) for key, value in parts.items() if "password" in key or "secret" in key]
    check_password_free(secrets, "set PGPASSWORD or PGPASSFILE")


class _LostConnectionError(ServerError):
    """The server, or something on the way to it, has closed the connection."""


class _Table:
    """A table with ids, as UTF-8 in bytes since text cannot hold every one, rows and embeddings.

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
        with contextlib.suppress(psycopg.ProgrammingError):  # a server without pgvector yet
            register_vector(connection)
        return connection

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor in a transaction."""
        import psycopg

        with self._lock:
            if "_connection" in self.__dict__ and self._connection.closed:
                del self._connection
            try:
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except psycopg.Error as error:
                lost = "_connection" in self.__dict__ and self._connection.closed
                failure = _LostConnectionError if lost else ServerError
                raise failure(self._location, error) from error

    def _read(self, read: Callable[[Any], _T]) -> _T:
        """The result of a function of a cursor, which is called again if the connection is lost."""
        try:
            with self._cursor() as cursor:
                return read(cursor)
        except _LostConnectionError:
            with self._cursor() as cursor:
                return read(cursor)

    def prepare(self) -> None:
        with self._cursor() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")

    def create(self) -> None:
        with self._cursor() as cursor:
            cursor.execute(
                f"CREATE TABLE {self._name} (id bytea PRIMARY KEY, row bigint UNIQUE NOT NULL, "
                f"embedding {self._type}({self._dimension}) NOT NULL)"
            )

    def insert(self, vectors: StoredVectors) -> None:
        command = f"COPY {self._name} (id, row, embedding) FROM STDIN WITH (FORMAT BINARY)"
        with self._cursor() as cursor, cursor.copy(command) as copy:
            copy.set_types(["bytea", "int8", self._type])
            for one, row, embedding in zip(
                vectors.ids, vectors.rows.tolist(), vectors.embeddings, strict=True
            ):
                copy.write_row([one.encode(), row, self._value(embedding)])

    def finish(self) -> None:
        build = "m = {neighbours}, ef_construction = {ef_construction}"
        with self._cursor() as cursor:
            cursor.execute(
                f"CREATE INDEX ON {self._name} USING hnsw (embedding {self._type}_ip_ops) "
                f"WITH ({build.format(**self._settings)})"
            )

    def count(self) -> int | None:
        def read(cursor: Any) -> int | None:
            (there,) = cursor.execute("SELECT to_regclass(%s)", [self._name]).fetchone()
            if there is None:
                return None
            count: int = cursor.execute(f"SELECT count(*) FROM {self._name}").fetchone()[0]
            return count

        return self._read(read)

    def dimension(self) -> int:
        command = (
            "SELECT atttypmod FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attname = 'embedding'"
        )
        return self._read(lambda cursor: int(cursor.execute(command, [self._name]).fetchone()[0]))

    def search(self, queries: FloatArray, k: int) -> list[StoredVectors]:
        return [self._nearest(query, k) for query in queries]

    def _nearest(self, query: FloatArray, k: int) -> StoredVectors:
        breadth = min(max(self._settings["ef_search"], 2 * k), _MOST_SEARCHED)
        command = (
            f"SELECT id, row, embedding FROM {self._name} "
            f"ORDER BY embedding <#> %s::{self._type} LIMIT {int(k)}"
        )

        def read(cursor: Any) -> StoredVectors:
            cursor.execute(f"SET LOCAL hnsw.ef_search = {breadth}")
            found = self._vectors(cursor.execute(command, [self._value(query)]))
            if len(found.ids) < k:  # the part of the graph that was looked at holds fewer
                cursor.execute("SET LOCAL enable_indexscan = off")
                found = self._vectors(cursor.execute(command, [self._value(query)]))
            return found

        return self._read(read)

    def fetch(self, ids: Sequence[str]) -> StoredVectors:
        return self._select("id = ANY(%s::bytea[])", [[one.encode() for one in ids]])

    def block(self, rows: range) -> StoredVectors:
        return self._select("row >= %s AND row < %s", [rows.start, rows.stop])

    def drop(self) -> None:
        with self._cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {self._name}")

    def _select(self, condition: str, values: list[Any]) -> StoredVectors:
        command = f"SELECT id, row, embedding FROM {self._name} WHERE {condition}"
        return self._read(lambda cursor: self._vectors(cursor.execute(command, values)))

    def _value(self, embedding: FloatArray) -> Any:
        from pgvector import HalfVector, Vector

        return HalfVector(embedding) if self._type == "halfvec" else Vector(embedding)

    def _vectors(self, cursor: Any) -> StoredVectors:
        records = cursor.fetchall()
        embeddings = np.empty((len(records), self._dimension), np.float32)
        for n, (_, _, value) in enumerate(records):
            embeddings[n] = value if isinstance(value, np.ndarray) else value.to_numpy()
        rows = np.array([row for _, row, _ in records], np.int64)
        return StoredVectors([one.decode() for one, _, _ in records], rows, embeddings)
