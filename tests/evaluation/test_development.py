"""Evaluation during training, on tiny models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tiny_evaluation import example, read_predictions

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation.development import DevelopmentSet
from imprag.index.folder import IndexFolder
from imprag.io.files import sha256
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.pipeline import ImpRAG
from imprag.tasks import Example, write_examples
from imprag.training.recipe import EvaluationSettings

SPLIT_OF = {"Chad": "train", "Mali": "dev", "Togo": "test", "River": "dev", "Lake": "train"}
COUNTRIES = ("Chad", "Mali", "Togo")


def make_passage(n: int) -> Passage:
    name = list(SPLIT_OF)[n % 5]
    text = " ".join(f"w{(5 * n + i) % 94}" for i in range(8))
    if name in COUNTRIES:
        return Passage(f"p{n}", f"{name}, part {n}", text, {"section": f"part {n}"})
    return Passage(f"p{n}", name, text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("development") / "corpus"
    return Corpus.build(map(make_passage, range(30)), path, source="tiny passages")


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take most of the time of a tiny run."""
    monkeypatch.setattr("imprag.evaluation.runner.write_report", lambda run, corpus: None)


def make_model(seed: int = 0) -> ImpRAGModel:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    return ImpRAGModel(tiny_lm(seed=seed), config)


def questions(passages: Sequence[int], words: int = 1) -> list[Example]:
    return [
        example(f"q{n}", f"w{5 * n % 94} w{n}", [" ".join(["w7"] * words)], f"p{n}")
        for n in passages
    ]


def make_benchmark(folder: Path, tasks: Mapping[str, Sequence[Example]]) -> Path:
    """A folder as `imprag tasks build` makes it, with a split ``dev``."""
    folder.mkdir()
    entries = {}
    for name, examples in tasks.items():
        write_examples(folder / f"{name}.jsonl", examples)
        file = {"file": f"{name}.jsonl", "sha256": sha256(folder / f"{name}.jsonl")}
        entries[name] = {"splits": {"dev": file}}
    splits: dict[str, dict[str, list[str]]] = {
        kind: {
            split: [
                name
                for name, its in SPLIT_OF.items()
                if its == split and (name in COUNTRIES) == country
            ]
            for split in ("train", "dev", "test")
        }
        for kind, country in (("countries", True), ("articles", False))
    }
    manifest = {"name": "tiny", "version": 2, "seed": 0, "tasks": entries, "splits": splits}
    (folder / "benchmark.json").write_text(json.dumps(manifest))
    return folder


