"""The paper's synthetic tasks."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tarnby import PASSAGES

from imprag.corpus.passage import Passage
from imprag.tasks import load_task
from imprag.tasks.synthetic import (
    corpus_text,
    phrase_denoising,
    sentence_generation,
    split_sentences,
)

MARKED = re.compile(r"\[START\] (.*?) \[END\]")


def test_denoising_can_be_undone_by_the_answer() -> None:
    examples = list(phrase_denoising(PASSAGES))
    assert len(examples) == len(PASSAGES)
    counts = Counter()
    for example, passage in zip(examples, PASSAGES, strict=True):
        corrupted = MARKED.findall(example.input)
        originals = example.answers[0].split(", ")
        counts[len(corrupted)] += 1
        assert len(corrupted) == len(originals)
        for wrong, right in zip(corrupted, originals, strict=True):
            assert wrong != right
            assert [sorted(word) for word in wrong.split()] == [sorted(w) for w in right.split()]
        restored = example.input
        for original in originals:
            restored = MARKED.sub(original, restored, count=1)
        assert restored == passage.text
        assert example.evidence_sets(joint=False) == [{passage.id}]
    assert set(counts) == {1, 2, 3}


def test_generated_sentences_are_adjacent_to_their_context() -> None:
    examples = list(sentence_generation(PASSAGES))
    relations = Counter()
    for example, passage in zip(examples, PASSAGES, strict=True):
        context, relation = example.input.split(" [SEP] ")
        relations[relation] += 1
        answer = example.answers[0]
        pair = f"{context} {answer}" if relation == "next sentence" else f"{answer} {context}"
        assert pair in passage.text
        assert answer in split_sentences(passage.text)
    assert set(relations) == {"next sentence", "previous sentence"}


def test_prompt_and_response_of_corpus_text_make_the_passage() -> None:
    task = load_task("corpus_text")
    for example, passage in zip(corpus_text(PASSAGES), PASSAGES, strict=True):
        assert task.prompt(example) + task.response(example) == passage.text


@pytest.mark.parametrize("make", [phrase_denoising, sentence_generation])
def test_examples_depend_only_on_seed_and_passage(make: object) -> None:
    first = list(make(PASSAGES, seed=3))
    assert list(make(PASSAGES, seed=3)) == first
    assert list(make(PASSAGES[::-1], seed=3)) == first[::-1]
    assert list(make(PASSAGES[5:6], seed=3)) == first[5:6]
    assert list(make(PASSAGES, seed=4)) != first


def test_passages_without_an_example_are_skipped() -> None:
    numbers = Passage("n", "", "1810 1920, 12.")
    assert list(phrase_denoising([numbers])) == []
    assert list(sentence_generation([Passage("s", "", "Only one sentence here.")])) == []
    assert list(corpus_text([Passage("w", "", "Word")])) == []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there! Is three?", ["One is here.", "Two is there!", "Is three?"]),
        ("Dr. Bo met J. S. Bach. He left.", ["Dr. Bo met J. S. Bach.", "He left."]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        ("It cost 3.5 marks. 20 came.", ["It cost 3.5 marks.", "20 came."]),
        ("no capital. here", ["no capital. here"]),
        ("  ", []),
    ],
)
def test_split_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@settings(deadline=None)
@given(st.text("Ab1. !?\"' \n", max_size=60))
def test_splitting_loses_no_word(text: str) -> None:
    assert " ".join(split_sentences(text)).split() == text.split()


@settings(deadline=None)
@given(st.text(min_size=1).filter(str.strip))
def test_any_text_is_accepted(text: str) -> None:
    passage = Passage("p", "", text)
    for example in [*phrase_denoising([passage]), *sentence_generation([passage])]:
        assert load_task(example.task).prompt(example)
    list(corpus_text([passage]))
