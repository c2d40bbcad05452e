"""Every task reader turns any file into examples or one clear error, and loses no good record."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imprag.errors import ImpRAGError
from imprag.evaluation.compare import compare
from imprag.tasks import load_benchmark, load_task, read_examples, read_tasks
from imprag.tasks.squad import import_squad

TASKS = ("nq", "simpleqa", "fever", "2wiki", "hotpotqa", "trex", "squad", "aida")
FIELDS = (
    *("id", "_id", "input", "output", "question", "answer", "answers", "metadata", "problem"),
    *("label", "claim", "evidence", "supporting_facts", "type", "task", "meta", "context", "title"),
    *("data", "paragraphs", "qas", "provenance", "text", "passage_id"),
)
texts = st.text(max_size=12) | st.sampled_from(["x", "True", "[SEP]", "\ud800", "a" * 200_000])
scalars = st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | texts, inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)
good = {
    "nq": {"question": "who?", "answer": ["x"]},
    "simpleqa": {"metadata": "{}", "problem": "who?", "answer": "x"},
    "fever": {"id": 1, "claim": "x", "label": "SUPPORTS", "evidence": [[[1, 2, "Page", 0]]]},
    "trex": {"id": "1", "input": "x [SEP] y", "output": [{"answer": "z"}]},
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1")
fuzzed = settings(
    deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True
)


def only_clear_errors(read: Callable[[], object]) -> Any:
    """The result of ``read``, or None if it raises a one-line error."""
    refused = []
    try:
        return read()
    except ImpRAGError as error:
        refused.append(str(error))
    (message,) = refused
    assert "\n" not in message
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


@fuzzed
@given(
    st.lists(objects | values | st.sampled_from(list(good.values())), max_size=4),
    st.sampled_from(["jsonl", "json", "csv", "jsonl.gz"]),
    st.sampled_from(ENCODINGS),
    st.sampled_from(TASKS),
)
def test_any_records_give_examples_or_a_one_line_error(
    folder: Path, rows: list[Any], ending: str, encoding: str, task: str
) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{','.join(lines)}]" if ending == "json" else "\n".join(lines)
    content = encoded(text, encoding)
    path = folder / f"rows.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    found = only_clear_errors(lambda: list(load_task(task).read(path)))
    if found is not None and ending != "csv":
        assert len(found) <= len(rows)
    only_clear_errors(lambda: list(read_examples(path)))
    only_clear_errors(lambda: read_tasks([str(path)]))


@fuzzed
@given(st.binary(max_size=300), st.sampled_from(["jsonl", "json", "csv", "jsonl.gz", "parquet"]))
def test_any_bytes_give_examples_or_a_one_line_error(
    folder: Path, content: bytes, ending: str
) -> None:
    path = folder / f"bytes.{ending}"
    path.write_bytes(content)
    for task in TASKS:
        only_clear_errors(lambda task=task: list(load_task(task).read(path)))


@fuzzed
@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20
        ).filter(str.strip),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.booleans(),
)
def test_every_good_record_becomes_an_example(
    folder: Path, questions: list[str], encoding: str, windows: bool
) -> None:
    end = "\r\n" if windows else "\n"
    nq = folder / "nq.jsonl"
    rows = [{"question": question, "answer": [question]} for question in questions]
    nq.write_bytes(encoded(end.join(map(json.dumps, rows)), encoding))
    assert [one.input for one in load_task("nq").read(nq)] == questions

    quiz = folder / "quiz.csv"
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator=end)
    writer.writerow(["metadata", "problem", "answer"])
    without_nul = [question.replace("\0", "?") for question in questions]
    writer.writerows(["{}", question, "x"] for question in without_nul)
    quiz.write_bytes(encoded(stream.getvalue(), encoding))
    assert [one.input for one in load_task("simpleqa").read(quiz)] == without_nul


def test_a_field_of_any_length_is_read_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "quiz.csv"
    path.write_text(f"metadata,problem,answer\n{{}},{'long ' * 60_000},x\n{{}},short,y\n")
    limit = csv.field_size_limit()
    found = list(load_task("simpleqa").read(path))
    assert [len(one.input) for one in found] == [300_000, 5]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read_with_a_byte_order_mark_and_refused_without(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "nq.jsonl"
    path.write_bytes('{"question": "who?", "answer": ["x"]}'.encode(encoding))
    if encoding == "utf-16":
        assert [one.input for one in load_task("nq").read(path)] == ["who?"]
    else:
        with pytest.raises(ImpRAGError, match=r"nq.jsonl"):
            list(load_task("nq").read(path))


@fuzzed
@given(values)
def test_any_squad_content_is_imported_or_refused(folder: Path, content: Any) -> None:
    path = folder / "squad.json"
    path.write_bytes(encoded(json.dumps(content, ensure_ascii=False), "utf-8"))
    for wrapped in (content, {"data": [{"title": "t", "paragraphs": content}]}):
        path.write_bytes(encoded(json.dumps(wrapped, ensure_ascii=False), "utf-8"))
        only_clear_errors(lambda: import_squad(path, folder / "no-squad"))
        shutil.rmtree(folder / "no-squad", ignore_errors=True)


manifests = values | st.fixed_dictionaries(
    {"version": st.just(2)},
    optional={
        "tasks": values
        | st.dictionaries(
            st.sampled_from(["factbook/qa", "no task"]),
            values | st.fixed_dictionaries({"splits": values | st.just({"test": {"file": "x"}})}),
        ),
        "name": values,
        "seed": values,
    },
)


@fuzzed
@given(manifests)
def test_any_benchmark_manifest_is_loaded_or_refused(folder: Path, manifest: Any) -> None:
    place = folder / "benchmark"
    place.mkdir(exist_ok=True)
    (place / "benchmark.json").write_bytes(encoded(json.dumps(manifest), "utf-8"))
    only_clear_errors(lambda: load_benchmark(place))
    only_clear_errors(lambda: read_tasks(data=place))


predictions = st.lists(
    objects
    | st.fixed_dictionaries(
        {
            "task": values,
            "id": values,
            "metrics": values | st.just({"exact_match": 1.0}),
            "answers": values,
        }
    ),
    max_size=3,
)


@fuzzed
@given(
    values | st.just({"format_version": 1}),
    values | st.just({"tasks": {}}),
    predictions,
    st.binary(max_size=20),
)
def test_any_run_folders_are_compared_or_refused(
    folder: Path, recipe: Any, results: Any, rows: list[Any], tail: bytes
) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "recipe.yaml").write_bytes(encoded(json.dumps(recipe), "utf-8"))
    (run / "results.json").write_bytes(encoded(json.dumps(results), "utf-8"))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "predictions.jsonl").write_bytes(encoded(lines, "utf-8") + tail)
    only_clear_errors(lambda: compare([run, run]))
