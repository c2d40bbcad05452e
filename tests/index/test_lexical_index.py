"""The lexical index: the formula, weighted terms, given rows, builds that resume, bad folders."""

import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from imprag.corpus import Corpus, Passage
from imprag.corpus.words import search_terms
from imprag.errors import ImpRAGError
from imprag.index import lexical
from imprag.index.lexical import MANIFEST, LexicalIndex, query_terms

_WORDS = [
    "chad",
    "lake",
    "river",
    "capital",
    "city",
    "of",
    "the",
    "in",
    "is",
    "法国",
    "mali",
    "nile",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(_WORDS, rng.integers(3, 30))) for _ in range(200)]
    passages = [Passage(f"p{n}", f"t{n % 7}", text) for n, text in enumerate(texts)]
    return Corpus.build(passages, tmp_path_factory.mktemp("lexical") / "corpus")


@pytest.fixture(scope="module")
def index(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    return LexicalIndex.build(corpus, tmp_path_factory.mktemp("index") / "lexical", progress=False)


def bm25(corpus: Corpus, terms: dict[str, float]) -> list[float]:
    """Lucene's formula in float64; lengths up to 39 terms are exact in the index."""
    documents = [search_terms(f"{passage.title} {passage.text}") for passage in corpus]
    mean = sum(map(len, documents)) / len(documents)
    scores = [0.0] * len(documents)
    for term, weight in terms.items():
        containing = sum(term in document for document in documents)
        idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        for n, document in enumerate(documents):
            tf = Counter(document)[term]
            length = 1 - 0.75 + 0.75 * len(document) / mean
            scores[n] += weight * idf * tf * 2.2 / (tf + 1.2 * length)
    return scores


@pytest.mark.parametrize(
    "terms",
    [
        dict(query_terms("What is the capital of Chad? Chad!")),
        {"nile": 1.0},
        {"lake": 0.3, "river": 2.0, "unknown": 5.0},
        dict(query_terms("法国 t3")),
    ],
)
def test_scores_follow_the_formula(
    index: LexicalIndex, corpus: Corpus, terms: dict[str, float]
) -> None:
    expected = np.array(bm25(corpus, terms))
    rows, scores = index.search(terms, 20)
    best = np.lexsort((np.arange(200), -expected.round(4)))[:20]
    np.testing.assert_allclose(scores, expected[best], rtol=1e-5)
    np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)
    some = np.random.default_rng(1).permutation(200)[:50]
    np.testing.assert_allclose(index.scores(terms, some), expected[some], rtol=1e-5)


def test_a_term_weighs_as_often_as_it_occurs(index: LexicalIndex) -> None:
    assert query_terms("Lake, lake: river") == {"lake": 2, "river": 1}
    _, once = index.search({"lake": 1}, 3)
    _, twice = index.search(query_terms("lake lake"), 3)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


def test_words_that_no_passage_has_find_nothing(index: LexicalIndex) -> None:
    for terms in ({}, {"unknown": 1.0}, query_terms("?!"), {"lake": 0.0}):
        rows, scores = index.search(terms, 5)
        assert (len(rows), len(scores)) == (0, 0)
        assert index.scores(terms, np.array([3, 1])).tolist() == [0, 0]
    assert index.scores({"lake": 1.0}, np.array([], np.int64)).tolist() == []
    assert index.search({"lake": 1.0}, 0)[0].tolist() == []


def test_an_interrupted_build_resumes_at_its_last_commit(
    corpus: Corpus, index: LexicalIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "_COMMIT_ROWS", 32)
    monkeypatch.setattr(lexical, "_READ_ROWS", 16)
    read: list[range] = []

    class Cut:
        """A corpus that cannot be read past a row."""

        fingerprint = corpus.fingerprint
        limit = 100

        def __len__(self) -> int:
            return len(corpus)

        def passages(self, rows: range) -> list[Passage]:
            read.append(rows)
            if rows.stop > self.limit:
                raise KeyboardInterrupt
            return corpus.passages(rows)

    cut = Cut()
    with pytest.raises(KeyboardInterrupt):
        LexicalIndex.build(cut, tmp_path / "lexical", progress=False)  # type: ignore[arg-type]
    with pytest.raises(ImpRAGError, match="not finished"):
        LexicalIndex(tmp_path / "lexical", corpus)
    cut.limit = 200
    read.clear()
    made = LexicalIndex.build(cut, tmp_path / "lexical", progress=False)  # type: ignore[arg-type]
    assert read[0].start == 96
    assert [path.name for path in tmp_path.iterdir()] == ["lexical"]
    terms = query_terms("the capital of chad 法国")
    for one, other in zip(made.search(terms, 50), index.search(terms, 50), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_finished_index_is_not_built_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LexicalIndex.build(corpus, tmp_path / "lexical", progress=False)
    monkeypatch.setattr(lexical, "_write", lambda *a: pytest.fail("built again"))
    LexicalIndex.build(corpus, tmp_path / "lexical", progress=False)


def test_an_index_of_another_corpus_is_refused_and_replaced(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    LexicalIndex.build(corpus, path, progress=False)
    other = Corpus.build([Passage("1", "", "Reykjavik in Iceland")], tmp_path / "other")
    with pytest.raises(ImpRAGError, match="was made from another corpus"):
        LexicalIndex(path, other)
    rows, _ = LexicalIndex.build(other, path, progress=False).search({"iceland": 1.0}, 3)
    assert rows.tolist() == [0]


def test_terms_of_another_version_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    LexicalIndex.build(corpus, path, progress=False)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "terms": "stems"}))
    with pytest.raises(ImpRAGError, match="of another version of ImpRAG; run the imprag"):
        LexicalIndex(path, corpus)
    LexicalIndex.build(corpus, path, progress=False)
    LexicalIndex(path, corpus)


