"""Self-supervised prompts and their positive passages."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tarnby import PASSAGES

from imprag.corpus.passage import Passage
from imprag.tasks import load_task
from imprag.tasks.self_supervised import (
    FROM_PASSAGES,
    assertion,
    cloze,
    keywords,
    lookup,
    mention,
    question,
    statement,
    title,
)


def test_a_filled_blank_gives_a_sentence_of_the_passage() -> None:
    answers = set()
    for example, passage in zip(cloze(PASSAGES), PASSAGES, strict=True):
        answer = example.answers[0]
        answers.add(answer)
        sentence = example.input.replace("____", answer).removeprefix("Tarnby: ")
        assert sentence in passage.text
        # The title says which town's harbour is meant; it is never the answer.
        assert "Tarnby" in example.input
        assert answer != "Tarnby"
        assert example.evidence_sets(joint=False) == [{passage.id}]
    assert {"Ada J. Lindqvist", "1810"} & answers
    assert [one.input for one in cloze(PASSAGES, seed=1)] != [one.input for one in cloze(PASSAGES)]


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        ("Exports of goods went to Norway in that year.", {"Norway"}),
        ("Land use of the whole island: arable land 13.8% (2023 est.)", {"13.8"}),
        ("The council of the University of Oslo met in the old hall.", {"University of Oslo"}),
        ("It has 3 mills and two very old bridges.", set()),  # too small to tell passages apart
        ("Too short for Norway.", set()),
        ("First part of the list is about Norway; nothing else", {"Norway"}),
    ],
)
def test_names_and_numbers_are_blanked(text: str, blanked: set[str]) -> None:
    found = {e.answers[0] for seed in range(9) for e in cloze([Passage("p", "Tarnby", text)], seed)}
    assert found == blanked


# --- Fields, key words, titles, mentions ----------------------------------------------------------


def test_fields_are_looked_up_by_their_labels() -> None:
    text = (
        "Airports: 59 (2025)\nPopulation: total: 1,200 (2023 est.); note: a rough guess\n"
        "Background: a long story that nobody could give as a short answer, because it has so many "
        "words in it\nUnlisted: 7"
    )
    fields = ["Airports", "Population: total", "Population: note", "Background"]
    passage = Passage("f/1", "Chad, Economy", text, {"section": "Economy", "fields": fields})
    found = {one.group[1]: one for seed in range(5) for one in lookup([passage], seed)}
    assert {label: one.answers for label, one in found.items()} == {
        "Airports": ["59"],
        "Population, total": ["1,200"],
    }
    for label, example in found.items():
        assert label in example.input
        assert "Chad" in example.input
        assert "Economy" not in example.input
        assert example.evidence_sets(joint=False) == [{"f/1"}]
    assert not list(lookup(PASSAGES))  # their texts have no fields


def test_questions_and_assertions_state_the_fields_in_sentences() -> None:
    passages = [
        Passage(
            f"f/{n}",
            f"Chad {n}, Economy",
            f"Airports: no. {n} (2025)\nArea: land: {n} ha",
            {"section": "Economy", "fields": ["Airports", "Area: land"]},
        )
        for n in range(60)
    ]
    asked = list(question(passages))
    assert [one.answers for one in asked[:2]] == [["no. 0"], ["0 ha"]]
    verdicts = Counter()
    for example, said in zip(asked, assertion(passages), strict=True):
        number = example.gold_ids[0].removeprefix("f/")
        for one in (example, said):
            assert re.search(rf"\bChad {number}\b", one.input)
            assert re.search("airports|(area land|land area)", one.input, re.IGNORECASE)
            assert one.gold_ids == [f"f/{number}"]
        value = f"{number} ha" if "Area" in said.group[1] else f"no. {number}"
        true = bool(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", said.input))
        verdicts[said.answers[0]] += 1
        assert (said.answers[0] in ("True", "yes")) == true, said
    assert verdicts["True"] + verdicts["yes"] > 40
    assert verdicts["False"] + verdicts["no"] > 40


def test_marks_vary_and_are_never_those_of_evaluated_tasks() -> None:
    passage = Passage("f/1", "Chad", "Airports: 59", {"fields": ["Airports"]})
    lookups = {one.input for seed in range(2000) for one in lookup([passage], seed)}
    assert len(lookups) > 800
    about = Passage("a", "Oslo", "People from Tarnby moved to Oslo and to Bergen after the fire.")
    town = Passage("b", "Tarnby", "A town with mills. It has one.")
    mentions = {one.input for seed in range(2000) for one in mention([about, town], seed)}
    assert len(mentions) > 800
    for text in lookups | mentions:
        assert not re.search(r"\b(SEP|START|END)\b", text)
        assert "Chad" in text or "Tarnby" in text


def test_keywords_come_from_the_answer_sentence() -> None:
    texts = {passage.id: passage.text for passage in PASSAGES}
    found = list(keywords(PASSAGES))
    assert len(found) > len(PASSAGES) / 2
    for example in found:
        answer = example.answers[0]
        (gold,) = example.gold_ids
        assert answer in texts[gold]
        assert "Tarnby" in example.input
        assert any(word in example.input for word in re.findall(r"\w{6,}|\d{4}", answer))


def test_a_title_prompt_is_a_sentence_that_names_the_title() -> None:
    for example, passage in zip(title(PASSAGES), PASSAGES, strict=True):
        assert f"Tarnby has {passage.id[1:]} mills, and a harbour." in example.input
        assert example.answers == ["Tarnby"]


def test_a_mention_leads_to_the_passages_about_it() -> None:
    passages = [
        Passage("a", "Oslo", "People from Tarnby moved to Oslo and to Bergen after the fire."),
        Passage("b/1", "Tarnby, History", "A town with mills. It has one.", {"section": "History"}),
        Passage("b/2", "Tarnby, Economy", "The town sells flour.", {"section": "Economy"}),
    ]
    (example,) = mention(passages)
    assert set(example.gold_ids) == {"b/1", "b/2"}
    assert example.answers == ["A town with mills."]
    assert "Tarnby" in example.input


# --- True or false --------------------------------------------------------------------------------


def test_half_of_the_statements_are_true() -> None:
    passages = [
        Passage(f"p{year}", "", f"The old mill was built on this hill in {year}.")
        for year in range(1500, 1900)
    ]
    verdicts = Counter()
    for example in statement(passages):
        (gold,) = example.evidence_sets(joint=False)
        year = next(iter(gold))[1:]
        right = year in example.input
        (verdict,) = example.answers
        assert right == (verdict in ("True", "yes"))
        verdicts[right] += 1
        # What is asked for in other words is answered in other words.
        assert ("yes" in example.input or "no:" in example.input) == (verdict in ("yes", "no"))
    assert verdicts.total() == len(passages)
    assert 0.4 < verdicts[True] / verdicts.total() < 0.6


# --- All of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FROM_PASSAGES)
def test_templates_differ_from_those_of_the_evaluated_tasks(name: str) -> None:
    mills = [f"{first}{second} Mill" for first in "ABCDEF" for second in "abcdefgh"]
    passages = [
        Passage(
            mill,
            mill,
            f"The old {mill} lies beside the river Thames in England. Built in {1500 + number}, it "
            f"is older than the {mills[number - 1]} by a year.\nAge: {number}",
            {"fields": ["Age"]},
        )
        for number, mill in enumerate(mills)
    ]
    prompts = [load_task(name).prompt(one) for one in FROM_PASSAGES[name](passages, 0)]
    assert len(prompts) > 30
    for prompt in prompts:
        assert "[SEP]" not in prompt
        assert "[START]" not in prompt
        assert not prompt.startswith("Is this statement true?")
    assert prompts != [load_task(name).prompt(one) for one in FROM_PASSAGES[name](passages, 1)]


@settings(deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.text())
def test_any_text_is_accepted(text: str, heading: str) -> None:
    passage = Passage("p", heading, text, {"fields": ["Age"]})
    for name, make in FROM_PASSAGES.items():
        for example in make([passage], 0):
            assert load_task(name).prompt(example)
