"""The text of an answer, token by token."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from imprag.generation import until_stop
from imprag.serving.answer_text import AnswerText


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, so that most characters are cut between tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_tokenizer()


def streamed(text: str, stop: Sequence[str]) -> tuple[str, str]:
    """What a client sees of an answer, and what has been generated of it."""
    answer = AnswerText(TOKENIZER, stop)
    pieces = []
    for token in TOKENIZER(text)["input_ids"]:
        pieces.append(answer.push(token))
        if answer.ended:
            break
    return "".join([*pieces, answer.finish()]), TOKENIZER.decode(answer.tokens)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("caf\u00e9 \u6771\u4eac", (), "caf\u00e9 \u6771\u4eac"),
        ("xa\u00e9y", ("a\u00e9",), "x"),
        ("x\u6771\u4eacy", ("\u6771\u4eac",), "x"),
        ("  one\n two\n", ("\n",), "one"),
        ("\n\none\n\ntwo", ("\n\n",), "one"),
        ("ab abc", ("abcd", "bc"), "ab a"),
        ("one ", (), "one"),
    ],
)
def test_nothing_of_a_stop_string_is_shown(text: str, stop: tuple[str, ...], shown: str) -> None:
    assert streamed(text, stop)[0] == shown


@given(
    st.text("ab\u00e9\u6771\u4eac\U0001f642 \n\ufffd", max_size=20),
    st.lists(st.text("ab\u00e9\u6771 \n", min_size=1, max_size=4), max_size=3),
)
def test_the_pieces_are_the_whole_answer(text: str, stop: list[str]) -> None:
    seen, generated = streamed(text, stop)
    assert seen == "".join(until_stop([generated], stop)).strip()


def test_a_long_stop_string_takes_no_time() -> None:
    assert streamed("a" * 300, ["a" * 2_000_000])[0] == "a" * 300
