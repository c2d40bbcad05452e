"""Questions as people type them."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typed import main, typed

from imprag.tasks import Answer, Example, load_task, read_examples, write_examples


def asked(relation: str, count: int) -> list[Example]:
    return [
        Example(
            f"{relation}{n}",
            f"What is the {relation} of Land {n}?",
            [Answer(f"{relation} city {n}", [{"passage_id": f"p{n}"}])],
            {"country": f"Land {n}", "relation": relation},
        )
        for n in range(count)
    ]


def test_each_form_keeps_what_is_asked_and_its_passage() -> None:
    examples = asked("capital", 200) + asked("anthem", 200)
    forms: Counter[str] = Counter()
    for example, made in zip(examples, typed(examples), strict=True):
        assert made.gold_ids == example.gold_ids
        relation, country = example.meta["relation"], example.meta["country"]
        assert relation in made.input.lower()
        if made.answers == example.answers:
            forms["same answer"] += 1
            assert country.lower() in made.input.lower()
            said = re.findall(rf"{relation} city \d+", made.input)
            if said:
                assert len(set(said)) == 2
                assert example.answers[0] in said
                forms["the first of two" if said[0] == example.answers[0] else "the second"] += 1
        elif made.answers == [country]:
            forms["reversed"] += 1
            assert example.answers[0] in made.input
            assert country not in made.input
        else:
            said = re.search(rf"{relation} city (\d+)", made.input)
            assert said
            right = said.group() == example.answers[0]
            yes, no = ("True", "False") if " true " in made.input else ("yes", "no")
            assert made.answers == [yes if right else no]
            forms["right" if right else "wrong"] += 1
            forms[f"{yes} or {no}"] += 1
    assert min(forms.values()) > 20, forms
    assert 0.35 < forms["right"] / (forms["right"] + forms["wrong"]) < 0.65


def test_values_of_several_countries_are_not_reversed() -> None:
    examples = [
        Example(f"q{n}", f"What is the currency of Land {n}?", [Answer("franc")],
                {"country": f"Land {n}", "relation": "currency"})
        for n in range(60)
    ]  # fmt: skip
    made = list(typed(examples))
    assert not any(example.answers[0].startswith("Land") for example in made)
    # No other value could be said wrongly.
    assert {example.answers[0] for example in made} == {"franc", "yes", "True"}


def test_questions_about_texts_are_only_shortened() -> None:
    examples = [Example(f"q{n}", f"What is Gaur {n}?", [Answer(f"ox {n}")]) for n in range(80)]
    made = [example.input for example in typed(examples)]
    assert not any(text.endswith("?") for text in made)
    assert {re.sub(r" \d+$", "", text) for text in made} == {
        *("What is Gaur", "what is gaur", "what's Gaur", "what's gaur", "Gaur", "gaur"),
    }
    assert [example.answers for example in typed(examples)] == [one.answers for one in examples]


def test_the_script_writes_examples_that_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, out = tmp_path / "questions.jsonl", tmp_path / "typed.jsonl"
    rows = [Example(one.id, one.input, one.output, one.meta, task="nq") for one in asked("sea", 9)]
    write_examples(questions, rows)
    main([str(questions), "--out", str(out)])
    assert json.loads(capsys.readouterr().out) == {"questions": 9}
    assert list(load_task("nq").read(out)) == list(read_examples(out)) == list(typed(rows))
    with pytest.raises(SystemExit):
        main([str(questions), "--out", str(out)])
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "missing.jsonl"), "--out", str(tmp_path / "other.jsonl")])
    assert "missing.jsonl" in capsys.readouterr().err
