"""The readers on tiny files in the official formats, and on broken files."""

import copy
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import official_formats as official
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imprag.errors import ImpRAGError
from imprag.tasks import load_task, read_examples, read_records, write_examples

DATA = os.environ.get("IMPRAG_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set IMPRAG_TEST_DATA to the development data")


@pytest.mark.parametrize("name", official.FILES)
def test_official_file_gives_the_papers_prompts_and_answers(name: str, tmp_path: Path) -> None:
    task = load_task(name)
    examples = list(task.read(official.write(tmp_path, name)))
    assert [(task.prompt(e), e.answers) for e in examples] == official.EXPECTED[name]
    assert {e.task for e in examples} == {name}
    assert len({e.id for e in examples}) == len(examples)
    assert [task.response(e) for e in examples] == [f" {e.answers[0]}" for e in examples]


@pytest.mark.parametrize("name", official.FILES)
def test_examples_round_trip_and_are_read_by_their_task(name: str, tmp_path: Path) -> None:
    examples = list(load_task(name).read(official.write(tmp_path, name)))
    for file in (tmp_path / "examples.jsonl", tmp_path / "examples.jsonl.gz"):
        assert write_examples(file, examples) == len(examples)
        assert list(read_examples(file)) == examples
        assert list(load_task(name).read(file)) == examples


def test_the_provenance_of_official_files_is_kept(tmp_path: Path) -> None:
    def only(name: str) -> Any:
        return next(load_task(name).read(official.write(tmp_path, name)))

    assert only("hotpotqa").evidence_sets(joint=True, key="wikipedia_id") == [{"101", "102"}]
    assert only("trex").output[1].provenance == official.TREX[0]["output"][1]["provenance"]
    assert only("2wiki").evidence_sets(joint=True, key="title") == [
        {"Lindqvist Mill", "Ada Lindqvist"}
    ]


