"""Studies: the graph of steps, the tables, the plans, and being killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from tiny_study import in_this_process, make_study, run_study

from imprag import reproduce as package
from imprag.cli import main
from imprag.errors import ImpRAGError
from imprag.evaluation.run_folder import RunFolder
from imprag.evaluation.statistics import paired_bootstrap
from imprag.reproduce.graph import find_study, load_graph
from imprag.reproduce.plan import Plan
from imprag.reproduce.run import in_process_of_its_own, reason, reproduce
from imprag.reproduce.tables import make_tables

STUDIES = ("small", "paper")
TIMED = ("hours", "tokens")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("studies"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path_factory.getbasetemp() / "study-cache"))


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole study."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(tmp_path_factory.getbasetemp() / "study-cache"))
        graph = load_graph(study)
        status = reproduce(graph, out, run=in_this_process)
        assert set(status.values()) == {"done"}, (out / "logs").rglob("*.log")
        make_tables(graph, out, status)
    return out


def tables(out: Path) -> dict[str, Any]:
    """``tables.json`` without times."""
    made: dict[str, Any] = json.loads((out / "tables.json").read_text())
    for arm in made["arms"]:
        for part in ("reader", "retriever"):
            for name in TIMED:
                (arm[part] or {}).pop(name, None)
    return made


def scores(out: Path, run: str) -> dict[str, float]:
    predictions = RunFolder.open(out / "eval" / run).predictions()
    return {one["id"]: one["metrics"]["exact_match"] for one in predictions}


def never(command: Sequence[str], folder: Path, log: Path) -> int:
    raise AssertionError(f"{command} is run again")


# --- Running ------------------------------------------------------------------------------------


def test_tables_hold_the_means_over_seeds_and_the_papers_figures(finished: Path) -> None:
    made = tables(finished)
    table2, table4, table8, figure = made["tables"]
    assert [row["label"] for row in table2["rows"]] == [
        *("RA-IT", "RA-IT, paper (3B)", "RA-DIT", "RA-DIT, paper (3B)"),
        *("RA-DIT-LM", "RA-DIT-LM, paper (3B)", "ImpRAG", "ImpRAG, paper (3B)"),
    ]
    assert table2["columns"] == [{"task": "nq", "paper": "NQ"}]
    assert table2["rows"][7]["cells"][0]["text"] == "44.1 (78.4)"
    both = [scores(finished, f"imprag-{seed}-test") for seed in (0, 1)]
    means = [fmean(run[id] for run in both) for id in both[0]]
    ours = table2["rows"][6]
    assert ours["seeds"] == 2
    assert ours["cells"][0]["exact_match"]["mean"] == pytest.approx(fmean(means))
    theirs = list(scores(finished, "ra-dit-lm-0-test").values())
    test, unseen = table2["tests"]
    expected = paired_bootstrap(means, theirs)
    assert test["p_value"] == unseen["p_value"] == expected.p_value
    assert unseen["task"] == "unseen formats"
    assert table4["rows"][0]["trained"] == "ra-it-0"
    assert "nq" in table8["columns"][0]["task"]
    assert [one["value"] for one in figure["panels"]["b"]["ours"]] == [1, 2]
    assert [one["value"] for one in figure["panels"]["b"]["paper"]] == list(range(1, 13))
    assert not any(table["missing"] for table in made["tables"])


def test_all_arms_with_their_first_seeds_come_first() -> None:
    """An interrupted study has something to compare."""
    trained = [name for name in load_graph("small", only=["table2"]).steps if "train/" in name]
    systems = ("ra-it", "ra-dit", "ra-dit-lm", "imprag")
    assert trained == [f"train/{system}-{seed}" for seed in (0, 1) for system in systems]


def test_the_page_needs_no_other_files(finished: Path) -> None:
    page = (finished / "tables.html").read_text()
    assert "<svg" in page
    assert "system: ra-dit-lm" in page
    assert 'id="ra-it-0"' in page
    assert 'href="#ra-it-0"' in page
    assert not any(text in page for text in ("<script", "<link", "src="))
    text = (finished / "tables.md").read_text()
    assert "## Table 2" in text
    assert "- ra-dit-0: `imprag train --config recipes/ra-dit-0.yaml" in text


def test_every_arm_says_its_tokens_and_time(finished: Path) -> None:
    made = json.loads((finished / "tables.json").read_text())
    arms = {arm["name"]: arm for arm in made["arms"]}
    assert set(arms) == {"ra-it-0", "ra-dit-0", "ra-dit-lm-0", "imprag-0", "imprag-1", "b1-0"}
    for name, arm in arms.items():
        assert arm["reader"]["steps"] == 2
        assert arm["reader"]["tokens"] > 0
        assert (arm["retriever"] is not None) == name.startswith("ra-dit")


def test_what_is_there_is_not_run_again(finished: Path, study: Path) -> None:
    graph = load_graph(study)
    assert set(reproduce(graph, finished, run=never).values()) == {"done"}
    only = load_graph(study, only=["table4"])
    assert {step.name for step in only.steps.values()} == {
        *("train/ra-it-0", "eval/ra-it-0-test", "eval/oracle-0-test")
    }
    assert set(reproduce(only, finished, run=never).values()) == {"done"}


def test_a_step_that_cannot_be_prepared_fails_and_the_others_run(
    finished: Path, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "eval" / "imprag-0-test")  # whose prompts the cache is made for
    for name in ("kv/half-0-test", "eval/half-0-test", "eval/oracle-0-test"):
        (out / "steps" / f"{name}.json").unlink()
        shutil.rmtree(out / name)
    status = reproduce(load_graph(study), out, run=in_this_process)
    assert status["kv/half-0-test"] == "failed"
    assert status["eval/half-0-test"] == "waiting"
    assert status["eval/oracle-0-test"] == "done"
    assert "imprag-0-test" in (out / "logs" / "kv" / "half-0-test.log").read_text()


def test_what_was_finished_without_a_note_is_not_run_again(
    finished: Path, study: Path, tmp_path: Path
) -> None:
    """A killed study's training may end by itself."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for note in (out / "steps" / "train").iterdir():
        note.unlink()
    ran: list[Sequence[str]] = []

    def run(command: Sequence[str], folder: Path, log: Path) -> int:
        ran.append(command)
        return 0

    assert set(reproduce(load_graph(study), out, run=run).values()) == {"done"}
    assert ran == []