DEV = [n for n in range(30) if n % 5 in (1, 3)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions of the split dev: with answers, with label answers, and without gold passages."""
    return make_benchmark(
        tmp_path / "bench",
        {
            "nq": questions(DEV),
            "fever": [
                example(f"f{n}", f"w{n}", ["True" if n % 2 else "False"], f"p{n}") for n in DEV[:6]
            ],
            "simpleqa": [example(f"s{n}", f"w{n + 9}", [f"w{n}"]) for n in range(4)],
        },
    )


def settings(data: Path | None, *tasks: str, **others: Any) -> EvaluationSettings:
    return EvaluationSettings(data=data and str(data), tasks=tasks, **others)


# --- What is measured ---------------------------------------------------------------------------


def test_means_equal_those_of_the_run_folders(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    development = DevelopmentSet(settings(data), corpus, tmp_path / "dev")
    means = development(make_model(), tiny_tokenizer(), 7)
    runs = {"": tmp_path / "dev/step-7", "gold_among_3/": tmp_path / "dev/step-7-gold"}
    scores: dict[str, dict[str, list[float]]] = {}
    for prefix, run in runs.items():
        for one in read_predictions(run):
            for name, value in one["metrics"].items():
                scores.setdefault(prefix + name, {}).setdefault(one["task"], []).append(value)
    expected = {name: fmean(map(fmean, by.values())) for name, by in scores.items()}
    assert set(expected) == set(development.metrics)
    for name, by_task in scores.items():
        prefix, slash, metric = name.rpartition("/")
        for task, values in by_task.items():
            expected[f"{prefix}{slash}{task}/{metric}"] = fmean(values)
    assert means == pytest.approx(expected, abs=1e-12)
    assert {"exact_match", "accuracy", "passage_recall@10", "gold_among_3/accuracy"} <= set(means)
    assert "nq/answer_recall@5" in means
    assert "gold_among_3/nq/f1" in means
    # Nothing is known of where these answers stand.
    assert "simpleqa/passage_recall@1" not in means
    assert "gold_among_3/simpleqa/f1" not in means


def test_means_per_task_need_several_tasks(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    development = DevelopmentSet(settings(data, "nq", limit=3), corpus, tmp_path / "dev")
    means = development(make_model(), tiny_tokenizer(), 0)
    assert set(means) == set(development.metrics)
    assert len(read_predictions(tmp_path / "dev/step-0")) == 3


def test_answers_equal_those_of_the_pipeline(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    model, tokenizer = make_model(), tiny_tokenizer()
    DevelopmentSet(settings(data, "nq", corpus="split"), corpus, tmp_path / "dev")(
        model, tokenizer, 1
    )
    passages = Corpus.build((corpus[n] for n in DEV), tmp_path / "alone")
    rag = ImpRAG(model, tokenizer)
    rag = ImpRAG(model, tokenizer, IndexFolder.build(passages, rag.encoder, tmp_path / "index"))
    predictions = read_predictions(tmp_path / "dev/step-1")
    for one, answer in zip(
        predictions, rag.generate([one["prompt"] for one in predictions]), strict=True
    ):
        assert one["answer"] == answer.text
        assert [item["id"] for item in one["passages"][:2]] == [
            item.passage.id for item in answer.passages
        ]
    gold = read_predictions(tmp_path / "dev/step-1-gold")
    assert all(len(one["passages"]) == 3 for one in gold)
    assert all(sum(p["score"] for p in one["passages"]) == 1 for one in gold)
    given = [[p["id"] for p in one["passages"]] for one in gold]
    assert all(
        gold_id in ids for ids, [[gold_id]] in zip(given, (g["gold"] for g in gold), strict=True)
    )
    places = {ids.index(one["gold"][0][0]) for ids, one in zip(given, gold, strict=True)}
    assert places == {0, 1, 2}


def test_each_evaluation_uses_the_current_weights(
    data: Path, corpus: Corpus, tmp_path: Path
) -> None:
    model, tokenizer = make_model(), tiny_tokenizer()
    development = DevelopmentSet(settings(data, "nq"), corpus, tmp_path / "dev")
    development(model, tokenizer, 1)
    with torch.no_grad():
        model.lm.base_model.layers[1].self_attn.k_proj.weight.neg_()
    development(model, tokenizer, 2)
    rows = [
        [one["passages"] for one in read_predictions(tmp_path / f"dev/step-{n}")] for n in (1, 2)
    ]
    for before, after in zip(*rows, strict=True):
        # Negative keys turn the ranking round.
        assert [p["score"] for p in before] == pytest.approx([-p["score"] for p in after[::-1]])
    assert {path.name for path in (tmp_path / "dev").iterdir()} == {
        "step-1",
        "step-1-gold",
        "step-2",
        "step-2-gold",
    }


def test_evaluation_does_not_change_training(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    model, tokenizer = make_model(), tiny_tokenizer()
    model.train()
    before = torch.get_rng_state()
    development = DevelopmentSet(settings(data, limit=2), corpus, tmp_path / "dev")
    with torch.autocast("cpu", torch.bfloat16):
        development(model, tokenizer, 1)
    assert model.training
    assert model.lm.training
    assert torch.equal(torch.get_rng_state(), before)
    ids = torch.tensor([[5, 6, 7]])
    model.query_embeddings(ids, torch.ones_like(ids)).sum().backward()
    assert model.lm.get_input_embeddings().weight.grad is not None


def test_evaluation_runs_without_dropout(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    means = []
    for mode in (True, False):
        model = make_model()
        for layer in model.lm.base_model.layers:
            layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj, torch.nn.Dropout(0.9))
        model.train(mode)
        development = DevelopmentSet(settings(data, "nq"), corpus, tmp_path / f"{mode}")
        means.append(development(model, tiny_tokenizer(), 1))
        assert model.training is mode
    assert means[0] == means[1]


# --- Passages -----------------------------------------------------------------------------------


def test_the_corpus_of_a_split_is_built_once(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    of_dev = settings(data, "simpleqa", corpus="split")
    first = DevelopmentSet(of_dev, corpus, tmp_path / "dev").corpus
    assert [passage.id for passage in first] == [f"p{n}" for n in DEV]
    assert first.path.parent == tmp_path / "dev"
    again = DevelopmentSet(of_dev, _Unread(corpus), tmp_path / "dev").corpus
    assert again.path == first.path
    fewer = Corpus.build((corpus[n] for n in range(28)), tmp_path / "fewer")
    assert len(DevelopmentSet(of_dev, fewer, tmp_path / "dev").corpus) == len(DEV) - 1


class _Unread(Corpus):
    """A corpus that raises when its passages are iterated."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus.path, corpus.manifest)

    def __iter__(self) -> Any:
        raise AssertionError("the corpus was read again")


def test_evaluation_corpus_replaces_the_recipes_corpus(
    data: Path, corpus: Corpus, tmp_path: Path
) -> None:
    fewer = Corpus.build((corpus[n] for n in DEV), tmp_path / "fewer")
    named = settings(data, "nq", corpus=str(fewer.path))
    assert DevelopmentSet(named, corpus, tmp_path / "dev").corpus.path == fewer.path
    assert DevelopmentSet(settings(data, "nq"), corpus, tmp_path / "dev").corpus is corpus


# --- Resuming -----------------------------------------------------------------------------------


def test_finished_evaluations_are_read(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    development = DevelopmentSet(settings(data, "nq", limit=2), corpus, tmp_path / "dev")
    means = development(make_model(), tiny_tokenizer(), 5)

    def refuse(*arguments: Any, **others: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr("imprag.evaluation.development.evaluate", refuse)
    monkeypatch.setattr("imprag.evaluation.development.rank_corpus", refuse)
    assert development(make_model(seed=1), tiny_tokenizer(), 5) == means
    with pytest.raises(AssertionError, match="asked again"):
        development(make_model(), tiny_tokenizer(), 6)


def test_an_interrupted_evaluation_restarts(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    development = DevelopmentSet(settings(data, "nq", limit=2), corpus, tmp_path / "dev")
    model, tokenizer = make_model(), tiny_tokenizer()
    means = development(model, tokenizer, 1)
    # Left by a training that was killed; the weights of the resumed one differ.
    other = make_model(seed=1)
    development(other, tokenizer, 2)
    (tmp_path / "dev/step-2/results.json").unlink()
    (tmp_path / "dev/step-2-gold/results.json").unlink()
    assert development(model, tokenizer, 2) == means
    for run in ("step-{}", "step-{}-gold"):
        first, second = (read_predictions(tmp_path / "dev" / run.format(n)) for n in (1, 2))
        assert first == second


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric": "exact"},
            r"^trainer\.metric_for_best_model is 'exact', but the metrics of these tasks are "
            r"exact_match, f1, .*"
            r"passage_recall@10, .*r_precision, gold_among_3/exact_match, gold_among_3/f1$",
        ),
        ({"metric": "accuracy"}, "but the metrics of these tasks are exact_match, f1"),
        ({"split": "test"}, "task 'nq' has no split 'test'"),
        ({"tasks": ("nq", "nq")}, "task 'nq' is given twice"),
        ({"corpus": "nowhere"}, "no corpus 'nowhere'"),
    ],
)
def test_bad_settings_are_refused_before_training(
    data: Path, corpus: Corpus, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    metric = changes.pop("metric", "exact_match")
    wrong = EvaluationSettings(**{"data": str(data), "tasks": ("nq",), **changes})
    with pytest.raises(ImpRAGError, match=message) as error:
        DevelopmentSet(wrong, corpus, tmp_path / "dev", metric)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "dev").exists()


def test_metrics_with_the_gold_passage_can_select_the_best_checkpoint(
    data: Path, corpus: Corpus, tmp_path: Path
) -> None:
    chosen, accuracy = settings(data, "fever"), "gold_among_3/accuracy"
    assert "exact_match" not in DevelopmentSet(chosen, corpus, tmp_path / "dev", accuracy).metrics
    unlinked = settings(data, "simpleqa")
    with pytest.raises(ImpRAGError, match=r"tasks are exact_match, f1, answer_recall@1, .*@100$"):
        DevelopmentSet(unlinked, corpus, tmp_path / "dev", "gold_among_3/exact_match")


def test_a_split_needs_a_benchmark_and_passages(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    examples = data / "nq.jsonl"
    with pytest.raises(ImpRAGError, match=r"corpus is split, but there is no evaluation\.data"):
        DevelopmentSet(settings(None, f"nq={examples}", corpus="split"), corpus, tmp_path / "dev")
    train = Corpus.build((corpus[n] for n in range(0, 30, 5)), tmp_path / "train", source="Chad")
    with pytest.raises(
        ImpRAGError, match="no passage in Chad, passages about the entities of tiny"
    ):
        DevelopmentSet(settings(data, "nq", corpus="split"), train, tmp_path / "dev")


def test_gold_passages_must_be_in_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    data = make_benchmark(tmp_path / "bench", {"nq": questions([*DEV, 0])})
    DevelopmentSet(settings(data), corpus, tmp_path / "dev")
    with pytest.raises(ImpRAGError, match="example 'q0' names the gold passage 'p0', which"):
        DevelopmentSet(settings(data, corpus="split"), corpus, tmp_path / "dev")