def test_fevers_own_format_is_read(tmp_path: Path) -> None:
    path = official.write_content(tmp_path / "paper_dev.jsonl", official.FEVER)
    supported, unknown = load_task("fever").read(path)
    assert supported.answers == ["True", "True"]
    assert supported.evidence_sets(joint=True, key="title") == [
        {"Lindqvist Mill (Tarnby)", "Tarnby"},
        {"Tarnby"},
    ]
    assert unknown.answers == ["NOT ENOUGH INFO"]
    assert unknown.evidence_sets(joint=True, key="title") == []


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "trex",
            [
                {
                    **official.TREX[0],
                    "output": [
                        {**output, "meta": {"score": 1}}
                        for output in [
                            *official.TREX[0]["output"],
                            {"answer": "", "provenance": []},
                        ]
                    ],
                }
            ],
        ),
        ("oasst1", official.flat_messages(official.OASST1_TREES)),
        (
            "squad_v2",
            [
                {
                    "id": question["id"],
                    "title": "Tarnby",
                    "context": "Tarnby has two mills.",
                    "question": question["question"],
                    "answers": {
                        "text": [answer["text"] for answer in question["answers"]],
                        "answer_start": [answer["answer_start"] for answer in question["answers"]],
                    },
                }
                for question in official.SQUAD_V2["data"][0]["paragraphs"][0]["qas"]
            ],
        ),
        ("quail", [{**official.QUAIL[0], "correct_answer_id": 2, "question_id": "0"}]),
        (
            "pubmedqa",
            [
                {
                    "pubid": 21645374,
                    "question": "Does flour dust harm millers?",
                    "context": {
                        "contexts": ["We asked forty millers.", "Ten of them coughed."],
                        "labels": ["METHODS", "RESULTS"],
                        "meshes": ["Flour"],
                        "reasoning_required_pred": ["y"],
                    },
                    "long_answer": "Flour dust may harm some millers.",
                    "final_decision": "maybe",
                }
            ],
        ),
        (
            "2wiki",
            [
                {
                    **official.TWO_WIKI[0],
                    "supporting_facts": {
                        "title": ["Lindqvist Mill", "Ada Lindqvist"],
                        "sent_id": [1, 0],
                    },
                    "context": {"title": ["Lindqvist Mill"], "content": [["It is a mill."]]},
                    "evidences": {"fact": ["a"], "relation": ["b"], "entity": ["c"]},
                }
            ],
        ),
    ],
)
def test_hugging_face_rows_give_the_same_examples(
    name: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    task = load_task(name)
    rows = [{key: value for key, value in row.items() if key != "emojis"} for row in rows]
    table = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    for source in (tmp_path / "saved", tmp_path / "rows.parquet"):
        examples = list(task.read(source))
        assert [(task.prompt(e), e.answers) for e in examples] == official.EXPECTED[name]


def test_empty_texts_and_answers_of_training_sets_are_skipped(tmp_path: Path) -> None:
    [row] = official.CNN_DAILYMAIL
    rows = [{**row, "id": "1", "article": " "}, {**row, "id": "2", "highlights": ""}, row]
    path = official.write_content(tmp_path / "rows.jsonl", rows)
    assert [e.id for e in load_task("cnn_dailymail").read(path)] == [row["id"]]
    coqa = copy.deepcopy(official.COQA)
    coqa["data"][0]["answers"][0]["input_text"] = ""
    del coqa["data"][0]["additional_answers"]
    path = official.write_content(tmp_path / "coqa.json", coqa)
    [second] = load_task("coqa").read(path)
    assert second.input == "Where?"


def test_hugging_face_rows_of_coqa_are_read(tmp_path: Path) -> None:
    [story] = official.COQA["data"]
    row = {
        "source": "wikipedia",
        "story": story["story"],
        "questions": [question["input_text"] for question in story["questions"]],
        "answers": {
            "input_text": [answer["input_text"] for answer in story["answers"]],
            "answer_start": [0, 18],
            "answer_end": [17, 38],
        },
    }
    path = official.write_content(tmp_path / "rows.jsonl", [row])
    first, second = load_task("coqa").read(path)
    assert (first.id, first.input, first.answers) == ("coqa-1-1", "Who built it?", ["Ada"])
    assert second.meta["context"].endswith("Q: Who built it? A: Ada")


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("nq", "a.jsonl", '{"question": "who"}\n', r"a.jsonl, line 1: field 'answer' is missing; "
         "expected a list of at least one text"),
        ("nq", "a.jsonl", '{"question": "q", "answer": ["x"]}\n\n{"question": 3, "answer": ["x"]}',
         r"line 3: field 'question' is the value 3; expected text"),
        ("nq", "a.jsonl", '{"question": "who", "answer": []}', r"'answer' is an empty list"),
        ("nq", "a.jsonl", '{"question": "who", "answer": "x"}', "'answer' is text; expected"),
        ("nq", "a.jsonl", "{not json", r"a.jsonl, line 1 is not valid JSON"),
        ("nq", "a.jsonl", "[1]", r"line 1 is a list; expected an object with named fields"),
        ("nq", "a.jsonl", "", r"a.jsonl is empty; expected examples of task 'nq'"),
        ("nq", "a.jsonl", '{"question": "\\ud800", "answer": ["x"]}', "'question' is not valid"),
        ("nq", "a.tsv", "x", r"unknown ending '.tsv'; expected one of .jsonl"),
        ("simpleqa", "a.csv", "metadata,problem\nx,y\n", r"line 2: field 'answer' is missing"),
        ("simpleqa", "a.csv", "metadata,problem,answer\nx,y,z,w\n", r"line 2 has more columns"),
        ("simpleqa", "a.csv", 'metadata,problem,answer\n"x,y\n', r"a.csv is not a CSV file"),
        ("hotpotqa", "a.jsonl", '{"id": 1, "input": "q", "output": []}', r"line 1: field 'output' "
         r"has no answer; expected at least one object with an \"answer\""),
        ("hotpotqa", "a.jsonl", '{"id": 1, "input": " ", "output": [{"answer": "x"}]}',
         "field 'input' is empty text; expected text"),
        ("hotpotqa", "a.jsonl", '{"id": 1, "input": "q"}', "field 'output' is missing"),
        ("hotpotqa", "a.jsonl", '{"id": 1, "input": "q", "output": [{"answer": 3}]}',
         r"line 1, output\[0\]: field 'answer' is the value 3; expected text"),
        ("coqa", "a.json", '{"data": [{"story": "s"}]}', r"data\[0\]: field 'questions' is"),
        ("drop", "a.json", '{"d1": {"qa_pairs": []}}', r"a.json, 'd1': field 'passage' is missing"),
        ("newsqa", "a.json", '{"version": 1}', "a.json holds an object; expected"),
        ("squad_v2", "a.json", "[1]", r"a.json, \[0\] is the value 1; expected an object"),
        ("quail", "a.jsonl", json.dumps({**official.QUAIL[0], "correct_answer_id": "4"}),
         r"'correct_answer_id' is text; expected a number below 4"),
        ("fever", "a.jsonl", json.dumps({**official.FEVER[0], "evidence": [["Tarnby"]]}),
         r"'evidence' is a list; expected lists of \[annotation"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_and_field(
    name: str, file: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(ImpRAGError, match=message) as caught:
        list(load_task(name).read(tmp_path / file))
    assert "\n" not in str(caught.value)


def test_broken_bytes_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "é"}'.encode("latin-1"))
    whole = gzip.compress(b'{"question": "q", "answer": ["x"]}\n' * 5000)
    cut, plain = tmp_path / "cut.jsonl.gz", tmp_path / "plain.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    plain.write_bytes(b"{}")
    parquet = tmp_path / "a.parquet"
    parquet.write_bytes(b"PAR1")
    for path, message in [
        (latin, "is not UTF-8"),
        (cut, "is not a whole gzip file"),
        (plain, "is not a whole gzip file"),
        (parquet, "is not a whole Parquet file"),
    ]:
        with pytest.raises(ImpRAGError, match=message):
            list(read_records(path))


def test_missing_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("huggingface_hub.constants", "datasets.config"):
        pytest.importorskip(module)
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    with pytest.raises(ImpRAGError, match=r"missing.jsonl does not exist"):
        read_records(tmp_path / "missing.jsonl")
    with pytest.raises(ImpRAGError, match=r"questions.json does not exist"):
        read_records("questions.json")
    with pytest.raises(ImpRAGError, match=r"cannot load the dataset .*split validation"):
        list(read_records(tmp_path))
    with pytest.raises(ImpRAGError, match=r"no-such/data-set:dev, split test: .*local file"):
        list(read_records("no-such/data-set:dev", "test"))


def test_a_missing_split_is_refused_with_a_list_of_the_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.DatasetDict({"dev": datasets.Dataset.from_list([{"question": "q"}])})
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(ImpRAGError, match="it has the splits dev, not validation"):
        list(read_records(tmp_path / "saved"))


def test_examples_of_another_task_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    rows = [{**official.TREX[0], "task": "trex"}, {**official.HOTPOTQA[0], "task": "hotpotqa"}]
    official.write_content(path, rows)
    assert [e.id for e in load_task("hotpotqa").read(path)] == [official.HOTPOTQA[0]["id"]]
    with pytest.raises(ImpRAGError, match="no example of task 'nq'; it holds hotpotqa, trex"):
        list(load_task("nq").read(path))


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = official.write_content(tmp_path / "twice.jsonl", official.TREX * 2)
    with pytest.raises(ImpRAGError, match=r"line 2: the id .* already occurs in .*line 1"):
        list(read_examples(path))


JUNK = st.sampled_from([None, 0, -7, True, "", "x", [], ["x"], [[]], {}, {"x": 1}, [{}], 2.5])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, Any]:
    """A task and its official file with one value, at any depth, replaced or removed."""
    name = draw(st.sampled_from([name for name in official.FILES if name != "simpleqa"]))
    content = copy.deepcopy(official.FILES[name][1])
    node: Any = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and draw(st.booleans()):
            node = node[key]
        elif draw(st.booleans()):
            node[key] = draw(JUNK)
            return name, content
        else:
            del node[key]
            return name, content


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damaged())
def test_damaged_files_are_read_or_refused_with_one_line(
    tmp_path: Path, damage: tuple[str, Any]
) -> None:
    name, content = damage
    path = official.write_content(tmp_path / official.FILES[name][0], content)
    task = load_task(name)
    try:
        for example in task.read(path):
            assert example.answers
            assert task.prompt(example)
    except ImpRAGError as error:
        if "\n" in str(error):
            raise AssertionError("the message has more than one line") from error