def test_checkpoints_of_finished_trainings_are_deleted(finished: Path) -> None:
    assert (finished / "train" / "imprag-0" / "model").is_dir()
    assert not list(finished.rglob("checkpoint-*"))


def test_a_failed_step_stops_only_what_needs_it(study: Path, tmp_path: Path) -> None:
    failing = True

    def run(command: Sequence[str], folder: Path, log: Path) -> int:
        if failing and command[-1] == "train/ra-it-0":
            log.write_text("imprag: error: the disk is full\n")
            return 2
        return in_this_process(command, folder, log)

    graph = load_graph(study, only=["table4", "table8"])
    status = reproduce(graph, tmp_path / "run", run=run)
    assert status["train/ra-it-0"] == "failed"
    assert status["eval/oracle-0-test"] == "waiting"
    assert status["eval/half-1-test"] == "done"
    made = make_tables(graph, tmp_path / "run", status)
    table4, table8 = made["tables"]
    assert table4["missing"] == [
        "train/ra-it-0 failed: the disk is full; eval/oracle-0-test needs it"
    ]
    assert table4["rows"][0]["cells"][0]["text"] == "–"
    assert not table8["missing"]
    assert "missing: train/ra-it-0 failed" in (tmp_path / "run" / "tables.md").read_text()
    failing = False
    again = reproduce(graph, tmp_path / "run", run=run)
    assert set(again.values()) == {"done"}


