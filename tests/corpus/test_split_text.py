"""Splitting loses no word, keeps sentences that fit whole, and stays below the limit."""

import doctest
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imprag.corpus import split_text, text
from imprag.corpus.text import split_spans, tidy
from imprag.errors import ImpRAGError

words = st.text(st.sampled_from("aB9.,;!?)\"'é中"), min_size=1, max_size=6)
gaps = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\u00a0"])
texts = st.lists(st.tuples(words, gaps)).map(lambda pairs: "".join(w + g for w, g in pairs))


@given(texts, st.integers(1, 8))
def test_pieces_hold_all_words_in_order_and_at_most_the_limit(document: str, limit: int) -> None:
    pieces = split_text(document, limit, whole_words=True)
    assert [word for piece in pieces for word in piece.split()] == document.split()
    assert all(1 <= len(piece.split()) <= limit for piece in pieces)


@given(st.text() | texts, st.integers(1, 8))
def test_pieces_hold_all_characters_in_order(document: str, limit: int) -> None:
    pieces = split_text(document, limit)
    assert "".join("".join(pieces).split()) == "".join(document.split())
    assert all(piece.strip() and len(piece.split()) <= limit for piece in pieces)


@pytest.mark.parametrize(
    "sentence", ["巴黎是法国的首都，也是最大的城市。", "パリはフランスの首都です。"]
)
def test_scripts_without_spaces_are_split_at_sentences(sentence: str) -> None:
    pieces = split_text(sentence * 150)
    assert "".join(pieces) == sentence * 150
    assert all(piece.endswith("。") and len(piece) <= 100 for piece in pieces)


@pytest.mark.parametrize(
    ("document", "longest"),
    [
        ("data:image/png;base64," + "iVBORw0KGgo" * 900, 420),
        ("ปารีสเป็นเมืองหลวงของประเทศฝรั่งเศส" * 40, 100),
        ("😀" * 900, 120),
        ("http://example.org/a/very/long/path?x=1 " * 90, 500),
    ],
)
def test_text_without_spaces_is_split_into_bounded_pieces(document: str, longest: int) -> None:
    pieces = split_text(document)
    assert "".join("".join(pieces).split()) == "".join(document.split())
    assert max(map(len, pieces)) <= longest


@pytest.mark.parametrize("text_of", ["a{}b", "。{}。", "a\n{}b"], ids=repr)
@pytest.mark.parametrize(
    "filler", [" ", "\n", ".", '"', "。", "a", "\t\n", '."', "\u0300"], ids=repr
)
def test_splitting_takes_linear_time(text_of: str, filler: str) -> None:
    document = text_of.format(filler * (1_000_000 // len(filler)))
    start = time.process_time()
    split_text(document)
    assert time.process_time() - start < 10


@given(texts, st.integers(1, 8))
def test_spans_delimit_the_pieces(document: str, limit: int) -> None:
    spans = list(split_spans(document, limit))
    assert [document[start:end] for start, end in spans] == split_text(document, limit)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_sentences_that_fit_are_never_cut(lengths: list[int]) -> None:
    sentences = [" ".join(["Word"] * length) + "." for length in lengths]
    for piece in split_text(" ".join(sentences), max_words=9):
        assert piece.endswith(".")


def test_pieces_are_as_long_as_sentences_allow() -> None:
    assert split_text("A b c. D e. F g h. I.", max_words=5) == ["A b c. D e.", "F g h. I."]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ('He said "go." They all went.', ['He said "go."', "They all went."]),
        ("It was George W. Bush. Yes.", ["It was George W. Bush.", "Yes."]),
        ("Use it, e.g. here. Yes it is.", ["Use it, e.g. here.", "Yes it is."]),
        ("Heading\n\nThe text has five words.", ["Heading", "The text has five words."]),
        ("one two, three four, five six", ["one two, three four,", "five six"]),
        ("one, two three four five six", ["one, two three four five", "six"]),
    ],
)
def test_a_piece_ends_at_the_best_break(document: str, expected: list[str]) -> None:
    assert split_text(document, max_words=5) == expected


def test_white_space_inside_a_piece_is_kept() -> None:
    assert split_text("  a\n  b  c \n", max_words=3) == ["a\n  b  c"]


def test_a_limit_below_one_word_is_refused() -> None:
    with pytest.raises(ImpRAGError, match="at least one word"):
        split_text("a b", max_words=0)


def test_tidy_gives_single_spaces_and_composed_letters() -> None:
    assert tidy(" a\u00a0\u200b b\n\u2060c e\u0301 ") == "a b c é"


@given(st.text())
@example("e\u200b\u0301")  # composes only after the character between is removed
def test_tidy_is_idempotent(document: str) -> None:
    tidied = tidy(document)
    assert tidy(tidied) == tidied
    assert not re.search(r"\s\s|^\s|\s$", tidied)


def test_the_example_in_the_documentation_holds() -> None:
    assert doctest.testmod(text).failed == 0
    assert doctest.testmod(text).attempted > 0
