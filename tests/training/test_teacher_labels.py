"""Teacher labels: ranks of a text retriever, stored in the cache."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.retrieval.dense import DenseRetriever
from imprag.retrieval.lexical import LexicalRetriever
from imprag.training import teacher
from imprag.training.teacher import label_prompts, load_retriever

COUNT = 12


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    words = [" ".join(f"w{(n * i) % 7}" for i in range(1, 6)) for n in range(COUNT)]
    passages = [Passage(f"p{n}", f"title {n}", text) for n, text in enumerate(words)]
    return Corpus.build(passages, tmp_path / "corpus")


class Lengths:
    """Ranks rows by their distance to the length of the prompt; records the prompts."""

    def __init__(self, corpus: Corpus, name: str = "lengths") -> None:
        self.corpus = corpus
        self.name = name
        self.asked: list[str] = []

    def fingerprint(self) -> str:
        return f"{self.name} {self.corpus.fingerprint}"

    def rank(self, prompts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        if "break" in prompts:
            raise KeyboardInterrupt
        self.asked += prompts
        scores = -np.abs(np.arange(COUNT) - np.array([[len(p)] for p in prompts], np.float32))
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return rows, np.take_along_axis(scores, rows, axis=1).astype(np.float32)


PROMPTS = ["a", "bbb", "", "cc", "ddddd", "ffff", "ggggggg", "bbb", "hhh"]


def test_labels_are_the_retrievers_ranks(corpus: Corpus) -> None:
    retriever = Lengths(corpus)
    labels = label_prompts(retriever, PROMPTS, 4)
    assert np.array_equal(labels, Lengths(corpus).rank(PROMPTS, 4)[0])
    assert labels.dtype == np.int32
    assert label_prompts(retriever, [], 4).shape == (0, 4)
    # A corpus that is smaller than the depth is ranked as a whole.
    assert sorted(label_prompts(retriever, ["a"], 50)[0]) == list(range(COUNT))


def test_ranks_are_computed_once_and_again_when_anything_changes(corpus: Corpus) -> None:
    first = label_prompts(Lengths(corpus), PROMPTS, 4)
    again = Lengths(corpus)
    labels = label_prompts(again, PROMPTS, 4)
    assert again.asked == []
    assert np.array_equal(labels, first)
    for retriever, prompts, depth in (
        (Lengths(corpus, "others"), PROMPTS, 4),
        (Lengths(corpus), PROMPTS[::-1], 4),
        (Lengths(corpus), PROMPTS, 5),
    ):
        label_prompts(retriever, prompts, depth)
        assert retriever.asked == prompts


def test_a_rerun_reuses_finished_blocks(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_BLOCK", 2)
    with pytest.raises(KeyboardInterrupt):
        label_prompts(Lengths(corpus), [*PROMPTS[:4], "break"], 3)
    retriever = Lengths(corpus)
    labels = label_prompts(retriever, PROMPTS, 3)
    assert retriever.asked == PROMPTS[4:]
    assert np.array_equal(labels, Lengths(corpus).rank(PROMPTS, 3)[0])


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_damaged_block_is_named(corpus: Corpus, tmp_path: Path, content: bytes | None) -> None:
    label_prompts(Lengths(corpus), PROMPTS, 4)
    (block,) = (tmp_path / "cache" / "teacher").iterdir()
    if content is None:  # a whole file with other ranks
        label_prompts(Lengths(corpus), PROMPTS[:3], 4)
        (other,) = set((tmp_path / "cache" / "teacher").iterdir()) - {block}
        content = other.read_bytes()
    block.write_bytes(content)
    with pytest.raises(ImpRAGError, match=rf"{block.name} .*; delete it"):
        label_prompts(Lengths(corpus), PROMPTS, 4)


def test_bm25_ranks_rows(corpus: Corpus) -> None:
    queries = ["w1 w3", "title 7", "nothing"]
    retriever = load_retriever("bm25", corpus)
    assert isinstance(retriever, LexicalRetriever)
    check_rows(corpus, retriever, queries)
    assert retriever.fingerprint() == LexicalRetriever(corpus).fingerprint()


def test_the_bi_encoder_ranks_rows(corpus: Corpus) -> None:
    class Encoder:
        """Embeds a text as its word counts."""

        name, dimension = "counts", 7

        def fingerprint(self) -> str:
            return "counts"

        def queries(self, texts: Sequence[str]) -> np.ndarray:
            counts = [[text.split().count(f"w{n}") + n / 50 for n in range(7)] for text in texts]
            return np.array(counts, np.float32)

        def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
            return self.queries([passage.text for passage in passages])

    retriever = DenseRetriever(corpus, Encoder())  # type: ignore[arg-type]
    check_rows(corpus, retriever, ["w1 w3", "w2 w2 w5", ""])


def check_rows(
    corpus: Corpus, retriever: LexicalRetriever | DenseRetriever, queries: list[str]
) -> None:
    """Ranks and retrieved passages agree."""
    rows, scores = retriever.rank(queries, 5)
    assert rows.shape == scores.shape == (len(queries), 5)
    assert rows.dtype == np.int64
    found = retriever.retrieve(queries, 5)
    assert [[item.passage for item in row] for row in found] == [
        corpus.passages(row) for row in rows.tolist()
    ]
    assert [[item.score for item in row] for row in found] == scores.tolist()
    assert label_prompts(retriever, queries, 5).tolist() == rows.tolist()