# --- The development data -----------------------------------------------------------------------

WIKI_COUNTS = {
    "squad": 8986,
    "simpleqa": 3006,
    "fever": 2344,
    "nq": 1329,
    "relation_extraction": 1329,
    "zsre": 917,
    "popqa": 763,
    "hotpotqa": 526,
    "trex": 418,
    "entity_linking": 370,
    "2wiki": 337,
}


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("nq", "NQ-open.dev.jsonl", 3610),
        ("simpleqa", "simple_qa_test_set.head.csv", 200),
        ("fever", "fever_paper_dev.head.jsonl", 200),
        ("zsre", "kilt_gold1.jsonl", 3),
    ],
)
def test_samples_parse_without_loss(name: str, file: str, count: int, tmp_path: Path) -> None:
    path = Path(str(DATA)) / "samples" / file
    examples = list(load_task(name).read(path))
    assert len(examples) == count
    write_examples(tmp_path / "out.jsonl", examples)
    assert list(read_examples(tmp_path / "out.jsonl")) == examples
    for example, record in zip(examples, read_records(path), strict=True):
        if name == "nq":
            assert (example.input, example.answers) == (record["question"], record["answer"])
        if name == "simpleqa":
            fields = [example.meta["metadata"], example.input, example.answers[0]]
            assert fields == list(record.values())
        if name == "fever":
            assert (example.id, example.input) == (str(record["id"]), record["claim"])
            assert len(example.output) == len(record["evidence"])
        if name == "zsre":
            assert {**example.to_json(), "id": record["id"], "task": name} == {
                **record,
                "task": name,
            }


