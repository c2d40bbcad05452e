"""Tests that every index back end passes."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.index.build import build_index
from imprag.index.passage_index import FloatArray, PassageIndex


class NumberedPassages:
    """In the place of a corpus: passages ``p0``, ``p1`` ... that only know their row."""

    fingerprint = "corpus-one"

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        """The passages of these rows."""
        return [Passage(f"p{row}", "", f"text {row}") for row in rows]


class IndexBackendSuite:
    """Tests of an index back end; inherit them and say which kind of index is meant.

    Attributes:
        kind: registered, as ``--kind`` takes it.
        count: passages of the index.
        dimension: of an embedding.
        location: the URI of the server, for kinds whose vectors lie on one.
        least_recall: share of the exact ten best passages that a search finds; below 1 for
            approximate kinds.
    """

    kind: ClassVar[str]
    count: ClassVar[int] = 200
    dimension: ClassVar[int] = 16
    least_recall: ClassVar[float] = 1.0
    location: ClassVar[str] = ""

    _folders: ClassVar[dict[type, Path]] = {}

    def vectors(self, count: int, seed: int) -> FloatArray:
        """Random embeddings, (count, dimension)."""
        shape = count, self.dimension
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def encode(self, passages: Sequence[Passage]) -> FloatArray:
        """The embeddings of the passages, each its row of :attr:`stored`."""
        return self.stored[[int(passage.id[1:]) for passage in passages]]

    @property
    def stored(self) -> FloatArray:
        """The embeddings of all passages of the index."""
        return self.vectors(self.count, seed=1)

    def build(self, folder: Path) -> PassageIndex:
        """Build the index, or open it if it is there."""
        return build_index(
            NumberedPassages(self.count),
            self.encode,
            folder,
            model_fingerprint="model-one",
            dimension=self.dimension,
            kind=self.kind,
            dtype="float32",
            location=self.location,
            batch_size=self.count,
            shard_size=self.count // 2 + 1,
            progress=False,
        )

    @pytest.fixture
    def index(
        self, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
    ) -> PassageIndex:
        """An index that the test may change, but saves elsewhere; built once for the class."""
        folders = self._folders
        if request.cls not in folders:
            folder = tmp_path_factory.mktemp(self.kind) / "index"
            self.build(folder)
            folders[request.cls] = folder
        return PassageIndex.open(folders[request.cls])

    # --- Searching ------------------------------------------------------------------------------

    def test_search_finds_the_largest_inner_products(self, index: PassageIndex) -> None:
        queries = self.vectors(20, seed=2)
        scores, ids = index.search(queries, 10)
        assert scores.dtype == np.float32
        assert scores.shape == (20, 10)
        assert (np.diff(scores, axis=1) <= 0).all()
        exact = queries @ self.stored.T
        for row, found, own in zip(exact, ids, scores, strict=True):
            assert len(set(found)) == 10
            np.testing.assert_allclose(row[[int(one[1:]) for one in found]], own, atol=1e-4)
        best = [{f"p{n}" for n in row} for row in np.argsort(-exact, axis=1)[:, :10].tolist()]
        recall = [len(wanted & set(found)) / 10 for wanted, found in zip(best, ids, strict=True)]
        assert np.mean(recall) >= self.least_recall

    def test_a_query_alone_finds_the_same(self, index: PassageIndex) -> None:
        queries = self.vectors(4, seed=3)
        scores, ids = index.search(queries, 5)
        for n in range(4):
            own_scores, own_ids = index.search(queries[n : n + 1], 5)
            assert own_ids == [ids[n]]
            np.testing.assert_allclose(own_scores[0], scores[n], atol=1e-4)

    def test_no_query_finds_nothing(self, index: PassageIndex) -> None:
        scores, ids = index.search(self.vectors(0, seed=0), 3)
        assert (scores.shape, ids) == ((0, 3), [])

    @pytest.mark.parametrize("excess", [-1, 0, 1])
    def test_k_out_of_range_is_refused(self, index: PassageIndex, excess: int) -> None:
        k = excess if excess < 1 else self.count + excess
        with pytest.raises(ImpRAGError):
            index.search(self.vectors(1, seed=0), k)

    def test_bad_embeddings_are_refused(self, index: PassageIndex) -> None:
        wide = np.zeros((1, self.dimension + 1), np.float32)
        broken = np.full((1, self.dimension), np.nan, np.float32)
        for bad in (wide, broken, wide[0]):
            with pytest.raises(ImpRAGError):
                index.search(bad, 1)
            with pytest.raises(ImpRAGError):
                index.add(["new"], bad)
        assert len(index) == self.count

    def test_embeddings_come_in_the_order_of_their_ids(self, index: PassageIndex) -> None:
        np.testing.assert_allclose(index.embeddings(["p7", "p3"]), self.stored[[7, 3]], atol=1e-6)
        assert index.embeddings([]).shape == (0, self.dimension)
        with pytest.raises(ImpRAGError, match="nobody"):
            index.embeddings(["p1", "nobody"])

    # --- Changing -------------------------------------------------------------------------------

    def test_added_passages_are_found(self, index: PassageIndex) -> None:
        query = self.vectors(1, seed=4)
        index.add(["new", "newer"], np.vstack([50 * query, 60 * query]))
        assert len(index) == index.manifest.count == self.count + 2
        assert index.search(query, 2)[1] == [["newer", "new"]]
        np.testing.assert_allclose(index.embeddings(["new"]), 50 * query, rtol=1e-6)

    def test_adding_a_known_id_adds_nothing(self, index: PassageIndex) -> None:
        two = self.vectors(2, seed=5)
        for ids, embeddings in ((["new", "p7"], two), (["new", "new"], two), (["new"], two)):
            with pytest.raises(ImpRAGError):
                index.add(ids, embeddings)
        assert len(index) == self.count
        with pytest.raises(ImpRAGError):
            index.embeddings(["new"])

    def test_removed_passages_are_not_found(self, index: PassageIndex) -> None:
        query = self.vectors(1, seed=6)
        gone = index.search(query, 5)[1][0]
        assert index.remove(gone) == 5
        assert len(index) == index.manifest.count == self.count - 5
        assert not set(gone) & set(index.search(query, 20)[1][0])
        with pytest.raises(ImpRAGError):
            index.embeddings(gone[:1])
        index.add(gone[:1], 50 * query)
        assert index.search(query, 1)[1] == [gone[:1]]

    def test_removing_an_unknown_id_removes_nothing(self, index: PassageIndex) -> None:
        with pytest.raises(ImpRAGError, match="nobody"):
            index.remove(["p1", "nobody"])
        assert len(index) == self.count
        assert index.remove([]) == 0

    # --- Saving ---------------------------------------------------------------------------------

    def test_changes_outlast_saving(self, index: PassageIndex, tmp_path: Path) -> None:
        query = self.vectors(1, seed=7)
        index.remove(["p3"])
        index.add(["new"], 50 * query)
        index.save(tmp_path / "saved", corpus_fingerprint="corpus-two")
        opened = PassageIndex.open(tmp_path / "saved")
        opened.verify()
        opened.manifest.check(model_fingerprint="model-one", corpus_fingerprint="corpus-two")
        assert opened.manifest.kind == self.kind
        assert len(opened) == opened.manifest.count == self.count
        assert opened.search(query, 1)[1] == [["new"]]
        with pytest.raises(ImpRAGError, match="p3"):
            opened.embeddings(["p3"])
        opened.remove(["new"])  # and save in place
        opened.save(tmp_path / "saved")
        assert len(PassageIndex.open(tmp_path / "saved")) == len(opened) == self.count - 1

    def test_changes_that_are_not_saved_stay_in_memory(
        self, index: PassageIndex, tmp_path: Path
    ) -> None:
        index.save(tmp_path / "saved")
        PassageIndex.open(tmp_path / "saved").remove(["p1"])
        opened = PassageIndex.open(tmp_path / "saved")
        np.testing.assert_allclose(opened.embeddings(["p1"]), self.stored[[1]], atol=1e-6)

    def test_saving_over_anything_else_is_refused(
        self, index: PassageIndex, tmp_path: Path
    ) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "mine.txt").write_text("mine")
        with pytest.raises(ImpRAGError):
            index.save(tmp_path / "notes")
        assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]
        index.save(tmp_path / "saved")
        late = PassageIndex.open(tmp_path / "saved")
        index.remove(["p1"])
        index.save(tmp_path / "saved")
        late.remove(["p2"])
        with pytest.raises(ImpRAGError):
            late.save(tmp_path / "saved")  # would undo the other change
        assert len(PassageIndex.open(tmp_path / "saved")) == self.count - 1

    def test_a_changed_file_is_found(self, index: PassageIndex, tmp_path: Path) -> None:
        index.save(tmp_path / "saved")
        for file in index.manifest.files.values():
            path = tmp_path / "saved" / file.name
            content = path.read_bytes()
            opened = PassageIndex.open(tmp_path / "saved")
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(ImpRAGError):
                opened.verify()
            path.write_bytes(content)
        PassageIndex.open(tmp_path / "saved").verify()

    def test_a_finished_index_is_opened_rather_than_built_again(
        self, index: PassageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index.save(tmp_path / "index")

        def encode(suite: IndexBackendSuite, passages: Sequence[Passage]) -> FloatArray:
            raise AssertionError("encoded again")

        monkeypatch.setattr(IndexBackendSuite, "encode", encode)
        queries = self.vectors(3, seed=8)
        assert self.build(tmp_path / "index").search(queries, 5)[1] == index.search(queries, 5)[1]
