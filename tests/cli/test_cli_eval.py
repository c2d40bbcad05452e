"""`imprag eval`, `imprag compare` and `imprag tasks`, run in this process on a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.tasks import BENCHMARKS, Benchmark, read_examples, task_names

COUNT = 12


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus file, an index and a file of examples."""
    path = tmp_path_factory.mktemp("home")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    save_pretrained(ImpRAGModel(tiny_lm(), config), tiny_tokenizer(), path / "model")
    write_lines(
        path / "corpus.jsonl",
        [
            {
                "id": f"p{n}",
                "title": f"w{n}",
                "text": " ".join(f"w{(5 * n + i) % 94}" for i in range(6)),
            }
            for n in range(COUNT)
        ],
    )
    write_lines(
        path / "examples.jsonl",
        [
            {
                "id": f"{task}{n}",
                "task": task,
                "input": f"w{5 * n} w{5 * n + 1}",
                "output": [{"answer": f"w{5 * n + 3}", "provenance": [{"passage_id": f"p{n}"}]}],
            }
            for task in ("nq", "trex")
            for n in range(7)
        ],
    )
    assert (
        run("index", path / "corpus.jsonl", "--out", path / "index", "--model", path / "model") == 0
    )
    return path


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(home / "cache"))


def evaluate(home: Path, out: Path, *arguments: object) -> int:
    files = ("--tasks", home / "examples.jsonl", "--model", home / "model", "--out", out)
    return run("eval", *files, "--dtype", "float32", *arguments)


@pytest.fixture(scope="module")
def runs(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(home / "cache"))
        assert evaluate(home, path / "own", "--index", home / "index") == 0
        bm25 = ("--retrieval", "lexical", "--retrieval-only", "--corpus", home / "corpus.jsonl")
        assert evaluate(home, path / "bm25", *bm25) == 0
    return [path / "own", path / "bm25"]


