"""Questions as people type them: which prompts get the question template, and what comes of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig
from imprag.model.chat import ChatPrompt, PlainPrompt
from imprag.model.question import QuestionPrompt, asked_prompts, in_template
from imprag.model.text import prompt_tokens, text_read
from imprag.tasks import load_task, self_supervised, task_names

TEMPLATE = "Q: {question} A:"
ROOT = Path(__file__).parent.parent.parent


def read(prompt: str, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """The text that a model with the template reads for a prompt."""
    tokenizer = tokenizer or tiny_tokenizer()
    (asked,) = asked_prompts([prompt], TEMPLATE, tokenizer)
    assert asked == prompt
    return text_read(tokenizer, asked)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("capital of mongolia", "Q: capital of mongolia A:"),
        ("what's the capital of Mongolia?", "Q: what's the capital of Mongolia? A:"),
        ("Name the highest point of Nepal.", "Q: Name the highest point of Nepal. A:"),
        ("  What is X ? ", "Q: What is X ? A:"),
        ("What is the capital of Chad?\n", "Q: What is the capital of Chad? A:"),
        ("What is the capital\r\n  of Chad?", "Q: What is the capital of Chad? A:"),
        ("¿Cuál es la capital de Chile?", "Q: ¿Cuál es la capital de Chile? A:"),
        ("チャドの首都は?", "Q: チャドの首都は? A:"),
        ("Q: what is the capital of Chad?", "Q: what is the capital of Chad? A:"),
        ("question:  Who wrote Emma", "Q: Who wrote Emma A:"),
        ("What is {question} in a template?", "Q: What is {question} in a template? A:"),
        ("What is vitamin A: a fat?", "Q: What is vitamin A: a fat? A:"),
        ("Is 3 < 4 and 5 > 4?", "Q: Is 3 < 4 and 5 > 4? A:"),
        ("what is vector<int> in C++", "Q: what is vector<int> in C++ A:"),
        ("Who plays [x] in Macbeth [1606]?", "Q: Who plays [x] in Macbeth [1606]? A:"),
        ("Chad: what is its capital?", "Q: Chad: what is its capital? A:"),
        ("A: who wrote Faust?", "Q: A: who wrote Faust? A:"),
        ("?", "Q: ? A:"),
    ],
)
def test_a_plain_question_is_put_into_the_template(typed: str, expected: str) -> None:
    assert read(typed) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "Q: what is the capital of Chad? A:",
        "What is the capital of Chad? A: \n",
        "What is the capital of Chad?\nShort answer:",
        "チャドの首都は? 答え：",
        "capital of Chad =",
        "capital of Chad ->",
        "Q: who wrote Emma? A: The author is",
        "Q: capital of Mali A: Bamako. Q: capital of Chad",
        "q: who wrote Emma a: Jane",
        "Chad [SEP] capital",
        "[START] Chad [END] is in Africa.",
        "[INST] Who wrote Emma? [/INST]",
        "Who is <b>Emma</b>?",
        "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n",
        "User: Who wrote Emma?\nAssistant",
        "Emma is a novel by Jane Austen.\nQuestion: Who wrote Emma?",
        "Mali - Bamako\nChad -",
    ],
)
def test_a_prompt_in_a_template_stays_as_it_is(prompt: str) -> None:
    assert read(prompt) == prompt


def test_a_control_token_of_the_model_marks_a_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<user>")]})
    assert read("<user> who wrote Emma?", tokenizer) == "<user> who wrote Emma?"
    assert read("<user> who wrote Emma?") == "Q: <user> who wrote Emma? A:"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_filling_is_idempotent_and_keeps_the_words(typed: str) -> None:
    (asked,) = asked_prompts([typed], TEMPLATE, tiny_tokenizer())
    filled = text_read(tiny_tokenizer(), asked)
    if in_template(typed):
        assert filled == typed
    else:
        question = re.sub(r"^(q|question):\s*(?=\S)", "", " ".join(typed.split()), flags=re.I)
        assert filled == f"Q: {question} A:"
    assert read(filled) == filled


def templates(value: object) -> Iterator[str]:
    """The texts with a place for a text in nested tuples and lists."""
    if isinstance(value, str):
        if re.search(r"\{\w+\}", value):
            yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from templates(part)


def filled(template: str) -> str:
    return re.sub(r"\{\w+\}", "Which river is longer than the Rhine?", template)


def own_words(template: str) -> bool:
    return re.search(r"\w", re.sub(r"\{\w+\}", "", template)) is not None


@pytest.mark.parametrize("name", task_names())
def test_no_prompt_of_a_task_is_changed(name: str) -> None:
    """But for tasks whose prompt is the input alone, such as a dialogue."""
    task = load_task(name)
    for template in (task.template, task.plain_template, *task.prompt_templates):
        assert in_template(filled(template)) or not own_words(template)


def test_no_prompt_of_a_self_supervised_task_is_changed() -> None:
    names = ("_LOOKUPS", "_ASKED", "_KEYWORDS", "_TITLES", "_MENTIONS", "_STATEMENTS")
    found = [one for name in names for one in templates(getattr(self_supervised, name))]
    assert len(found) > 30
    # These have the form of what people type.
    plain = ["{question}", "{entity}: {words}"]
    assert [one for one in found if not in_template(filled(one))] == plain


def test_no_prompt_template_of_a_recipe_is_changed() -> None:
    recipes = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("examples/**/*.yaml")]
    sources = [
        source
        for path in recipes
        for source in yaml.safe_load(path.read_text(encoding="utf-8")).get("data") or []
    ]
    found = {one for source in sources for one in source.get("prompt_templates", ())}
    assert len(found) > 5
    assert [one for one in found if own_words(one) and not in_template(filled(one))] == []


def test_marked_prompts_and_raw_prompts_are_not_changed() -> None:
    tokenizer = tiny_tokenizer()
    marked = [ChatPrompt("w1"), PlainPrompt("w2"), QuestionPrompt("w3", "{question} =")]
    for asked, prompt in zip(asked_prompts(marked, TEMPLATE, tokenizer), marked, strict=True):
        assert asked is prompt
    assert asked_prompts(iter(["w1"]), TEMPLATE, tokenizer, raw=True)[0] == "w1"
    for settings in ({"raw": True}, {"chat": True}):
        (asked,) = asked_prompts(["w1"], TEMPLATE, tokenizer, **settings)
        assert not isinstance(asked, QuestionPrompt)
    (asked,) = asked_prompts(["w1"], None, tokenizer)
    assert type(asked) is str
    with pytest.raises(ImpRAGError, match="choose one"):
        asked_prompts(["w1"], TEMPLATE, tokenizer, chat=True, raw=True)


def test_a_question_is_encoded_in_its_template() -> None:
    tokenizer = tiny_tokenizer()
    asked = QuestionPrompt(" w1 \n", "w90 {question} w91 ")
    assert prompt_tokens(tokenizer, [asked], 9) == prompt_tokens(tokenizer, ["w90 w1 w91"], 9)
    with pytest.raises(ImpRAGError, match="the prompt has 3 tokens"):
        prompt_tokens(tokenizer, [asked], 2)


@pytest.mark.parametrize("template", ["Q: A:", "{question} {question}", ""])
def test_a_question_template_has_one_place_for_the_question(template: str) -> None:
    with pytest.raises(ImpRAGError, match="question_template must hold {question} once"):
        ImpRAGConfig(base_model="tiny", b=1, t=3, question_template=template)
