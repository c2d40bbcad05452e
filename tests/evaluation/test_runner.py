"""The runner, end to end on a tiny model."""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_evaluation import COUNT, PASSAGES, example, make_corpus, make_rag, make_tasks
from tiny_evaluation import read_predictions as read

from conftest import tiny_tokenizer
from imprag import evaluate
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.evaluation.compare import compare
from imprag.evaluation.passage_sources import (
    PassageSource,
    QueryTemplate,
    Question,
    gold_passages,
    no_passages,
    own_retrieval,
    text_retrieval,
)
from imprag.evaluation.report import write_report
from imprag.evaluation.run_folder import RunFolder
from imprag.index.folder import IndexFolder
from imprag.io.optional import note_without
from imprag.pipeline import ImpRAG
from imprag.retrieval import RetrievedPassage
from imprag.retrieval.lexical import LexicalRetriever
from imprag.tasks import Answer, Example, Task, TaskExamples, load_task

TEXTS = {passage.id: passage.text for passage in PASSAGES}
PAGES = {passage.id: passage.title for passage in PASSAGES}


def bm25(corpus: Corpus, query_template: QueryTemplate = "none") -> PassageSource:
    return text_retrieval("bm25", LexicalRetriever(corpus), query_template)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take most of the time of a tiny run; only that of `finished` is written."""
    monkeypatch.setattr("imprag.evaluation.runner.write_report", lambda run, corpus: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("evaluation") / "corpus")


@pytest.fixture(scope="module")
def rag(corpus: Corpus) -> ImpRAG:
    return make_rag(corpus, corpus.path.parent / "index")


@pytest.fixture(scope="module")
def tasks(rag: ImpRAG) -> list[TaskExamples]:
    return make_tasks(rag)


@pytest.fixture(scope="module")
def finished(rag: ImpRAG, tasks: list[TaskExamples], corpus: Corpus) -> Path:
    """A finished run with the model's own retrieval."""
    path = corpus.path.parent / "finished"
    evaluate(rag, tasks, path, batch_size=4)
    return path


# --- The numbers --------------------------------------------------------------------------------


def test_a_question_template_changes_neither_predictions_nor_recipe(
    rag: ImpRAG, tmp_path: Path
) -> None:
    """Evaluations ask the prompts of their tasks as they are."""
    model = rag.model.with_settings(question_template="w90 {question} w91")
    trained = ImpRAG(model, rag.tokenizer, rag.index)
    assert trained.ask("w3").model_prompt == "w90 w3 w91"
    asked = [TaskExamples(Task("plain", "{input}"), [example("q1", "w3", ["w4"], "p 3")], "tiny")]
    for name, one in (("without", rag), ("with", trained)):
        evaluate(one, asked, tmp_path / name)
    assert read(tmp_path / "with") == read(tmp_path / "without")
    recipes = [(tmp_path / name / "recipe.yaml").read_text() for name in ("without", "with")]
    assert recipes[0] == recipes[1]


def test_results_equal_the_means_of_the_predictions(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())["tasks"]
    by_hand: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in read(finished):
        scores = by_hand[one["task"]]
        ids = [passage["id"] for passage in one["passages"]]
        assert len(set(ids)) == len(ids) == COUNT
        assert [p["score"] for p in one["passages"]] == sorted(
            (p["score"] for p in one["passages"]), reverse=True
        )
        right = float(one["answer"] in one["answers"])
        scores["accuracy" if one["task"] == "fever" else "exact_match"].append(right)
        if one["task"] != "fever":
            hits = [
                rank
                for rank, id in enumerate(ids, 1)
                if any(f" {answer} " in f" {TEXTS[id]} " for answer in one["answers"])
            ]
            assert one["hit_ranks"]["answer"] == min(hits, default=None)
            for k in (1, 5, 10, 20, 100):
                scores[f"answer_recall@{k}"].append(float(any(hit <= k for hit in hits)))
        if one["gold"]:
            complete = min(max(ids.index(id) + 1 for id in gold) for gold in one["gold"])
            assert one["hit_ranks"]["passage"] == complete
            for k in (1, 5, 10, 20, 100):
                scores[f"passage_recall@{k}"].append(float(complete <= k))
            first = min(ids.index(id) + 1 for gold in one["gold"] for id in gold)
            scores["mrr"].append(1 / first)
        else:
            assert "passage" not in one["hit_ranks"]
    assert {task: result["n"] for task, result in results.items()} == {
        "nq": 11,
        "hotpotqa": 5,
        "fever": 3,
        "simpleqa": 3,
    }
    for task, metrics in by_hand.items():
        for name, values in metrics.items():
            found = results[task]["metrics"][name]
            assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-12)
            assert found["n"] == len(values)
            assert found["low"] <= found["mean"] <= found["high"]
    assert "f1" not in results["fever"]["metrics"]
    assert "answer_recall@1" not in results["fever"]["metrics"]
    assert "passage_recall@1" not in results["simpleqa"]["metrics"]
    # Four of the gold answers are the model's own.
    assert results["nq"]["metrics"]["exact_match"]["mean"] == pytest.approx(4 / 11)