def test_eval_prints_a_table_and_names_the_report(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(home, tmp_path / "run", "--index", home / "index", "--limit", 3) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["task", "-" * 4, "nq", "trex"]
    assert "| passage recall@10 |" in lines[0]
    assert captured.err.endswith(f"report: {tmp_path / 'run' / 'report.html'}\n")
    assert (tmp_path / "run" / "report.html").is_file()


def test_eval_json_is_results_json(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--passages", "none", "--limit", 2, "--json")
    assert evaluate(home, tmp_path / "run", *flags) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(json.loads(line)["tasks"]["nq"]["metrics"]) == {"exact_match", "f1"}


def test_unanswerable_prompts_read_no_gold_passage_and_have_confidence(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(home / "model", model)
    settings = json.loads((model / "imprag.json").read_text())
    settings["confidence"] = {"mean_log_probability": 1.0, "bias": 3.0}
    (model / "imprag.json").write_text(json.dumps(settings))
    options = ("--model", model, "--index", home / "index", "--tasks", home / "examples.jsonl")
    for out, more in (("own", ()), ("unanswerable", ("--unanswerable",))):
        assert run("eval", *options, "--dtype", "float32", "--out", tmp_path / out, *more) == 0
    lines = (tmp_path / "unanswerable" / "predictions.jsonl").read_text().splitlines()
    for prediction in map(json.loads, lines):
        assert len(prediction["passages"]) == 2
        gold = {id for ids in prediction["gold"] for id in ids}
        assert gold
        assert not gold & {one["id"] for one in prediction["passages"]}
        assert 0 < prediction["confidence"] < 1
    results = json.loads((tmp_path / "own" / "results.json").read_text())["tasks"]
    assert {task: found["confidence"]["n"] for task, found in results.items()} == {
        "nq": 7,
        "trex": 7,
    }
    page = (tmp_path / "unanswerable" / "report.html").read_text()
    assert "without the gold passages" in page
    assert "AUROC" in page
    assert "wrong answers among them" in page.lower()
    for other in (("--retrieval-only",), ("--passages", "gold")):
        assert run("eval", *options, "--out", tmp_path / "no", "--unanswerable", *other) == 2
        assert "--unanswerable has no effect" in capsys.readouterr().err


def test_a_large_weight_reads_the_best_passage_alone(home: Path, tmp_path: Path) -> None:
    def answers(name: str, *flags: object) -> list[str]:
        assert evaluate(home, tmp_path / name, "--index", home / "index", *flags) == 0
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        return [json.loads(line)["answer"] for line in lines]

    weighted = answers("weighted", "--k", 2, "--attention-score-bias", 1e4)
    assert weighted == answers("first", "--k", 1)
    assert weighted != answers("alike", "--k", 2, "--attention-score-bias", 0)
    assert "attention_score_bias: 10000.0" in (tmp_path / "weighted" / "recipe.yaml").read_text()


def test_bm25_finds_by_words(runs: list[Path]) -> None:
    results = json.loads((runs[1] / "results.json").read_text())["tasks"]
    # The words of the prompt's instructions are in no passage, and those of the question in one.
    assert results["nq"]["metrics"]["passage_recall@1"]["mean"] == 1
    assert results["nq"]["metrics"]["answer_recall@1"]["mean"] == 1
    assert "exact_match" not in results["nq"]["metrics"]


def test_eval_of_given_passages(home: Path, tmp_path: Path) -> None:
    corpus = ("--corpus", home / "corpus.jsonl", "--limit", 2)
    gold = ("--passages", "gold", "--in-context")
    assert evaluate(home, tmp_path / "oracle", *gold, *corpus) == 0
    lines = (tmp_path / "oracle" / "predictions.jsonl").read_text().splitlines()
    for one in map(json.loads, lines):
        assert [[passage["id"]] for passage in one["passages"]] == one["gold"]
    hidden = ("--passages", "gold-among-others", "--k", 3)
    assert evaluate(home, tmp_path / "hidden", *hidden, *corpus) == 0
    lines = (tmp_path / "hidden" / "predictions.jsonl").read_text().splitlines()
    for one in map(json.loads, lines):
        ids = [passage["id"] for passage in one["passages"]]
        assert len(ids) == 3
        assert one["gold"][0][0] in ids
    recipe = (tmp_path / "hidden" / "recipe.yaml").read_text()
    assert "from: oracle\n    among: 3\n    seed: 0\n" in recipe
    assert "reading:\n    k: 3\n" in recipe
    assert "the first gold passage among 3" in (tmp_path / "hidden" / "report.html").read_text()
    index = ("--index", home / "index", "--limit", 2)
    text = ("--retrieval", "lexical", "--query-template", "oracle", "--k", 1)
    assert evaluate(home, tmp_path / "text", *text, *index) == 0
    recipe = (tmp_path / "text" / "recipe.yaml").read_text()
    assert "from: lexical\n    query_template: oracle\n" in recipe
    assert "reading:\n    k: 1\n" in recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--passages", "gold", "--retrieval-only"), "nothing to measure with --passages gold"),
        (("--corpus", "factbook"), "--corpus and --query-template are not for the model's own"),
        (("--query-template", "oracle"), "are not for the model's own retrieval"),
        (
            ("--passages", "none", "--attention-score-bias", "0"),
            "--attention-score-bias has no effect without the model's own retrieval: leave it out",
        ),
        (
            ("--retrieval", "lexical", "--passages", "none", "--query-template", "oracle"),
            "--retrieval, --query-template have no effect with --passages none: leave them out",
        ),
        (
            ("--passages", "none", "--k", "3", "--in-context", "--kv-cache", "x", "--corpus", "y"),
            "--k, --in-context, --kv-cache, --corpus have no effect with --passages none",
        ),
        (
            ("--retrieval-only", "--kv-cache", "x", "--in-context", "--attention-score-bias", "1"),
            "--in-context, --kv-cache, --attention-score-bias have no effect with --retrieval-only",
        ),
        (
            ("--in-context", "--kv-cache", "x", "--attention-score-bias", "1"),
            "--kv-cache, --attention-score-bias have no effect with --in-context",
        ),
        (("--passages", "gold-among-others"), "--passages gold-among-others needs --k"),
        (
            ("--passages", "gold-among-others", "--k", "0", "--index", "{home}/index"),
            "cannot be among 0 passages of a corpus of 12",
        ),
        (
            ("--tasks", "nq={home}/examples.jsonl", "{home}/examples.jsonl", "--split", "dev"),
            "--split has no effect on files: leave it out",
        ),
        (("--tasks", "nope"), "no task or file 'nope'"),
        (("--tasks", "nq=nope.jsonl"), "nope.jsonl does not exist"),
        ((), "no index to retrieve from"),
        (("--passages", "none", "--limit", "0"), "limit must be at least 1"),
        (("--passages", "none", "--retrieval", "nope"), "nope"),
    ],
)
def test_eval_mistakes(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    given = [str(argument).format(home=home) for argument in arguments]
    assert evaluate(home, tmp_path / "run", *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_eval_says_which_field_of_which_line_is_wrong(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_lines(tmp_path / "nq.jsonl", [{"question": "who", "answer": ["x"]}, {"answer": []}])
    assert evaluate(home, tmp_path / "run", "--passages", "none", "--tasks", f"nq={bad}") == 2
    assert "nq.jsonl, line 2: field 'question' is missing; expected text" in capsys.readouterr().err


def test_eval_refuses_another_run(
    home: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(home, runs[0], "--index", home / "index", "--k", 1) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"imprag: error: {runs[0]} holds another run: reading.k is 2 there")


def test_a_resumed_run_keeps_the_dtype_that_auto_measured_first(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--tasks", home / "examples.jsonl", "--model", home / "model", "--index")
    command = ("eval", *files, home / "index", "--out", tmp_path / "run", "--limit", 1)
    for faster_in_bfloat16 in (False, True):
        monkeypatch.setattr(
            "imprag.model.base._cpu_is_faster_in_bfloat16", lambda faster=faster_in_bfloat16: faster
        )
        assert run(*command, "--device", "cpu") == 0
    assert run(*command, "--device", "cpu", "--dtype", "bfloat16") == 2
    error = capsys.readouterr().err
    assert "model.dtype is float32 there and bfloat16 here" in error


def test_compare(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", *runs, "--html", tmp_path / "table.html") == 0
    out = capsys.readouterr().out
    assert "<svg" in (tmp_path / "table.html").read_text()
    assert "| nq   | passage recall@1  |" in out
    assert "exact match" not in out
    assert run("compare", *runs, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {("nq", "mrr"), ("trex", "mrr")} <= {(row["task"], row["metric"]) for row in rows}
    assert len(rows) == 2 * 13
    assert run("compare", runs[0]) == 2
    assert "at least two run folders" in capsys.readouterr().err


def test_tasks_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "list") == 0
    names = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert names == task_names()
    assert run("tasks", "list") == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    tasks = {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}
    assert tasks["nq"] == ["exact_match", "yes", "Q: {input} A:"]
    assert tasks["coqa"][1] == "no"


def test_tasks_import(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provenance = [{"wikipedia_id": "1", "title": "w3"}]
    kilt = write_lines(
        tmp_path / "kilt.jsonl",
        [
            {"id": "1", "input": "w1", "output": [{"answer": "w16", "provenance": provenance}]},
            {"id": "2", "input": "w2", "output": [{"answer": "w90"}]},
        ],
    )
    arguments = ("--corpus", home / "corpus.jsonl", "--out", tmp_path / "nq.jsonl")
    assert run("tasks", "import", kilt, *arguments) == 2
    assert f"imprag tasks import TASK={kilt}" in capsys.readouterr().err
    assert run("tasks", "import", f"nq={kilt}", *arguments, "--split", "train") == 2
    assert "--split has no effect on a file: leave it out" in capsys.readouterr().err
    assert run("tasks", "import", f"nq={kilt}", *arguments) == 0
    assert "title+answer: 1\n" in capsys.readouterr().out
    first, second = read_examples(tmp_path / "nq.jsonl")
    assert first.output[0].provenance == [{**provenance[0], "passage_id": "p3"}]
    assert second.meta["link"] == "none"
    # What was imported can be evaluated, here on one gold passage and two answers.
    what = ("--tasks", tmp_path / "nq.jsonl", "--retrieval", "lexical", "--retrieval-only")
    corpus = ("--corpus", home / "corpus.jsonl", "--out", tmp_path / "run")
    assert run("eval", *what, *corpus) == 0
    result = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]["nq"]
    assert result["metrics"]["passage_recall@1"]["n"] == 1
    assert result["metrics"]["answer_recall@1"]["n"] == 2


def test_tasks_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def build(out: Path, seed: int) -> dict[str, Any]:
        calls.append((out, seed))
        splits = {"train": {"examples": 1200}, "test": {"examples": 34}}
        return {"tasks": {"a": {"splits": splits}, "b": {"splits": {"test": {"examples": 5}}}}}

    monkeypatch.setattr(BENCHMARKS, "_registered", {"b": Benchmark(1, build)})
    assert run("tasks", "build", "b", "--out", tmp_path / "bench") == 0
    assert calls == [(tmp_path / "bench", 0)]
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in row] for row in rows[2:]] == [
        ["a", "1,200", "34"],
        ["b", "", "5"],
    ]
    assert run("tasks", "build", "nope", "--out", tmp_path / "bench") == 2
    assert "unknown benchmark 'nope'; known are b, factbook (" in capsys.readouterr().err


def test_commands_that_are_scripts_now_name_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "rename", "factbook-bench", "--copies", 2) == 2
    assert capsys.readouterr().err.endswith("python examples/default_model/rename.py\n")
    assert run("tasks", "counterfactual") == 2
    assert capsys.readouterr().err.endswith("python examples/default_model/counterfactual.py\n")
