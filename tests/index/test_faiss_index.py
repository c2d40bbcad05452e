"""The FAISS index against slow references: search, add, remove, save, damage."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_corpus import ClusterEncoder, StubCorpus

from imprag.errors import ImpRAGError
from imprag.index import PassageIndex, build_index
from imprag.index.manifest import MANIFEST

COUNT, DIMENSION = 10_240, 8
KINDS = ["flat", "ivfpq", "hnsw"]


def build(path: Path, kind: str, count: int = COUNT, dtype: str = "float32") -> PassageIndex:
    return build_index(
        StubCorpus(count),
        ClusterEncoder(DIMENSION, clusters=200),
        path,
        model_fingerprint="model-one",
        dimension=DIMENSION,
        kind=kind,
        dtype=dtype,
        progress=False,
    )


def vectors(count: int, seed: int) -> np.ndarray:
    return ClusterEncoder(DIMENSION, clusters=200).vectors(count, seed)


def stored_vectors(count: int) -> np.ndarray:
    """What ``build`` embeds: batches of 256 passages within shards of 1024."""
    encoder, corpus = ClusterEncoder(DIMENSION, clusters=200), StubCorpus(count)
    starts = range(0, count, 256)
    return np.vstack(
        [encoder(corpus.passages(range(start, min(start + 256, count)))) for start in starts]
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """One index of every kind; tests that change one save it elsewhere."""
    folder = tmp_path_factory.mktemp("indexes")
    for kind in KINDS:
        build(folder / kind, kind)
    return {kind: folder / kind for kind in KINDS}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("queries", [1, 64])
def test_flat_equals_a_numpy_loop(tmp_path, dtype, queries):
    index = build(tmp_path / "index", "flat", 3000, dtype)
    asked = vectors(queries, seed=10**6)
    scores, ids = index.search(asked, 10)
    assert scores.dtype == np.float32
    assert scores.shape == (queries, 10)
    rounded = stored_vectors(3000).astype(dtype).astype(np.float32)
    for row, query in enumerate(asked):
        expected = rounded @ query
        best = np.argsort(-expected)[:10]
        assert ids[row] == [f"p{number}" for number in best]
        np.testing.assert_allclose(scores[row], expected[best], atol=1e-5)


def test_float16_scores_are_within_its_rounding(tmp_path):
    exact = build(tmp_path / "exact", "flat", 3000, "float32")
    half = build(tmp_path / "half", "flat", 3000, "float16")
    query = vectors(1, seed=5)
    bound = np.abs(query).sum() * np.abs(stored_vectors(3000)).max() * 2.0**-11
    difference = np.abs(exact.search(query, 10)[0] - half.search(query, 10)[0])
    assert 0 < difference.max() <= bound
    size = {index: index.manifest.files["vectors"].bytes for index in (exact, half)}
    assert size[half] < 0.52 * size[exact]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_exact_inner_products_in_every_kind(built, kind):
    index = PassageIndex.open(built[kind])
    asked = vectors(20, seed=7)
    scores, ids = index.search(asked, 10)
    assert (np.diff(scores, axis=1) <= 0).all()
    stored = stored_vectors(COUNT)
    for row, query in enumerate(asked):
        expected = stored[[int(passage_id[1:]) for passage_id in ids[row]]] @ query
        np.testing.assert_allclose(scores[row], expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_come_in_the_order_they_were_added(built, kind):
    index = PassageIndex.open(built[kind])
    best = 100 * vectors(1, seed=3)
    index.add(["b", "c", "a"], np.repeat(best, 3, axis=0))
    assert index.search(best, 3)[1] == [["b", "c", "a"]]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dimension"), [("ivfpq", 192), ("ivfpq", 32), ("hnsw", 32)])
def test_recall_on_clusters(tmp_path, kind, dimension):
    """Clusters overlap: the nearest ten of a query lie in several of them."""
    corpus, encoder = StubCorpus(20_000), ClusterEncoder(dimension, clusters=400)
    found = {}
    for name in ("flat", kind):
        index = build_index(
            corpus,
            encoder,
            tmp_path / name,
            model_fingerprint="model-one",
            dimension=dimension,
            kind=name,
            progress=False,
        )
        found[name] = index.search(encoder.vectors(200, seed=10**6), 10)[1]
    pairs = zip(found["flat"], found[kind], strict=True)
    assert np.mean([len(set(exact) & set(near)) / 10 for exact, near in pairs]) >= 0.99


class TestChanges:
    """Adding, removing and saving, held against a dictionary."""

    steps = st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 5)),
            st.tuples(st.just("remove"), st.integers(1, 5)),
            st.tuples(st.just("save"), st.booleans()),
        ),
        max_size=8,
    )

    @settings(max_examples=25)
    @given(steps=steps, data=st.data())
    def test_flat_is_a_dictionary(self, tmp_path_factory, steps, data):
        folder = tmp_path_factory.mktemp("index")
        index = build(folder / "0", "flat", 12)
        expected = dict(zip([f"p{n}" for n in range(12)], stored_vectors(12), strict=True))
        for number, (step, argument) in enumerate(steps, 1):
            if step == "add":
                ids = [f"new {number} {n}" for n in range(argument)]
                # An id that was removed may come again, with another embedding.
                ids += [f"p{n}" for n in range(12) if f"p{n}" not in expected][:1]
                embeddings = vectors(len(ids), seed=number)
                index.add(ids, embeddings)
                expected |= dict(zip(ids, embeddings, strict=True))
            elif step == "remove" and expected:
                ids = data.draw(st.lists(st.sampled_from(sorted(expected)), max_size=argument))
                assert index.remove(ids) == len(set(ids))
                expected = {key: value for key, value in expected.items() if key not in ids}
            elif step == "save":
                target = folder / str(number) if argument else index._path
                index.save(target)
                index = PassageIndex.open(target)
                index.verify()
            assert len(index) == index.manifest.count == len(expected)
            if expected:
                query = vectors(1, seed=10**6 + number)
                scores, ids = index.search(query, len(expected))
                assert dict(zip(ids[0], scores[0].tolist(), strict=True)) == pytest.approx(
                    {key: float(value @ query[0]) for key, value in expected.items()}, abs=1e-5
                )

    @pytest.mark.parametrize("kind", KINDS)
    def test_changes_outlast_saving(self, built, kind, tmp_path):
        index = PassageIndex.open(built[kind])
        query = vectors(1, seed=11)
        gone = index.search(query, 20)[1][0]
        assert index.remove(gone) == 20
        index.add(["first", gone[0]], np.vstack([50 * query, 40 * query]))
        before = index.search(query, 50)
        assert before[1][0][:2] == ["first", gone[0]]
        assert not set(gone[1:]) & set(before[1][0])
        index.save(tmp_path / "index")
        for opened in (index, PassageIndex.open(tmp_path / "index")):
            opened.verify()
            assert len(opened) == COUNT - 18
            after = opened.search(query, 50)
            assert after[1][0][:2] == ["first", gone[0]]
            assert not set(gone[1:]) & set(after[1][0])
            np.testing.assert_allclose(before[0][0, :2], after[0][0, :2], atol=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_added_is_searched_by_the_structure_after_saving(self, built, kind, tmp_path):
        index = PassageIndex.open(built[kind])
        more = 1.3 * vectors(500, seed=99)
        index.add([f"new {n}" for n in range(500)], more)
        index.save(tmp_path / "index")
        index.add(["later"], vectors(1, seed=98))
        index.save(tmp_path / "index")
        assert index._added.ntotal == 0
        assert index._searched.ntotal == COUNT + 501
        queries = vectors(20, seed=97)
        found = index.search(queries, 10)[1]
        exact = np.argsort(-(np.vstack([stored_vectors(COUNT), more]) @ queries.T), axis=0)[:10].T
        names = [f"p{n}" for n in range(COUNT)] + [f"new {n}" for n in range(500)]
        wanted = [{names[n] for n in row} for row in exact]
        assert (
            np.mean([len(set(row) & best) / 10 for row, best in zip(found, wanted, strict=True)])
            > 0.9
        )
        assert sum(passage_id.startswith("new") for row in found for passage_id in row) > 40

    def test_all_passages_but_a_few_removed(self, built):
        """What the lists or the graph miss then, exact search finds."""
        for kind in KINDS:
            index = PassageIndex.open(built[kind])
            index.remove([f"p{n}" for n in range(COUNT) if n % 3000])
            scores, ids = index.search(vectors(5, seed=4), 4)
            assert all(set(row) == {"p0", "p3000", "p6000", "p9000"} for row in ids)
            assert np.isfinite(scores).all()
            assert (scores > -1e30).all()

    def test_removing_leaves_the_large_files_alone(self, tmp_path):
        index = build(tmp_path / "index", "flat", 100)
        before = files(tmp_path / "index")
        index.remove(["p3"])
        index.save(tmp_path / "index")
        after = files(tmp_path / "index")
        assert {name for name in after if name not in before} == {
            index.manifest.files["removed"].name
        }
        assert all(after[name] == before[name] for name in before if name != MANIFEST)

    def test_saving_leaves_no_old_files(self, tmp_path):
        index = build(tmp_path / "index", "flat", 100)
        for number in range(3):
            index.add([f"new {number}"], vectors(1, number))
            index.remove([f"p{number}"])
            index.save(tmp_path / "index")
        named = {file.name for file in index.manifest.files.values()}
        assert set(files(tmp_path / "index")) == named | {MANIFEST}

    def test_saving_can_name_the_new_corpus(self, tmp_path):
        index = build(tmp_path / "index", "flat", 100)
        index.add(["new"], vectors(1, 0))
        index.save(tmp_path / "index", corpus_fingerprint="corpus-two")
        manifest = PassageIndex.open(tmp_path / "index").manifest
        manifest.check(model_fingerprint="model-one", corpus_fingerprint="corpus-two")

    def test_saving_over_anything_else_is_refused(self, tmp_path):
        index = build(tmp_path / "index", "flat", 100)
        other = build(tmp_path / "other", "flat", 50)
        before = files(tmp_path / "other")
        with pytest.raises(ImpRAGError, match="not the index that was opened"):
            index.save(tmp_path / "other")
        assert files(tmp_path / "other") == before
        other.remove(["p1"])
        late = PassageIndex.open(tmp_path / "other")
        other.save(tmp_path / "other")
        late.remove(["p2"])
        with pytest.raises(ImpRAGError, match="changed since"):
            late.save(tmp_path / "other")
        assert len(PassageIndex.open(tmp_path / "other")) == 49

    def test_a_full_disk_leaves_the_old_state(self, tmp_path, monkeypatch):
        index = build(tmp_path / "index", "flat", 100)
        before = files(tmp_path / "index")
        index.add(["new"], vectors(1, 0))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("imprag.index.faiss.index.write_ids", full)
        with pytest.raises(ImpRAGError, match=r"cannot write .*No space left"):
            index.save(tmp_path / "index")
        assert len(PassageIndex.open(tmp_path / "index")) == 100
        monkeypatch.undo()
        index.save(tmp_path / "index")
        assert len(PassageIndex.open(tmp_path / "index")) == 101
        assert len(files(tmp_path / "index")) == len(before)


class TestBadInput:
    @pytest.fixture
    def index(self, built) -> PassageIndex:
        return PassageIndex.open(built["flat"])

    @pytest.mark.parametrize("k", [0, -1, COUNT + 1])
    def test_k(self, index, k):
        with pytest.raises(ImpRAGError, match=f"k is {k}, but must be between 1 and {COUNT}"):
            index.search(vectors(1, 0), k)

    def test_another_dimension(self, index):
        with pytest.raises(ImpRAGError, match=r"\(2, 9\), not \(number, 8\)"):
            index.search(np.zeros((2, 9), np.float32), 1)
        with pytest.raises(ImpRAGError, match=r"shape \(8,\)"):
            index.search(np.zeros(8, np.float32), 1)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_numbers_that_are_not_finite(self, index, value):
        embeddings = np.zeros((3, DIMENSION), np.float32)
        embeddings[1, 2] = value
        for use in (lambda e: index.search(e, 1), lambda e: index.add(["a", "b", "c"], e)):
            with pytest.raises(ImpRAGError, match="embedding 1 is not finite"):
                use(embeddings)
        assert len(index) == COUNT

    def test_too_large_for_float16(self, tmp_path):
        index = build(tmp_path / "half", "flat", 50, "float16")
        large = np.full((1, DIMENSION), 70_000, np.float32)
        with pytest.raises(ImpRAGError, match="float32"):
            index.add(["large"], large)
        assert len(index.search(large, 1)[1]) == 1  # a query may be

    def test_ids_that_are_there_already(self, index):
        with pytest.raises(ImpRAGError, match="'p7' is in the index already"):
            index.add(["new", "p7"], vectors(2, 0))
        with pytest.raises(ImpRAGError, match="'new' is given twice"):
            index.add(["other", "new", "new"], vectors(3, 0))
        with pytest.raises(ImpRAGError, match="2 ids, but 3 embeddings"):
            index.add(["a", "b"], vectors(3, 0))
        assert len(index) == COUNT
        index.add(["new"], vectors(1, 0))
        with pytest.raises(ImpRAGError, match="'new' is in the index already"):
            index.add(["new"], vectors(1, 0))

    def test_ids_that_are_not_there(self, index):
        with pytest.raises(ImpRAGError, match="'nobody' is not in the index"):
            index.remove(["p1", "nobody"])
        assert len(index) == COUNT
        index.remove(["p1"])
        with pytest.raises(ImpRAGError, match="'p1' is not in the index"):
            index.remove(["p1"])

    def test_nothing_to_do(self, index):
        index.add([], np.zeros((0, DIMENSION), np.float32))
        assert index.remove([]) == 0
        scores, ids = index.search(np.zeros((0, DIMENSION), np.float32), 3)
        assert scores.shape == (0, 3)
        assert ids == []

    def test_another_model_or_corpus(self, index):
        index.manifest.check(model_fingerprint="model-one", corpus_fingerprint="corpus-one")
        with pytest.raises(
            ImpRAGError,
            match=r"another model or version of ImpRAG, .* \(fingerprint model-one, not m2\)",
        ):
            index.manifest.check(model_fingerprint="m2")
        with pytest.raises(ImpRAGError, match="another corpus"):
            index.manifest.check(corpus_fingerprint="c2")


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        index = build(tmp_path / "index", "hnsw", 50)
        index.remove(["p1"])
        index.save(tmp_path / "index")
        return tmp_path / "index"

    @pytest.mark.parametrize("role", ["vectors", "ids", "structure", "removed"])
    def test_every_file_is_checked(self, folder, role):
        index = PassageIndex.open(folder)
        path = folder / index.manifest.files[role].name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ImpRAGError, match=f"{path.name} is damaged .{len(content) - 1} bytes"):
            PassageIndex.open(folder)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ImpRAGError, match=f"{path.name} is damaged .its checksum"):
            index.verify()
        path.write_bytes(b"\xff" * len(content))
        with pytest.raises(ImpRAGError, match="is damaged"):
            PassageIndex.open(folder)
        path.unlink()
        with pytest.raises(ImpRAGError, match="it is missing"):
            PassageIndex.open(folder)

    def test_no_index(self, tmp_path):
        with pytest.raises(ImpRAGError, match="holds no index"):
            PassageIndex.open(tmp_path / "nowhere")
        (tmp_path / "half.building").mkdir()
        with pytest.raises(ImpRAGError, match="is not finished"):
            PassageIndex.open(tmp_path / "half")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 99}, "format version 99"),
            ({"backend": "oracle"}, "'oracle'"),
            ({"files": {}}, "no file for vectors"),
            ({"files": 3}, "is damaged"),
            ({"count": 48}, "48 passages, its files have"),
            ({"colour": "red"}, "is damaged"),
        ],
    )
    def test_manifest(self, folder, change, message):
        content = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(content | change))
        with pytest.raises(ImpRAGError, match=message):
            PassageIndex.open(folder)

    def test_a_manifest_cannot_name_files_elsewhere(self, folder):
        content = json.loads((folder / MANIFEST).read_text())
        outside = folder.parent / "outside"
        outside.write_bytes(b"1234")
        content["files"]["ids"] = {"name": "../outside", "bytes": 4, "sha256": ""}
        (folder / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(ImpRAGError, match="is damaged"):
            PassageIndex.open(folder)

    def test_a_manifest_tells_everything(self, built):
        for kind in KINDS:
            manifest = PassageIndex.open(built[kind]).manifest
            content = json.loads((built[kind] / MANIFEST).read_text())
            assert content == dataclasses.asdict(manifest)
            assert content["metric"] == "inner_product"
            assert content["kind"] == kind
            assert content["versions"].keys() == {"imprag", "faiss"}
            assert set(content["files"]) == {"vectors", "ids"} | (
                set() if kind == "flat" else {"structure"}
            )


def test_search_leaves_the_vectors_on_disk(tmp_path):
    """Opened and searched, the index takes no memory of its own, whatever the kind."""
    psutil = pytest.importorskip("psutil")
    if not hasattr(psutil.Process().memory_info(), "shared"):
        pytest.skip("the system does not tell mapped from other memory")

    def own_memory() -> int:
        info = psutil.Process().memory_info()
        return info.rss - info.shared

    encoder = ClusterEncoder(192, clusters=100)
    for kind in ("flat", "hnsw"):
        path = tmp_path / kind
        build_index(
            StubCorpus(20_000 if kind == "hnsw" else 100_000),
            encoder,
            path,
            model_fingerprint="m",
            dimension=192,
            kind=kind,
            progress=False,
        )
        size = sum(file.stat().st_size for file in path.iterdir())
        before = own_memory()
        index = PassageIndex.open(path)
        index.search(encoder.vectors(4, seed=1), 10)
        assert own_memory() - before < size / 4


@pytest.mark.parametrize("kind", KINDS)
def test_stored_embeddings_are_given_back(built, kind):
    index = PassageIndex.open(built[kind])
    index.remove(["p0", "p7"])
    index.add(["new", "p7"], vectors(2, seed=9).astype(np.float32))
    ids = ["p10239", "p7", "p3", "new"]
    expected = stored_vectors(COUNT)
    added = vectors(2, seed=9)
    wanted = np.vstack([expected[10239], added[1], expected[3], added[0]])
    np.testing.assert_allclose(index.embeddings(ids), wanted, atol=1e-6)
    assert index.embeddings([]).shape == (0, DIMENSION)
    with pytest.raises(ImpRAGError, match="'p0' is not in the index"):
        index.embeddings(["p1", "p0"])