def test_r_precision_is_measured_on_pages(finished: Path) -> None:
    for one in read(finished):
        if one["task"] == "hotpotqa":
            ranked = list(dict.fromkeys(PAGES[passage["id"]] for passage in one["passages"]))
            pages = {PAGES[id] for id in one["gold"][0]}
            expected = len(pages & set(ranked[: len(pages)])) / len(pages)
            assert one["metrics"]["r_precision"] == expected


def test_answers_equal_those_of_one_pass(finished: Path, rag: ImpRAG) -> None:
    predictions = [one for one in read(finished) if one["task"] == "nq"]
    answers = rag.generate([one["prompt"] for one in predictions], max_new_tokens=32)
    assert [one["answer"] for one in predictions] == [answer.text for answer in answers]
    for one, answer in zip(predictions, answers, strict=True):
        assert [p["id"] for p in one["passages"][:3]] == [p.passage.id for p in answer.passages]


def test_evaluate_returns_and_writes_the_results(
    rag: ImpRAG, tasks: list[TaskExamples], finished: Path, tmp_path: Path
) -> None:
    results = evaluate(rag, tasks[:1], tmp_path / "run", limit=2)
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert {file.name for file in finished.iterdir()} == {
        "recipe.yaml",
        "predictions.jsonl",
        "results.json",
        "run.trec",
        "qrels.trec",
        "kilt",
        "report.html",
    }


# --- Where passages come from -------------------------------------------------------------------


class Recorder:
    """A model that records the prompts and passages it gets."""

    def __init__(self, rag: ImpRAG, fail_at: int | None = None) -> None:
        self.__dict__.update(rag.__dict__)
        self.rag = rag
        self.calls: list[tuple[list[str], list[list[str]]]] = []
        self.fail_at = fail_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rag, name)

    def generate(self, prompts: list[str], *, passages: Any, **options: Any) -> Any:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((prompts, [[item.passage.id for item in row] for row in passages]))
        return self.rag.generate(prompts, passages=passages, **options)


