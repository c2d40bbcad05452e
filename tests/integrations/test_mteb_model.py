"""``mteb.evaluate`` on small tasks that are read from local files, by encoder and by search."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb", reason="needs mteb")

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SearchProtocol

from conftest import tiny_lm
from imprag.integrations.mteb_model import ImpRAGEncoder, ImpRAGSearch
from imprag.model import ImpRAGModel
from imprag.pipeline import ImpRAG, make_retriever

QUERIES = {f"q{n}": f"w{7 * n % 94} w{(7 * n + 1) % 94}" for n in range(12)}
GOLD = {f"q{n}": f"p{n}" for n in range(12)}
CANDIDATES = {name: [f"p{n}" for n in range(12) if n % 3 != 2] for name in QUERIES}


def metadata(kind: Any, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=f"Local{kind}",
        description="A task in local files.",
        dataset={"path": "local", "revision": "1"},
        type=kind,
        eval_langs=["eng-Latn"],
        main_score=score,
    )


class LocalRetrieval(AbsTaskRetrieval):
    """A folder with ``corpus.jsonl``, ``queries.jsonl`` and ``relevant.json``."""

    metadata = metadata("Retrieval", "recall_at_3")
    folder: Path

    def load_data(self, num_proc: int | None = None, **settings: Any) -> None:
        def rows(name: str) -> Dataset:
            lines = (self.folder / name).read_text().splitlines()
            return Dataset.from_list([json.loads(line) for line in lines])

        data = json.loads((self.folder / "relevant.json").read_text())
        split: Any = {"corpus": rows("corpus.jsonl"), "queries": rows("queries.jsonl"), **data}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalReranking(LocalRetrieval):
    metadata = metadata("Reranking", "hit_rate_at_1")


class LocalSTS(AbsTaskSTS):
    metadata = metadata("STS", "cosine_spearman")

    def load_data(self, num_proc: int | None = None, **settings: Any) -> None:
        texts = [f"w{n} w{n + 1} w{n + 2}" for n in range(8)]
        pairs = {
            "sentence1": texts,
            "sentence2": texts[::-1],
            "score": [float(n) for n in range(8)],
        }
        self.dataset = {"test": Dataset.from_dict(pairs)}
        self.data_loaded = True


@pytest.fixture
def task_folder(hybrid_rag: ImpRAG, tmp_path: Path) -> Path:
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in hybrid_rag.corpus]
    queries = [{"id": name, "text": text} for name, text in QUERIES.items()]
    relevant = {name: {passage: 1} for name, passage in GOLD.items()}
    files: dict[str, list[Any]] = {
        "corpus.jsonl": rows,
        "queries.jsonl": queries,
        "relevant.json": [{"relevant_docs": relevant, "top_ranked": None}],
        "candidates.json": [{"relevant_docs": relevant, "top_ranked": CANDIDATES}],
    }
    for name, values in files.items():
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return tmp_path


def score(model: Any, task: Any, folder: Path | None = None) -> float:
    if folder is not None:
        task.folder = folder
    results = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return float(results.task_results[0].get_score())


def expected_recall(rag: ImpRAG, retrieval: str) -> float:
    found = make_retriever(rag, retrieval, None).retrieve(list(QUERIES.values()), 3)
    golds = zip(GOLD.values(), found, strict=True)
    return float(np.mean([gold in [one.passage.id for one in row] for gold, row in golds]))


def test_the_encoder_scores_as_implicit_retrieval(hybrid_rag: ImpRAG, task_folder: Path) -> None:
    model = ImpRAGEncoder(hybrid_rag)
    assert isinstance(model, EncoderProtocol)
    expected = expected_recall(hybrid_rag, "implicit")
    assert 0 < expected < 1
    assert score(model, LocalRetrieval(), task_folder) == pytest.approx(expected, abs=1e-5)


def test_search_scores_as_hybrid_retrieval(
    tiny_home: Path, hybrid_rag: ImpRAG, task_folder: Path
) -> None:
    model = ImpRAGSearch(tiny_home / "model")
    assert isinstance(model, SearchProtocol)
    expected = expected_recall(hybrid_rag, "hybrid")
    assert expected != expected_recall(hybrid_rag, "implicit")
    assert score(model, LocalRetrieval(), task_folder) == pytest.approx(expected, abs=1e-5)


def test_search_reranks_given_candidates(hybrid_rag: ImpRAG, task_folder: Path) -> None:
    (task_folder / "candidates.json").replace(task_folder / "relevant.json")
    ranked = make_retriever(hybrid_rag, "hybrid", None).retrieve(list(QUERIES.values()), 12)
    best = [
        next(one.passage.id for one in row if one.passage.id in CANDIDATES[name])
        for name, row in zip(QUERIES, ranked, strict=True)
    ]
    expected = float(np.mean([gold == one for gold, one in zip(GOLD.values(), best, strict=True)]))
    assert 0 < expected < 1
    found = score(ImpRAGSearch(hybrid_rag), LocalReranking(), task_folder)
    assert found == pytest.approx(expected, abs=1e-5)


def test_documents_without_text_are_indexed(hybrid_rag: ImpRAG) -> None:
    corpus = [{"id": "a", "title": "w1", "text": " "}, {"id": "w2", "title": "", "text": ""}]
    model = ImpRAGSearch(hybrid_rag, retrieval="lexical")
    model.index(corpus, encode_kwargs={"show_progress_bar": False})
    queries = Dataset.from_list([{"id": "q", "text": "w2"}])
    task = LocalRetrieval.metadata
    found = model.search(queries, task_metadata=task, top_k=10)
    assert max(found["q"], key=lambda name: found["q"][name]) == "w2"
    assert found["q"].keys() == {"a", "w2"}


def test_texts_are_compared_as_passages(hybrid_rag: ImpRAG) -> None:
    value = score(ImpRAGEncoder(hybrid_rag), LocalSTS())
    assert -1 <= value <= 1
    batch = [{"text": ["w1 w2", "w3"]}]
    one = ImpRAGEncoder(hybrid_rag).encode(batch)
    other = ImpRAGEncoder(hybrid_rag).encode(batch, prompt_type=mteb.types.PromptType.query)
    assert one.shape == other.shape == (2, hybrid_rag.model.embedding_dim)
    assert not np.allclose(one, other)


def test_the_revision_names_weights_and_settings(tiny_home: Path, hybrid_rag: ImpRAG) -> None:
    def revision(rag: Any, **settings: Any) -> str:
        return str(ImpRAGEncoder(rag, **settings).mteb_model_meta.revision)

    folder = tiny_home / "model"
    other = ImpRAG(ImpRAGModel(tiny_lm(seed=1), hybrid_rag.config), hybrid_rag.tokenizer)
    assert revision(hybrid_rag) == revision(folder)
    assert len({revision(folder), revision(folder, b=2), revision(other)}) == 3
    names = {ImpRAGEncoder(folder).mteb_model_meta.name, ImpRAGSearch(folder).mteb_model_meta.name}
    assert names == {"imprag/model"}
    assert ImpRAGSearch(folder).mteb_model_meta.experiment_kwargs == {
        "retrieval": "hybrid",
        "lexical_weight": "gate",
    }