def test_damage_is_named(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    made = LexicalIndex.build(corpus, path, progress=False)
    made.verify()
    (postings,) = path.glob("*.idx")
    content = bytearray(postings.read_bytes())
    content[len(content) // 2] ^= 1
    postings.write_bytes(content)
    with pytest.raises(ImpRAGError, match=r"\.idx is damaged"):
        made.verify()
    postings.write_bytes(content[:-1])
    with pytest.raises(ImpRAGError, match=r"\.idx is damaged"):
        LexicalIndex(path, corpus)
    (path / MANIFEST).write_text("[]")
    with pytest.raises(ImpRAGError, match="lexical"):
        LexicalIndex(path, corpus)


def test_reading_leaves_the_folder_as_it_is(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    LexicalIndex.build(corpus, path, progress=False)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in path.iterdir())
    path.chmod(0o555)
    try:
        assert len(LexicalIndex(path, corpus).search({"nile": 1.0}, 5)[0]) == 5
    finally:
        path.chmod(0o755)
    time.sleep(0.05)  # tantivy makes its lock file from another thread
    assert sorted((file.name, file.stat().st_mtime_ns) for file in path.iterdir()) == before
    assert not list(path.glob(".*.lock"))


def test_a_moved_folder_works_and_others_can_read_it(corpus: Corpus, tmp_path: Path) -> None:
    LexicalIndex.build(corpus, tmp_path / "lexical", progress=False)
    (tmp_path / "lexical").rename(tmp_path / "moved")
    assert len(LexicalIndex(tmp_path / "moved", corpus).search({"nile": 1.0}, 5)[0]) == 5
    plain = tmp_path / "plain"
    plain.touch()
    modes = {file.stat().st_mode for file in (tmp_path / "moved").iterdir()}
    assert modes == {plain.stat().st_mode}


def test_a_folder_of_other_files_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    path.mkdir()
    LexicalIndex.build(corpus, path, progress=False)  # an empty folder is free
    (path / MANIFEST).rename(path / "notes.json")
    with pytest.raises(ImpRAGError, match="exists already; delete it or choose another folder"):
        LexicalIndex.build(corpus, path, progress=False)
    assert (path / "notes.json").is_file()


def test_a_damaged_index_is_built_again(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    LexicalIndex.build(corpus, path, progress=False)
    for pattern in ("*.idx", MANIFEST):
        (file,) = path.glob(pattern)
        file.write_text("{")
        with pytest.raises(ImpRAGError, match="lexical"):
            LexicalIndex(path, corpus)
        made = LexicalIndex.build(corpus, path, progress=False)
        made.verify()
    (path / MANIFEST).write_text('{"format_version": 1}')
    with pytest.raises(ImpRAGError, match="run the imprag index command that made it again"):
        LexicalIndex(path, corpus)


def test_an_unreadable_unfinished_build_starts_over(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "lexical"
    LexicalIndex.build(corpus, path, progress=False)
    work = tmp_path / "lexical.building"
    work.mkdir()
    path.rename(work / "index")
    plan = {"corpus_fingerprint": corpus.fingerprint, "terms": lexical.TERMS}
    (work / "plan.json").write_text(json.dumps(plan))
    (work / "index" / MANIFEST).unlink()
    (work / "index" / "meta.json").write_text("")
    assert len(LexicalIndex.build(corpus, path, progress=False).search({"nile": 1}, 5)[0]) == 5
    assert not work.exists()
