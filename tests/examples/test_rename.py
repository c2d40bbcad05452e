"""Passages and questions about countries under new names."""

import json
from pathlib import Path

import pytest
from rename import main, rename_countries, renamed_text

from factbook_built import Built
from imprag.corpus import load_corpus
from imprag.errors import ImpRAGError
from imprag.tasks import read_examples
from imprag.tasks.matching import contains_answer
from imprag.tasks.self_supervised import lookup


def test_countries_are_renamed_in_passages_and_questions(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(built.folder), "--out", str(tmp_path / "renamed"), "--copies", "2"])
    counts = json.loads(capsys.readouterr().out)
    questions = list(read_examples(tmp_path / "renamed/questions.jsonl"))
    corpus = load_corpus(str(tmp_path / "renamed/passages.jsonl"))
    train = built.manifest["splits"]["countries"]["train"]
    names = {question.meta["country"] for question in questions}
    assert counts == {
        "names": len(names),
        "passages": len(corpus),
        "questions": len(questions),
    }
    assert 300 < len(names) <= 2 * len(train)

    # No name has a word of a real country's name, except the words of compounds.
    splits = built.manifest["splits"]["countries"]
    taken = {word for group in splits.values() for name in group for word in name.split()}
    compound = {"Republic", "of", "North", "South", "East", "West", "New", "Upper", "Saint"}
    compound |= {"Islands", "Island", "City", "Strip"}
    assert not {word for name in names for word in name.split()} & taken - compound

    real = {example.id: example for example in built.examples["factbook/qa", "train"]}
    for question in questions[::97]:
        name = question.meta["country"]
        original = real[question.id.partition("/")[2]]
        assert name in question.input
        assert original.meta["country"].removeprefix("The ") not in question.input
        assert question.answers == [
            renamed_text(answer, original.meta["country"], name) for answer in original.answers
        ]
        assert question.meta["relation"] == original.meta["relation"]
        for passage in corpus.passages(corpus.rows(question.gold_ids)):
            assert passage.title.startswith(f"{name}, ")
            assert passage.subject == name
            assert contains_answer(passage.text, question.answers)


def test_names_also_come_from_other_corpora_fewest_tokens_first(
    built: Built, tmp_path: Path
) -> None:
    texts = ["We met old Zyq and Quobblestonehenge, then Zyq and Quobblestonehenge again."]
    lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = {}
    for one in ("Zyq", "Quobblestonehenge"):
        rename_countries(
            built.folder,
            tmp_path / one,
            1,
            names_from=[tmp_path / "more.jsonl"],
            tokens=lambda word, one=one: 1 if word == one else 2,
        )
        read = read_examples(tmp_path / one / "questions.jsonl")
        found[one] = {question.meta["country"] for question in read}
        assert any(one in name for name in found[one])
    assert not any("Quobblestonehenge" in name for name in found["Zyq"])
    # The fields of renamed countries can be looked up like those of real ones.
    made = list(lookup(load_corpus(str(tmp_path / "Zyq/passages.jsonl"))))
    assert len(made) > 100
    assert {example.group[0] for example in made} <= found["Zyq"]


def test_renaming_refuses_bad_input(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match=r"can name 15\d countries at most \d+ times, not 500"):
        rename_countries(built.folder, tmp_path / "out", copies=500)
    with pytest.raises(ImpRAGError, match="exists already"):
        rename_countries(built.folder, built.folder)
    with pytest.raises(ImpRAGError, match="not a benchmark"):
        rename_countries(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("country", "text", "renamed"),
    [
        ("Chad", "What is Chad's capital?", "What is Leopold's capital?"),
        ("The Gambia", "The rivers of the Gambia", "The rivers of Leopold"),
        ("Netherlands", "the Netherlands' ports", "Leopold's ports"),
        ("Guinea", "Guinean, Guinea, N. GUINEA", "Guinean, Leopold, N. GUINEA"),
    ],
)
def test_a_country_in_a_sentence_is_renamed(country: str, text: str, renamed: str) -> None:
    assert renamed_text(text, country, "Leopold") == renamed


def test_the_script_reports_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "error: " in (last := capsys.readouterr().err.splitlines()[-1])
    assert "is not a benchmark" in last
