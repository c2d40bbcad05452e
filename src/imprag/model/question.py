"""Questions as people type them, and the template that a trained model expects them in."""

import re
from collections.abc import Iterable
from typing import Any

from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_prompts
from imprag.model.chat import ChatPrompt, PlainPrompt
from imprag.model.control_tokens import control_ids, encode_with_control

_PLACE = "{question}"
_CUE = re.compile(r"(?:[:：=→]|[-=]>)$")
_ANSWERED = re.compile(
    r"(?:^(?:q|question):.*\s|[.?!…]\s+)(?:a|answer):", re.IGNORECASE | re.DOTALL
)
_MARK = re.compile(r"\[/?[A-Z][A-Z0-9_]+\]|</\w+>|<\|")
_ROLE = re.compile(r"^[ \t]*[^\W\d_][\w ]{0,30}[:：](?:\s|$)", re.MULTILINE)
_QUESTION_LABEL = re.compile(r"^(?:q|question):\s*(?=\S)", re.IGNORECASE)


class QuestionPrompt(str):
    """A question as it was typed, to be put into a model's question template.

    Attributes:
        template: the template, which contains ``{question}`` once.

    Example:
        >>> QuestionPrompt("what's the capital of Chad?", "Q: {question} A:").filled
        "Q: what's the capital of Chad? A:"
    """

    template: str

    def __new__(cls, question: str, template: str) -> "QuestionPrompt":
        prompt = super().__new__(cls, question)
        prompt.template = template
        return prompt

    @property
    def filled(self) -> str:
        """The template with the question in it: in one line, and without a label such as "Q:"."""
        question = _QUESTION_LABEL.sub("", " ".join(self.split()))
        return self.template.replace(_PLACE, question)


def check_question_template(template: str) -> None:
    """Refuse a question template without exactly one place for the question.

    Raises:
        ImpRAGError: the template does not contain ``{question}`` exactly once.
    """
    if template.count(_PLACE) != 1:
        raise ImpRAGError(f"question_template must hold {_PLACE} once, but is {template!r}")


def asked_prompts(
    prompts: Iterable[str],
    template: str | None,
    tokenizer: Any,
    *,
    chat: bool = False,
    raw: bool = False,
) -> list[str]:
    """The checked prompts, marked for the template that the model reads each of them in.

    Args:
        prompts: texts as they were typed. Those marked already stay as they are.
        template: the question template for plain questions: prompts that neither are
            :func:`in_template` nor contain a control token. None leaves them as they are.
        tokenizer: the model's tokenizer, which decides what is a control token.
        chat: mark every prompt as a :class:`ChatPrompt`.
        raw: mark none.

    Raises:
        ImpRAGError: ``prompts`` is not a list of texts, or one is empty or not valid Unicode;
            or both ``chat`` and ``raw`` are set.
    """
    if chat and raw:
        raise ImpRAGError(
            "chat puts prompts into a chat template, and raw leaves them as they are: choose one"
        )
    if isinstance(prompts, Iterable) and not isinstance(prompts, str):
        prompts = list(prompts)  # an iterator can be read only once
    check_prompts(prompts)
    if chat:
        return [ChatPrompt(prompt) for prompt in prompts]
    if raw or template is None:
        return list(prompts)
    return [
        QuestionPrompt(prompt, template) if _is_question(prompt, tokenizer) else prompt
        for prompt in prompts
    ]


def _is_question(prompt: str, tokenizer: Any) -> bool:
    if isinstance(prompt, ChatPrompt | PlainPrompt | QuestionPrompt) or in_template(prompt):
        return False
    return control_ids(tokenizer).isdisjoint(encode_with_control(tokenizer, prompt))


def in_template(prompt: str) -> bool:
    """Whether a prompt has the form of a filled template, so that nothing should be added to it.

    It does if it

    - ends with a colon, an equals sign or an arrow, the cue for an answer ("Q: Who? A:");
    - contains the beginning of an answer ("Q: Who? A: The");
    - contains a mark of a task or chat template: a word in capitals in square brackets ("[SEP]"),
      a closing tag ("</b>") or "<|";
    - has several lines, and one begins with a label ("User: Who?") or the last one asks nothing.

    "Q: Who?" alone is half a template, which :attr:`QuestionPrompt.filled` completes.

    Example:
        >>> in_template("Chad [SEP] capital"), in_template("capital of chad")
        (True, False)
    """
    prompt = prompt.strip()
    if any(form.search(prompt) for form in (_CUE, _ANSWERED, _MARK)):
        return True
    several = len(prompt.splitlines()) > 1
    return several and bool(_ROLE.search(prompt) or not prompt.endswith(("?", "？")))
