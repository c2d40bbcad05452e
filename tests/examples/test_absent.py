"""Questions whose passage does not answer them."""

import json
from pathlib import Path

import pytest
from absent import absent, main

from imprag.corpus import Corpus, Passage
from imprag.tasks import Answer, Example, read_examples, write_examples

PASSAGES = [
    Passage("a1", "Ada", "Ada was born in 1815."),
    Passage("a2", "Ada", "Ada died in 1852, born 1815."),
    Passage("a3", "Ada", "Ada wrote notes."),
    Passage("b1", "Bob", "Bob was born in 1815."),
]


def asked(number: str, answer: str, passage: str) -> Example:
    return Example(number, f"When {number}?", [Answer(answer, [{"passage_id": passage}])], {}, "qa")


def test_another_passage_of_the_article_does_not_answer(tmp_path: Path) -> None:
    corpus = Corpus.build(PASSAGES, tmp_path / "corpus")
    questions = [asked("q1", "1815", "a1"), asked("q2", "1815", "b1")]
    (made,) = absent(questions, corpus)  # a2 states the year, and Bob has no second passage
    assert (made.id, made.input, made.task) == ("absent-q1", "When q1?", "qa")
    assert (made.answers, list(made.gold_ids)) == (["not found"], ["a3"])


def test_the_script_writes_what_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "absent.jsonl"
    write_examples(questions, [asked(f"q{n}", "1815", "a1") for n in range(5)])
    Corpus.build(PASSAGES, tmp_path / "corpus")
    words = [str(questions), "--corpus", str(tmp_path / "corpus"), "--out", str(out)]
    main([*words, "--limit", "2"])
    assert json.loads(capsys.readouterr().out) == {"questions": 2}
    assert {answer for one in read_examples(out) for answer in one.answers} == {"not found"}
    with pytest.raises(SystemExit):
        main(words)
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "missing.jsonl"), *words[1:3], "--out", str(tmp_path / "o.jsonl")])
    assert "missing.jsonl" in capsys.readouterr().err
