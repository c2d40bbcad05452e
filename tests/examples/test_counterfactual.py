"""Counterfactual questions and passages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from counterfactual import main, make_counterfactual, replaced
from hypothesis import given
from hypothesis import strategies as st

from imprag.corpus import load_corpus
from imprag.errors import ImpRAGError
from imprag.tasks import read_examples

PASSAGES = [
    {
        "id": "gov",
        "title": "Tarnby, Government",
        "text": "Capital: Oldmouth. Head: President Ada LINDQVIST. Area: 1,204.5 sq km "
        "(2024 est.). Founded in 1810 in Tarnby by a president.",
        "meta": {"country": "Tarnby"},
    },
    {"id": "more", "title": "", "text": "Quorby, Zeldmere and Quorby; Zeldmere again."},
]


def question(id: str, text: str, *answers: str, gold: str = "gov") -> dict[str, Any]:
    output = [{"answer": answer, "provenance": [{"passage_id": gold}]} for answer in answers]
    return {"id": id, "task": "qa", "input": text, "output": output, "meta": {"relation": id}}


QUESTIONS = [
    question("capital", "What is Tarnby's capital?", "Oldmouth"),
    question("head", "Who heads Tarnby?", "Ada Lindqvist", "President Ada Lindqvist", "Lady Ada"),
    question("area", "How large was Tarnby in 2024?", "1,204.5 sq km", "1,204.5"),
    question("founded", "When was Tarnby founded?", "1810"),
    question("year", "Of which year is its area?", "2024"),
    question("founder", "Who founded it?", "a president"),
    question("elsewhere", "Where?", "Oldmouth", gold="unknown"),
    question("unstated", "What?", "not there"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    for name, rows in (("passages", PASSAGES), ("questions", QUESTIONS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def made(folder: Path, out: str, seed: int = 0) -> dict[str, int]:
    files = folder / "questions.jsonl", folder / "passages.jsonl"
    return make_counterfactual(*files, folder / out, seed)


def test_answers_and_their_passage_get_the_same_replacements(folder: Path) -> None:
    assert made(folder, "a") == {"passages": 1, "questions": 6, "left_out": 2}
    (passage,) = load_corpus(folder / "a/passages.jsonl")
    assert passage.id == "counterfactual/gov"
    assert (passage.title, passage.meta["country"]) == ("Tarnby, Government", "Tarnby")
    found = {each.meta["relation"]: each for each in read_examples(folder / "a/questions.jsonl")}
    assert all(each.gold_ids == [passage.id] for each in found.values())
    assert [each.input for each in found.values()] == [each["input"] for each in QUESTIONS[:6]]

    (capital,) = found["capital"].answers
    assert capital in {"Quorby", "Zeldmere"}
    assert f"Capital: {capital}. " in passage.text
    # An alias that the passage lacks is dropped; titles and capitals are kept.
    head, titled = found["head"].answers
    assert titled == f"President {head}"
    first, last = head.split()
    assert {first, last} <= {"Quorby", "Zeldmere"}
    assert f"Head: President {first} {last.upper()}. " in passage.text
    # Numbers keep their form.
    area, bare = found["area"].answers
    assert area == f"{bare} sq km"
    assert re.fullmatch(r"[1-9],[1-9]\d[1-9]\.[1-9]", bare)
    assert f"Area: {area} (2024 est.)" in passage.text
    assert f"Founded in {found['founded'].answers[0]} in Tarnby by a president." in passage.text
    # Words of the passage's questions are kept, and so are common words.
    assert found["year"].answers == ["2024"]
    assert found["founder"].answers == ["a president"]
    kept = {"Oldmouth", "Ada", "LINDQVIST", "1810", "204.5"}
    assert not any(word in passage.text for word in kept)


def test_without_other_names_only_numbers_change(folder: Path) -> None:
    (folder / "passages.jsonl").write_text(json.dumps(PASSAGES[0]), encoding="utf-8")
    assert made(folder, "a")["questions"] == 6
    (passage,) = load_corpus(folder / "a/passages.jsonl")
    assert "Capital: Oldmouth. Head: President Ada LINDQVIST. " in passage.text
    assert "1810" not in passage.text


def test_another_seed_gives_other_replacements(folder: Path) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        made(folder, out, seed)
    for name in ("questions.jsonl", "passages.jsonl"):
        a, b, c = ((folder / out / name).read_bytes() for out in "abc")
        assert a == b != c


def test_the_script_writes_the_folder_and_refuses_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, passages = str(folder / "questions.jsonl"), str(folder / "passages.jsonl")
    arguments = [questions, "--corpus", passages, "--out", str(folder / "a")]
    main(arguments)
    assert json.loads(capsys.readouterr().out)["questions"] == 6
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    with pytest.raises(ImpRAGError, match="exists already"):
        made(folder, "a")
    none = folder / "none.jsonl"
    none.write_text(json.dumps(QUESTIONS[6]), encoding="utf-8")
    with pytest.raises(ImpRAGError, match="no question of .* has a passage"):
        make_counterfactual(none, passages, folder / "b")
    with pytest.raises(ImpRAGError, match="missing"):
        make_counterfactual(folder / "missing.jsonl", passages, folder / "b")
    assert not (folder / "b").exists()


@given(st.text(), st.dictionaries(st.text(min_size=1), st.text()))
def test_only_whole_numbers_and_words_are_replaced(text: str, other: dict[str, str]) -> None:
    assert replaced(text, {}) == text
    assert replaced(text, {f"{word}x1": new for word, new in other.items()}) == text


def test_parts_of_numbers_and_words_are_not_replaced() -> None:
    other = {"8": "3", "man": "Quorby", "1.5": "9.2"}
    assert replaced("8%, 18, 8.5, 1.5, Man, MAN, German", other) == (
        "3%, 18, 8.5, 9.2, Quorby, QUORBY, German"
    )
