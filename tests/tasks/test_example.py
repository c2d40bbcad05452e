"""Examples: their fields, evidence sets and files."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.errors import ImpRAGError
from imprag.tasks import Answer, Example, answers, read_examples, write_examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2)
)
EXAMPLES = st.lists(
    st.builds(
        Example,
        id=TEXT,
        input=TEXT,
        output=st.lists(
            st.builds(
                Answer,
                TEXT,
                st.lists(st.dictionaries(st.just("passage_id") | TEXT, TEXT), max_size=2),
            ),
            min_size=1,
            max_size=3,
        ),
        meta=st.dictionaries(TEXT, JSON, max_size=2),
        task=st.sampled_from(["", "nq"]),
    ),
    max_size=4,
    unique_by=lambda example: example.id,
)


@settings(deadline=None)
@given(EXAMPLES, st.sampled_from(["e.jsonl", "e.jsonl.gz"]))
def test_examples_round_trip_through_a_file(
    tmp_path_factory: Any, examples: list[Example], name: str
) -> None:
    path = tmp_path_factory.mktemp("examples") / name
    assert write_examples(path, examples) == len(examples)
    assert list(read_examples(path)) == examples


def test_equal_examples_give_equal_bytes(tmp_path: Path) -> None:
    example = Example("1", "Who?", answers(["é"]))
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_examples(tmp_path / name, [example])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    good = Example("1", "Who?", answers(["x"]))
    bad = Example("2", "Who?", answers(["x"]), {"set": {1, 2}})
    with pytest.raises(ImpRAGError, match="cannot write example '2'"):
        write_examples(tmp_path / "e.jsonl", [good, bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("relevance", ['"high"', "null", "-1", "true"])
def test_a_relevance_that_is_no_number_is_refused(tmp_path: Path, relevance: str) -> None:
    path = tmp_path / "e.jsonl"
    graded = f'{{"passage_id": "a", "relevance": {relevance}}}'
    path.write_text(
        f'{{"id": "1", "input": "?", "output": [{{"answer": "x", "provenance": [{graded}]}}]}}\n'
    )
    with pytest.raises(ImpRAGError, match=r"e\.jsonl.*relevance.*number"):
        list(read_examples(path))


@pytest.mark.parametrize("output", [[], [Answer("")], [Answer(" ", [{"wikipedia_id": "9"}])]])
def test_an_example_without_answer_is_refused(output: list[Answer]) -> None:
    with pytest.raises(ImpRAGError, match="example '7' has neither an answer nor a gold passage"):
        Example("7", "Who?", output)


def test_answers_are_distinct_and_provenance_only_outputs_are_no_answers() -> None:
    assert answers(["a", "b", "a"]) == [Answer("a"), Answer("b")]
    assert Example("1", "?", [Answer("a"), Answer("", [{"passage_id": "p"}])]).answers == ["a"]


def test_evidence_sets_are_joint_or_single() -> None:
    def passages(*ids: str | None) -> list[dict[str, Any]]:
        return [{"passage_id": id, "title": "T"} if id else {"title": "T"} for id in ids]

    output = [Answer("a", passages("p", "q")), Answer("b", passages("q", "p")), Answer("c")]
    example = Example("1", "?", [*output, Answer("d", passages("r", None))])
    assert example.evidence_sets(joint=False) == [{"p"}, {"q"}, {"r"}]
    # The last answer needs an unknown passage, so no ranking can prove it.
    assert example.evidence_sets(joint=True) == [{"p", "q"}]
    assert example.evidence_sets(joint=True, key="title") == [{"T"}]
    assert example.evidence_sets(joint=True, key="page") == []