@needs_data
def test_wiki_questions_parse_without_loss_and_have_their_prompts(tmp_path: Path) -> None:
    path = Path(str(DATA)) / "wiki_questions.jsonl.gz"
    examples = list(read_examples(path))
    assert [e.to_json() for e in examples] == [dict(record) for record in read_records(path)]
    assert Counter(e.task for e in examples) == WIKI_COUNTS
    endings = {
        "squad nq popqa hotpotqa 2wiki simpleqa": ("Q: {} A:",),
        "fever": ("Is this statement true? {} A:",),
        "trex relation_extraction": ("{} Provide the answer corresponding to the relation "
            "specified after [SEP] for the entity mentioned before [SEP] A:",),
        "entity_linking": ("{} Output the Wikipedia page title of the entity mentioned between "
            "[START] and [END] in the given text A:",),
    }  # fmt: skip
    template = {task: form for tasks, (form,) in endings.items() for task in tasks.split()}
    for e in examples:
        if e.task == "zsre":
            form = template["trex" if "[SEP]" in e.input else "nq"]
        else:
            form = template[e.task]
        assert load_task(e.task).prompt(e) == form.format(e.input)


@needs_data
@pytest.mark.parametrize("name", WIKI_COUNTS)
def test_every_task_finds_its_own_wiki_questions(name: str) -> None:
    path = Path(str(DATA)) / "wiki_questions.jsonl.gz"
    assert len(list(load_task(name).read(path))) == WIKI_COUNTS[name]


@needs_data
def test_squad_training_questions_parse() -> None:
    path = Path(str(DATA)) / "squad_train_questions.jsonl.gz"
    assert (
        sum(len(e.evidence_sets(joint=False)) == 1 for e in load_task("squad").read(path)) == 78394
    )