def test_steps_of_another_recipe_are_refused(study: Path, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "study"
    other.mkdir()
    for file in study.iterdir():
        (other / file.name).write_text(file.read_text())
    changed = (other / "imprag.yaml").read_text().replace("steps: 2", "steps: 3")
    (other / "imprag.yaml").write_text(changed)
    with pytest.raises(ImpRAGError, match=r"holds train/ra-it-0 by another command or recipe"):
        reproduce(load_graph(other), finished, run=never)


def test_a_process_of_its_own_runs_imprag(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert in_process_of_its_own()(["tasks", "list"], tmp_path, log) == 0
    assert "hotpotqa" in log.read_text()
    assert in_process_of_its_own()(["tasks", "build", "nothing", "--out", "x"], tmp_path, log) == 2
    assert "nothing" in log.read_text()


def test_a_step_that_the_kernel_kills_names_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imprag").mkdir()
    (tmp_path / "imprag" / "__init__.py").touch()
    (tmp_path / "imprag" / "__main__.py").write_text(
        "import os, sys\nprint(' 98/120 [00:40<00:12]', end='', file=sys.stderr)\n"
        "sys.stderr.flush()\nos.kill(os.getpid(), int(sys.argv[1]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "train.log"
    assert in_process_of_its_own()([str(int(signal.SIGKILL))], tmp_path, log) == -signal.SIGKILL
    assert "98/120" in log.read_text()
    found = reason(tmp_path, "train")
    assert found.startswith("killed by SIGKILL")
    assert "memory" in found
    assert in_process_of_its_own()([str(int(signal.SIGTERM))], tmp_path, log) == -signal.SIGTERM
    assert reason(tmp_path, "train") == "killed by SIGTERM"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_study_gives_the_same_tables(
    study: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at five random moments; the kernel ends the process wherever it is."""
    out, generator = tmp_path / "run", random.Random(0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(["tiny_study"])

    def entries() -> int:  # os.walk passes over folders that vanish meanwhile
        return sum(len(folders) + len(files) for _, folders, files in os.walk(out))

    for _ in range(5):
        process = context.Process(target=run_study, args=(study, out, tmp_path / "cache"))
        process.start()
        before = entries()
        while process.is_alive() and entries() <= before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
        assert process.is_alive(), "the study was finished before it was killed five times"
        process.kill()
        process.join()
    run_study(study, out, tmp_path / "cache")
    assert tables(out) == tables(finished)


# --- Studies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_rows_have_the_papers_figures_beside_them(name: str) -> None:
    paper = yaml.safe_load((Path(package.__file__).parent / "paper.yaml").read_text())
    content = load_graph(name, wiki=Path("wiki")).study
    for key, table in content.tables.items():
        figures = paper[table.paper or key]
        for label in table.rows:
            names = [f"{size} {label}".strip() for size in content.sizes]
            assert any(each in figures["rows"] for each in names), (key, label)
        assert set(table.panels) <= figures.keys()
    for table in paper.values():
        for row in table.get("rows", {}).values():
            assert len(row) == len(table["columns"])


@pytest.mark.parametrize("name", STUDIES)
def test_baselines_differ_from_imprag_in_their_system_only(name: str) -> None:
    steps = load_graph(name, wiki=Path("wiki")).steps
    size = "3b-" if name == "paper" else ""
    ours = steps[f"train/{size}imprag-0"].recipe
    assert ours is not None
    for system in ("ra-it", "ra-dit", "ra-dit-lm"):
        theirs = steps[f"train/{size}{system}-0"].recipe
        assert theirs is not None
        changed = {each.split(":")[0] for each in ours.differences(theirs)}
        # The softmax of cosines needs a temperature, and a bi-encoder a lower rate.
        own = "stages.self_distillation.objective", "train.bottom_learning_rate"
        assert changed - {"system"} == set() or (
            system == "ra-dit" and all(each.startswith(own) for each in changed - {"system"})
        )
        assert theirs.system == system


def test_the_small_study_never_trains_on_unseen_formats() -> None:
    graph = load_graph("small")
    for step in graph.steps.values():
        if step.recipe is not None:
            tasks = {getattr(source, "task", None) for source in step.recipe.data}
            assert not tasks & set(graph.study.unseen)


def test_the_papers_plan_covers_both_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "paper", "--dry-run", "--only", "table2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    steps = {step["name"]: step for step in plan["steps"]}
    assert plan["devices"] == 8
    for size, parameters in (("3b", 3.2e9), ("8b", 8e9)):
        for system in ("ra-it", "ra-dit", "ra-dit-lm", "imprag"):
            train = steps[f"train/{size}-{system}-0"]
            assert train["hours"] > 0.3
            assert train["memory"] > 16 * parameters
            assert train["disk"] >= 4 * parameters
            assert train["checkpoints"] > 12 * parameters
        assert steps[f"index/{size}-imprag-0-enwiki-dec2021"]["hours"] > 0.1
    assert steps["train/8b-imprag-0"]["hours"] > steps["train/3b-imprag-0"]["hours"]
    assert "data/NQ-open.train.jsonl" in plan["missing"]
    assert main(["reproduce", "paper", "--dry-run", "--only", "table2"]) == 0
    text = capsys.readouterr().out
    assert "train/8b-ra-dit-lm-1" in text
    assert "data/NQ-open.train.jsonl: curl" in text


def test_missing_data_is_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "paper", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "20 files are missing; get each by its command:" in error
    assert "data/hotpotqa-dev-kilt.jsonl: curl -L" in error


def test_a_plan_leaves_out_what_is_finished(study: Path, finished: Path, tmp_path: Path) -> None:
    graph = load_graph(study)
    assert Plan(graph, finished).hours == 0
    assert Plan(graph, tmp_path / "none").hours > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--out", "x"], "no study nothing: give small, paper, or a folder"),
        (["small", "--out", "x", "--only", "table9"], "no table table9; there are table2"),
        (["small"], "say with --out"),
        (["small", "--dry-run", "--devices", "0"], "--devices must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_wikipedia_needs_a_folder(tmp_path: Path) -> None:
    assert "--wiki" in load_graph("small").notes[0]
    graph = load_graph("small", wiki=tmp_path)
    assert not graph.notes
    command = graph.steps["eval/ra-it-1-wiki"].command
    assert str(tmp_path / "wiki_questions.jsonl.gz") in command


def test_an_arm_that_is_not_there_is_named(study: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((study / "study.yaml").read_text())
    content["tables"]["table4"]["rows"] = {"oracle": "nobody"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ImpRAGError, match="table4 names the arm nobody"):
        load_graph(tmp_path)
    assert find_study("small").name == "small"
