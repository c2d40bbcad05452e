"""The words of a prompt and their weights, from the attention paid to its tokens."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import tiny_tokenizer
from imprag.corpus.words import search_terms
from imprag.model.question import QuestionPrompt
from imprag.retrieval.terms import prompt_terms, weighted_terms


def test_a_word_weighs_the_root_of_its_share_of_the_attention() -> None:
    text = "Lake Chad, lake"
    tokens = [(0, 4), (4, 7), (7, 9), (9, 10), (10, 15)]  # "Lake", " Ch", "ad", ",", " lake"
    terms = weighted_terms(text, tokens, [0.1, 0.2, 0.4, 9.0, 0.1])
    mean = (0.2 + 0.6) / 2
    assert terms == pytest.approx({"lake": (0.2 / mean) ** 0.5, "chad": (0.6 / mean) ** 0.5})


def test_words_without_attention_are_dropped() -> None:
    assert weighted_terms("a b", [(0, 1), (2, 3)], [1.0, 1e-6]) == pytest.approx({"a": 2**0.5})


def test_without_any_attention_words_weigh_as_often_as_they_occur() -> None:
    assert weighted_terms("a b a", [(0, 5)], [0.0]) == {"a": 2, "b": 1}
    assert weighted_terms("?!", [(0, 2)], [1.0]) == {}


def test_characters_of_a_script_without_spaces_share_the_attention() -> None:
    terms = weighted_terms("法国 x", [(0, 2), (2, 4)], [0.6, 0.4])
    assert terms["法"] == terms["国"] == terms["法国"] == pytest.approx((0.2 / 0.25) ** 0.5)
    assert terms["x"] == pytest.approx((0.4 / 0.25) ** 0.5)


@pytest.mark.parametrize(
    "text", ["पृथ्वी को रोशनी", "เมืองหลวง", "cafe\u0301 co\u00adoperates", "20 ℃ Foo™ x_1"]
)
def test_words_with_marks_joiners_and_signs_are_the_terms_of_the_index(text: str) -> None:
    tokens = [(n, n + 1) for n in range(len(text))]
    assert set(weighted_terms(text, tokens, [1.0] * len(text))) == set(search_terms(text))


@given(st.text(max_size=60), st.data())
def test_any_text_gives_terms_of_its_own(text: str, data: st.DataObject) -> None:
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    tokens = list(pairwise(cuts))
    attention = data.draw(st.lists(st.floats(0, 1), min_size=len(tokens), max_size=len(tokens)))
    terms = weighted_terms(text, tokens, attention)
    words = {term for word in text.split() for term in search_terms(word)}
    assert all(0 < weight < 1e4 for weight in terms.values())
    assert set(terms) <= words | set(search_terms(text))


def test_prompts_are_aligned_with_their_padded_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("w5 w7 w9", "w3")]
    padded = torch.tensor([ids[0], [0, 0, *ids[1]]])
    attention = torch.tensor([[0.2, 0.6, 0.2], [0.0, 0.0, 0.7]])
    one, other = prompt_terms(tokenizer, ["w5 w7 w9", "w3"], padded, attention)
    assert one["w7"] == pytest.approx(3**0.5 * one["w5"])
    assert set(one) == {"w5", "w7", "w9"}
    assert other == {"w3": 1.0}


def test_words_of_the_question_template_are_no_terms() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [QuestionPrompt(text, "w1 {question} w2") for text in ("w5 w7", "?!")]
    ids = [tokenizer(one.filled, add_special_tokens=False)["input_ids"] for one in prompts]
    for prompt, row, terms in zip(prompts, ids, [{"w5", "w7"}, set()], strict=True):
        attention = torch.ones(1, len(row))
        assert set(prompt_terms(tokenizer, [prompt], torch.tensor([row]), attention)[0]) == terms


def test_tokens_that_are_not_the_prompts_own_leave_counted_words() -> None:
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer("w8 w8", add_special_tokens=False)["input_ids"]])
    (terms,) = prompt_terms(tokenizer, ["w5 w5 w7"], ids, torch.ones(1, 2))
    assert terms == {"w5": 2, "w7": 1}