def test_oracle_passages_are_the_gold_passages(
    rag: ImpRAG, corpus: Corpus, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    model = Recorder(rag)
    results = evaluate(model, tasks[:3], tmp_path / "run", source=gold_passages(corpus))
    read_ids = [row for _, rows in model.calls for row in rows]
    gold = [[f"p {n}"] for n in range(11)] + [[f"p {n}", f"p {n + 1}"] for n in range(5)]
    assert read_ids == [*gold, *([f"p {n}", "p 20"] for n in range(3))]
    assert set(results["tasks"]["nq"]["metrics"]) == {"exact_match", "f1"}
    with pytest.raises(ImpRAGError, match="no example in tiny unlinked questions names its gold"):
        evaluate(rag, tasks, tmp_path / "other", source=gold_passages(corpus))
    assert not (tmp_path / "other").exists()


def test_oracle_leaves_out_examples_without_gold_passages_after_drawing(
    rag: ImpRAG, corpus: Corpus, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    mixed = [*tasks[0].examples[:6], *(replace(e, id=f"u{e.id}") for e in tasks[3].examples)]
    task = TaskExamples(load_task("nq"), mixed, "mixed questions")
    evaluate(rag, [task], tmp_path / "all", limit=6)
    evaluate(rag, [task], tmp_path / "oracle", limit=6, source=gold_passages(corpus))
    drawn = [one["id"] for one in read(tmp_path / "all")]
    assert [one["id"] for one in read(tmp_path / "oracle")] == [
        id for id in drawn if not id.startswith("u")
    ]
    assert any(id.startswith("u") for id in drawn)


def test_answers_without_passages_need_no_corpus(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    bare = ImpRAG(rag.model, rag.tokenizer)
    results = evaluate(bare, tasks, tmp_path / "run", source=no_passages())
    alone = bare.generate([one["prompt"] for one in read(tmp_path / "run")[:11]], k=0)
    assert [one["answer"] for one in read(tmp_path / "run")[:11]] == [a.text for a in alone]
    assert all(one["passages"] == [] for one in read(tmp_path / "run"))
    assert RunFolder.open(tmp_path / "run").recipe["settings"]["reading"]["k"] == 0
    assert set(results["tasks"]["hotpotqa"]["metrics"]) == {"exact_match", "f1"}
    assert not (tmp_path / "run" / "run.trec").exists()


def test_in_context_puts_the_passages_before_the_prompt(
    rag: ImpRAG, corpus: Corpus, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    model = Recorder(rag)
    source = gold_passages(corpus)
    evaluate(model, tasks[1:2], tmp_path / "run", source=source, in_context=True)
    ((prompts, read_ids),) = model.calls
    # The tiny tokenizer knows no title and no line break.
    assert prompts[1] == "\n\n".join(
        [f"w0 w0 {TEXTS['p 1']}", f"w0 w0 {TEXTS['p 2']}", "Q: w4 w1 A:"]
    )
    assert read_ids == [[] for _ in prompts]
    assert [one["prompt"] for one in read(tmp_path / "run")][1] == "Q: w4 w1 A:"


def test_chat_puts_prompts_into_the_chat_template(
    rag: ImpRAG, corpus: Corpus, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "w5 {{ messages[0].content }} w6 w7"
    model = ImpRAG(rag.model, tokenizer, rag.index)
    out = tmp_path / "run"
    evaluate(model, tasks[:1], out, chat=True)
    asked = read(out)
    prompts = [one["prompt"] for one in asked]
    assert prompts[1] == "Q: w1 w3 A:"
    found = model.retrieve(prompts, 10, chat=True)
    assert [[one.passage.id for one in row] for row in found] == [
        [passage["id"] for passage in one["passages"]][:10] for one in asked
    ]
    length = tasks[0].task.max_new_tokens
    answers = [one.text for one in model.generate(prompts, chat=True, max_new_tokens=length)]
    assert answers == [one["answer"] for one in asked]
    assert answers != [one.text for one in model.generate(prompts, max_new_tokens=length)]
    with pytest.raises(ImpRAGError, match="holds another run: .*chat"):
        evaluate(model, tasks[:1], out)
    with pytest.raises(ImpRAGError, match="no model retrieves or answers"):
        evaluate(None, tasks[:1], tmp_path / "b", source=bm25(corpus), chat=True)


def test_retrieval_only_needs_no_model(
    rag: ImpRAG, tasks: list[TaskExamples], finished: Path, tmp_path: Path
) -> None:
    results = evaluate(None, tasks, tmp_path / "run", source=own_retrieval(rag))
    with_answers = json.loads((finished / "results.json").read_text())["tasks"]
    for task, result in results["tasks"].items():
        metrics = with_answers[task]["metrics"]
        assert result["metrics"] == {
            name: value
            for name, value in metrics.items()
            if name not in ("exact_match", "f1", "accuracy")
        }
    assert all("answer" not in one for one in read(tmp_path / "run"))


def test_any_retriever_can_be_measured(
    corpus: Corpus, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    def find(questions: Sequence[Question], k: int) -> list[list[RetrievedPassage]]:
        """Ranks the gold passage second."""
        rows = [int(question.example.id[1:]) for question in questions]
        return [
            [RetrievedPassage(corpus[one], 1.0 - rank) for rank, one in enumerate([23, row][:k])]
            for row in rows
        ]

    source = PassageSource("mine", find, corpus, details={"version": 3})
    metrics = evaluate(None, tasks[:1], tmp_path / "run", source=source)["tasks"]["nq"]["metrics"]
    assert metrics["passage_recall@1"]["mean"] == 0
    assert metrics["passage_recall@5"]["mean"] == 1
    assert metrics["mrr"]["mean"] == 0.5
    assert RunFolder.open(tmp_path / "run").recipe["settings"]["passages"]["version"] == 3


def test_tasks_without_retrieval_are_answered_without_passages(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    plain = Task("plain", "{input}", retrieval=False, max_new_tokens=4)
    both = [tasks[0], TaskExamples(plain, tasks[2].examples, "plain")]
    results = evaluate(rag, both, tmp_path / "run", limit=2)
    assert set(results["tasks"]["plain"]["metrics"]) == {"exact_match", "f1"}
    for field in ("passages", "gold"):
        assert [bool(one[field]) for one in read(tmp_path / "run")] == [True, True, False, False]
    with pytest.raises(ImpRAGError, match="task 'plain' retrieves nothing"):
        evaluate(None, both, tmp_path / "other", source=own_retrieval(rag))


# --- Drawing and resuming -----------------------------------------------------------------------


def test_limit_draws_by_seed_and_task_alone(tasks: list[TaskExamples]) -> None:
    ids = {seed: [example.id for example in tasks[0].draw(4, seed).examples] for seed in range(20)}
    assert [e.id for e in tasks[0].draw(4, 3).examples] == ids[3]
    assert len({tuple(drawn) for drawn in ids.values()}) > 10
    order = [example.id for example in tasks[0].examples]
    assert all(drawn == sorted(drawn, key=order.index) for drawn in ids.values())
    assert tasks[0].draw(None, 0) is tasks[0].draw(99, 0) is tasks[0]


@pytest.mark.parametrize("batches", [0, 1, 4])
@pytest.mark.parametrize("torn", ["", '{"task": "hotpotqa", "id'])
def test_an_interrupted_run_resumes_with_the_same_results(
    rag: ImpRAG,
    tasks: list[TaskExamples],
    finished: Path,
    tmp_path: Path,
    batches: int,
    torn: str,
) -> None:
    out = tmp_path / "run"
    broken = Recorder(rag, fail_at=batches)
    with pytest.raises(KeyboardInterrupt):
        evaluate(broken, tasks, out, batch_size=4)
    assert not (out / "results.json").exists()
    predictions = out / "predictions.jsonl"
    if batches:
        with predictions.open("a") as stream:
            stream.write(torn)
    model = Recorder(rag)
    evaluate(model, tasks, out, batch_size=4)
    assert len(broken.calls) + len(model.calls) == 3 + 2 + 1 + 1
    for name in ("predictions.jsonl", "results.json", "run.trec"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_an_unfinished_batch_is_repeated(
    rag: ImpRAG, tasks: list[TaskExamples], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Recorder(rag, fail_at=0), tasks, out, batch_size=4)
    lines = (finished / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:6]))
    model = Recorder(rag)
    evaluate(model, tasks, out, batch_size=4)
    assert model.calls[0][0] == [json.loads(line)["prompt"] for line in lines[4:8]]
    assert (out / "predictions.jsonl").read_bytes() == b"".join(lines)


def test_a_run_can_be_resumed_with_another_batch_size(
    rag: ImpRAG, tasks: list[TaskExamples], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Recorder(rag, fail_at=2), tasks, out, batch_size=4)
    evaluate(rag, tasks, out, batch_size=3)
    assert [one["id"] for one in read(out)] == [one["id"] for one in read(finished)]
    assert RunFolder.open(out).recipe["environment"]["batch_size"] == 3


def test_a_finished_run_is_not_repeated(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    evaluate(rag, tasks[3:], tmp_path / "run")
    model = Recorder(rag)
    evaluate(model, tasks[3:], tmp_path / "run")
    assert model.calls == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rag, corpus, tasks: {"k": 2}, r"reading\.k is 3 there and 2 here"),
        (lambda rag, corpus, tasks: {"seed": 1}, r"seed is 0 there and 1 here"),
        (
            lambda rag, corpus, tasks: {"source": bm25(corpus)},
            r"passages\.from is implicit there and bm25 here",
        ),
        (
            lambda rag, corpus, tasks: {"rag": make_rag(corpus, corpus.path.parent / "index1", 1)},
            r"passages\.embeddings is [\w-]+ there and [\w-]+ here; model\.weights is",
        ),
        (
            lambda rag, corpus, tasks: {"tasks": tasks[:1]},
            r"tasks\.hotpotqa is set there and absent here",
        ),
        (
            lambda rag, corpus, tasks: {
                "tasks": [
                    replace(
                        tasks[0], examples=[example("q0", "w1", ["w2"]), *tasks[0].examples[1:]]
                    ),
                    tasks[1],
                ]
            },
            r"tasks\.nq\.fingerprint is \w+ there and \w+ here",
        ),
    ],
)
def test_a_run_folder_of_another_recipe_is_refused(
    rag: ImpRAG,
    corpus: Corpus,
    tasks: list[TaskExamples],
    tmp_path: Path,
    change: Callable[..., dict[str, Any]],
    message: str,
) -> None:
    arguments = {"rag": rag, "tasks": tasks[:2], "out": tmp_path / "run", "limit": 1}
    # The limit is the same, and draws the first example here.
    arguments["tasks"] = [replace(item, examples=item.examples[:1]) for item in tasks[:2]]
    evaluate(**arguments)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    changed = change(rag, corpus, arguments["tasks"])
    with pytest.raises(ImpRAGError, match=message) as error:
        evaluate(**{**arguments, **changed})
    assert "\n" not in str(error.value)
    assert before == {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}


def test_other_paths_and_names_belong_to_the_same_run(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    evaluate(rag, tasks[3:], tmp_path / "run", name="a/model")
    moved = [replace(tasks[3], source="moved")]
    evaluate(rag, moved, tmp_path / "run", name="another/place")
    assert RunFolder.open(tmp_path / "run").recipe["settings"]["model"]["source"] == "another/place"


def test_folders_that_are_not_run_folders_are_refused(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ImpRAGError, match="is not a run folder; choose another"):
        evaluate(rag, tasks, tmp_path)
    with pytest.raises(ImpRAGError, match="is not a run folder; choose another"):
        evaluate(rag, tasks, tmp_path / "notes.txt")
    (tmp_path / "recipe.yaml").write_text("format_version: 99\n")
    with pytest.raises(ImpRAGError, match="is not in run format 1"):
        evaluate(rag, tasks, tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: [1\n")
    with pytest.raises(ImpRAGError, match="is not valid YAML") as error:
        evaluate(rag, tasks, tmp_path)
    assert "\n" not in str(error.value)


def test_the_recipe_holds_all_settings_that_metrics_depend_on(
    finished: Path, corpus: Corpus
) -> None:
    recipe = RunFolder.open(finished).recipe
    settings = recipe["settings"]
    assert settings["tasks"]["nq"]["examples"] == 11
    assert settings["passages"]["corpus"] == {
        "source": "tiny passages",
        "passages": COUNT,
        "fingerprint": corpus.fingerprint[:16],
    }
    assert settings["reading"] == {"k": 3, "in_context": False}
    assert settings["model"]["max_passage_tokens"] == 16
    assert settings["model"]["dtype"] == "float32"
    assert set(recipe["environment"]["versions"]) >= {"imprag", "torch", "transformers", "python"}


# --- Bad input ----------------------------------------------------------------------------------


def test_unknown_gold_passages_are_refused(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    bad = TaskExamples(load_task("nq"), [example("q7", "w1", ["w2"], "p 99")], "bad.jsonl")
    with pytest.raises(
        ImpRAGError, match=r"bad\.jsonl, task 'nq': example 'q7' names the gold passage 'p 99'"
    ):
        evaluate(rag, [bad, *tasks[1:]], tmp_path / "run")
    with pytest.raises(ImpRAGError, match=r"'nq' is given twice, by tiny questions and by bad\."):
        evaluate(rag, [*tasks, bad], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_too_long_is_refused_before_the_work_begins(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    long = example("long", " ".join(["w1"] * 1000), ["w2"])
    model = Recorder(rag)
    task = TaskExamples(load_task("nq"), [*tasks[0].examples, long], "long")
    with pytest.raises(ImpRAGError, match="task 'nq', example 'long': the prompt has 1002 tokens"):
        evaluate(model, [task], tmp_path / "run")
    assert model.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"k": COUNT + 1}, f"k is {COUNT + 1}, but the corpus has only {COUNT} passages"),
        ({"rag": None}, "there is nothing to measure"),
        ({"rag": None, "source": no_passages()}, "there is nothing to measure"),
    ],
)
def test_contradictory_arguments_are_refused(
    rag: ImpRAG,
    tasks: list[TaskExamples],
    tmp_path: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ImpRAGError, match=message):
        evaluate(**{"rag": rag, "tasks": tasks, "out": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_k_is_refused_without_a_model(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path
) -> None:
    with pytest.raises(ImpRAGError, match="only retrieval is measured: leave out k"):
        evaluate(None, tasks, tmp_path / "run", source=own_retrieval(rag), k=3)


def test_missing_packages_are_named_first(
    rag: ImpRAG, tasks: list[TaskExamples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImpRAGError, match=r'needs jinja2; run: pip install "imprag\[eval\]"'):
        evaluate(rag, tasks, tmp_path / "run")


def test_a_report_without_matplotlib_has_tables_but_no_plots(
    rag: ImpRAG,
    tasks: list[TaskExamples],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    note_without.cache_clear()
    for name in ("one", "other"):
        evaluate(rag, tasks[:1], tmp_path / name)
    assert capsys.readouterr().err.count("note: there will be no plots in the report") == 1
    write_report(RunFolder.open(tmp_path / "one"), rag.index.corpus)
    page = (tmp_path / "one" / "report.html").read_text()
    assert "<svg" not in page
    assert "<figure" not in page
    assert "recall@10" in page
    compare([tmp_path / "one", tmp_path / "other"]).write_html(tmp_path / "both.html")
    assert "<svg" not in (tmp_path / "both.html").read_text()


def test_an_answer_after_the_truncation_is_not_found(rag: ImpRAG, tmp_path: Path) -> None:
    """The tiny model reads 16 tokens: two of the title, and fourteen words of the text."""
    words = [f"w{n}" for n in range(10, 40)]
    long = Passage("long", "page 1", " ".join(words))
    corpus = Corpus.build([long, Passage("short", "page 2", "w1 w2")], tmp_path / "corpus")
    index = IndexFolder.build(corpus, rag.encoder, tmp_path / "index", progress=False)
    own = ImpRAG(rag.model, rag.tokenizer, index)
    nq = load_task("nq")
    questions = [
        Example("seen", "w3", [Answer("w23")]),
        Example("cut", "w3", [Answer("w24")]),
    ]
    tasks = [TaskExamples(nq, questions, "questions")]
    for name, model, source in (
        ("own", own, None),
        ("own, nothing read", None, own_retrieval(own)),
        ("read", own, replace(bm25(corpus), name="other")),
    ):
        evaluate(model, tasks, tmp_path / name, source=source, k=None if model is None else 2)
        seen, cut = read(tmp_path / name)
        assert seen["metrics"]["answer_recall@5"] == 1, name
        assert cut["metrics"]["answer_recall@5"] == 0, name
        assert cut["hit_ranks"] == {"answer": None}
        entry = next(found for found in cut["passages"] if found["id"] == "long")
        visible = long.text[: entry["visible"]].split()
        assert visible == words[:14]
        assert all("visible" not in found for found in cut["passages"] if found["id"] == "short")
    write_report(RunFolder.open(tmp_path / "own"), corpus)
    assert "not seen by the model" in (tmp_path / "own" / "report.html").read_text()
    # Where no model is asked, nothing is cut.
    evaluate(None, tasks, tmp_path / "bm25", source=bm25(corpus))
    assert [one["metrics"]["answer_recall@5"] for one in read(tmp_path / "bm25")] == [
        1,
        1,
    ]


def test_passages_without_titles_are_their_own_pages(tmp_path: Path) -> None:
    corpus = Corpus.build(
        [
            Passage("right", "", "the capital of Mali is Bamako"),
            Passage("wrong", "", "Oslo lies in Norway"),
        ],
        tmp_path / "corpus",
    )
    asked = Example("q", "Oslo?", [Answer("Bamako", [{"passage_id": "right"}])])
    tasks = [TaskExamples(load_task("nq"), [asked], "questions")]
    results = evaluate(None, tasks, tmp_path / "run", source=bm25(corpus, "oracle"))
    assert results["tasks"]["nq"]["metrics"]["r_precision"]["mean"] == 0
    (line,) = (tmp_path / "run" / "kilt" / "nq.jsonl").read_text().splitlines()
    pages = [one["wikipedia_id"] for one in json.loads(line)["output"][0]["provenance"]]
    assert pages == ["wrong", "right"]


def test_damaged_predictions_are_named(finished: Path, tmp_path: Path) -> None:
    run = RunFolder.start(tmp_path / "run", {}, {})
    with pytest.raises(ImpRAGError, match=r"holds no predictions\.jsonl yet"):
        next(run.predictions())
    with pytest.raises(ImpRAGError, match="is not finished"):
        run.results()
    (run.path / "predictions.jsonl").write_text('{"task": "nq", "id": "1", "metrics": {}}\n{"ta\n')
    with pytest.raises(ImpRAGError, match=r"predictions\.jsonl, line 2 is damaged"):
        list(run.predictions())
