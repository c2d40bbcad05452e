"""Importing SQuAD as an open corpus."""

import json
from pathlib import Path
from typing import Any

import official_formats as official
import pytest

from imprag.cli import main
from imprag.corpus import Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.tasks import read_examples
from imprag.tasks.open_corpus import write_open_corpus
from imprag.tasks.squad import import_squad

ROW = {
    "id": "1",
    "title": "Beyonc%C3%A9_Knowles",
    "context": " She sang in Tarnby. ",
    "question": " Where did she sing? ",
    "answers": {"text": ["Tarnby", "Tarnby", "in Tarnby"], "answer_start": [12, 12, 9]},
}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_official_files_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    source = written(tmp_path / "train.json", official.SQUAD_V2)
    assert import_squad(source, tmp_path / "squad") == {"passages": 1, "questions": 1}
    (passage,) = load_corpus(tmp_path / "squad" / "passages.jsonl")
    assert (passage.title, passage.text) == ("Tarnby", "Tarnby has two mills.")
    (example,) = read_examples(tmp_path / "squad" / "questions.jsonl")
    assert example.input == "How many mills does Tarnby have?"
    assert example.answers == ["two mills", "two"]
    assert example.gold_ids == [passage.id]
    assert example.task == "squad"


def test_hub_rows_with_the_same_paragraph_share_a_passage(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "id": "2", "question": "Who?"}, {**ROW, "id": "3", "answers": []}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_squad(source, tmp_path / "a") == {"passages": 1, "questions": 2}
    first, second = read_examples(tmp_path / "a" / "questions.jsonl")
    assert first.input == "Where did she sing?"
    assert first.answers == ["Tarnby", "in Tarnby"]
    assert first.gold_ids == second.gold_ids
    passage = json.loads((tmp_path / "a" / "passages.jsonl").read_text())
    assert passage["title"] == "Beyoncé Knowles"
    assert passage["text"] == "She sang in Tarnby."
    import_squad(source, tmp_path / "b")
    for name in ("passages.jsonl", "questions.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="missing.json does not exist"):
        import_squad(tmp_path / "missing.json", tmp_path / "squad")
    bad = written(tmp_path / "bad.json", {"data": [{"title": "A", "paragraphs": [{"qas": []}]}]})
    with pytest.raises(ImpRAGError, match="field 'context' is missing"):
        import_squad(bad, tmp_path / "squad")
    none = written(tmp_path / "none.jsonl", {**ROW, "answers": []})
    with pytest.raises(ImpRAGError, match="no question with an answer"):
        import_squad(none, tmp_path / "squad")
    assert not (tmp_path / "squad").exists()
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "note.txt").write_text("mine")
    with pytest.raises(ImpRAGError, match="exists already"):
        import_squad(bad, tmp_path / "squad")


def test_the_command_imports_squad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "rows.jsonl", ROW)
    assert main(["tasks", "import-squad", str(source), "--out", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out == "passages: 1\nquestions: 1\n"


def test_a_folder_made_by_another_process_meanwhile_is_refused(
    tmp_path: Path,
) -> None:
    write_open_corpus(tmp_path / "out", [], {"a": Passage("a", "", "one")})
    with pytest.raises(ImpRAGError, match="exists already; delete it or choose another folder"):
        write_open_corpus(tmp_path / "out", [], {"b": Passage("b", "", "two")})
    assert '"a"' in (tmp_path / "out" / "passages.jsonl").read_text()
