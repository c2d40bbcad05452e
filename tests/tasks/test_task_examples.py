"""Reading examples from benchmarks, files that name their tasks, and official files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.io.files import sha256, write_json
from imprag.tasks import (
    Answer,
    Example,
    TaskExamples,
    load_benchmark,
    load_task,
    read_tasks,
    split_of_passages,
    write_examples,
)


def example(id: str, text: str, answers: Sequence[str], *gold: str) -> Example:
    first, *others = answers
    proof = [{"passage_id": passage_id} for passage_id in gold]
    return Example(id, text, [Answer(first, proof), *map(Answer, others)])


@pytest.fixture
def bench_folder(tmp_path: Path) -> Path:
    """A benchmark folder with three small tasks."""
    folder = tmp_path / "bench"
    files: dict[str, dict[str, object]] = {}
    for name, split in (("nq", "test"), ("nq", "dev"), ("fever", "test"), ("coqa", "test")):
        file = folder / name / f"{split}.jsonl"
        one = example(f"{name}-{split}", "w1", ["SUPPORTS" if name == "fever" else "x"], "p1")
        count = write_examples(file, [one])
        entry = {"file": f"{name}/{split}.jsonl", "examples": count, "sha256": sha256(file)}
        files.setdefault(name, {"splits": {}})["splits"][split] = entry  # type: ignore[index]
    manifest = {"name": "tiny", "version": 7, "seed": 5, "tasks": files}
    write_json(folder / "benchmark.json", manifest)
    return folder


def test_tasks_of_a_benchmark_are_read(bench_folder: Path) -> None:
    found = read_tasks(["fever", "nq"], data=bench_folder)
    assert [(item.task.name, item.examples[0].id) for item in found] == [
        ("fever", "fever-test"),
        ("nq", "nq-test"),
    ]
    assert found[0].source == "tiny 7, seed 5, test"
    assert found[0].examples[0].answers == ["True"]
    # Without names, all tasks that retrieve.
    assert [item.task.name for item in read_tasks(data=bench_folder)] == ["nq", "fever"]
    (dev,) = read_tasks(["nq"], data=bench_folder, split="dev")
    assert dev.examples[0].id == "nq-dev"
    assert dev.fingerprint() != found[1].fingerprint()


def test_tasks_without_the_split_are_skipped_unless_named(
    bench_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_tasks(data=bench_folder, split="dev")
    assert [item.task.name for item in found] == ["nq"]
    assert capsys.readouterr().err == "note: skipped fever: no split 'dev'\n"
    with pytest.raises(ImpRAGError, match="task 'nq' has no split 'train'; it has test, dev"):
        read_tasks(data=bench_folder, split="train")


def test_a_file_gives_every_task_that_its_examples_name(tmp_path: Path) -> None:
    lines = [
        {"id": "1", "task": "nq", "input": "who", "output": [{"answer": "x"}]},
        {
            "id": "2",
            "task": "aida",
            "input": "[START_ENT] A [END_ENT]",
            "output": [{"answer": "B"}],
        },
        {"id": "3", "task": "nq", "input": "what", "output": [{"answer": "y"}]},
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    nq, aida = read_tasks([str(file)])
    assert [one.id for one in nq.examples] == ["1", "3"]
    assert aida.examples[0].input == "[START] A [END]"
    assert nq.source == str(file)


def test_a_tilde_is_the_home_directory(
    bench_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    example = Example("q", "who?", [Answer("me")], task="nq")
    write_examples("~/q.jsonl", [example])
    for name in ("~/q.jsonl", "nq=~/q.jsonl"):
        (found,) = read_tasks([name])
        assert list(found.examples) == [example]
    monkeypatch.setenv("HOME", str(bench_folder.parent))
    whole = read_tasks(data=bench_folder)
    again = read_tasks(data=f"~/{bench_folder.name}")
    assert [one.fingerprint() for one in again] == [one.fingerprint() for one in whole]


def test_an_official_file_is_read_for_its_task(tmp_path: Path) -> None:
    file = tmp_path / "NQ-open.dev.jsonl"
    file.write_text('{"question": "who", "answer": ["x", "y"]}\n')
    (nq,) = read_tasks([f"nq={file}"])
    assert nq.examples[0].answers == ["x", "y"]


def test_fingerprints_cover_questions_answers_and_prompts(bench_folder: Path) -> None:
    (item,) = read_tasks(["nq"], data=bench_folder)
    others = [
        replace(item, task=replace(item.task, template="{input}?")),
        replace(item, examples=[example("nq-test", "w1", ["y"], "p1")]),
        replace(item, examples=[example("nq-test", "w1", ["x"], "p2")]),
        replace(item, examples=[example("nq-test", "w2", ["x"], "p1")]),
    ]
    assert len({item.fingerprint(), *(other.fingerprint() for other in others)}) == 5
    assert item.fingerprint() == read_tasks(["nq"], data=bench_folder)[0].fingerprint()


def test_bad_names_and_files_are_refused(bench_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="no tasks; name some with --tasks"):
        read_tasks()
    with pytest.raises(
        ImpRAGError, match="no task or file 'nope'; the benchmark has nq, fever, coqa"
    ):
        read_tasks(["nope"], data=bench_folder)
    with pytest.raises(ImpRAGError, match="task 'fever' has no split 'dev'; it has test"):
        read_tasks(["fever"], data=bench_folder, split="dev")
    with pytest.raises(ImpRAGError, match="unknown task 'nope'; known are"):
        read_tasks(["nope=file.jsonl"])
    unnamed = tmp_path / "unnamed.jsonl"
    write_examples(unnamed, [example("1", "w1", ["x"])])
    with pytest.raises(ImpRAGError, match=r"example '1' names no task; give it as --tasks TASK="):
        read_tasks([str(unnamed)])
    twice = tmp_path / "twice.jsonl"
    twice.write_text(unnamed.read_text() * 2)
    with pytest.raises(ImpRAGError, match="the id '1' occurs twice in task 'nq'"):
        read_tasks([f"nq={twice}"])
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"id": "1", "input": "who", "output": []}\n')
    with pytest.raises(ImpRAGError, match=r"empty\.jsonl, line 1: field 'output' has no answer"):
        read_tasks([f"nq={empty}"])


def test_changed_benchmarks_are_refused(bench_folder: Path) -> None:
    with (bench_folder / "nq" / "test.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(ImpRAGError, match=r"test\.jsonl is missing or was changed"):
        read_tasks(["nq"], data=bench_folder)
    (bench_folder / "nq" / "test.jsonl").unlink()
    with pytest.raises(ImpRAGError, match=r"test\.jsonl is missing or was changed"):
        read_tasks(["fever"], data=bench_folder)


def test_a_folder_without_a_manifest_is_not_a_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match=r"not a benchmark: it has no benchmark\.json"):
        load_benchmark(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"tasks": []}, {"tasks": {"nq": {}}}, {"splits": {"articles": []}}, {"splits": "train"}],
    ids=str,
)
def test_a_damaged_manifest_is_refused(bench_folder: Path, change: dict[str, object]) -> None:
    manifest = json.loads((bench_folder / "benchmark.json").read_text())
    write_json(bench_folder / "benchmark.json", {**manifest, **change})
    with pytest.raises(ImpRAGError, match=r"benchmark\.json is damaged"):
        load_benchmark(bench_folder)


def test_a_passage_has_the_split_of_its_subject() -> None:
    countries = {"train": ["Chad"], "test": ["Mali"]}
    split_of = split_of_passages({"splits": {"countries": countries, "rivers": {"dev": ["Niger"]}}})
    section = {"section": "Land"}
    passages = [
        Passage("1", "Chad, Land", "x", section),
        Passage("2", "Mali", "x", section),
        Passage("3", "Niger", "x"),
        Passage("4", "Chad, Land", "x"),
    ]
    assert [split_of(passage) for passage in passages] == ["train", "test", "dev", None]
    assert split_of_passages({})(passages[0]) is None


def test_the_fingerprint_ignores_the_group_of_examples() -> None:
    one = example("1", "x", ["y"])
    grouped = replace(one, meta={"group": ["Chad", "capital"]})
    first, second, third = (
        TaskExamples(load_task("nq"), [each], "test").fingerprint()
        for each in (one, grouped, replace(one, meta={"other": 1}))
    )
    assert first == second != third
