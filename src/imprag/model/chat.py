"""Chat templates: prompts to put into one, and prompts that are filled templates already."""

from typing import Any

from imprag.errors import ImpRAGError
from imprag.model.control_tokens import (
    control_ids,
    encode_template,
    encode_with_control,
    prefix_ids,
)

_CONTENT = "IMPRAGCONTENT"
_LONGEST = 64  # letters of a control token, or more


class ChatPrompt(str):
    """A user's message to an instruct model, to be put into the model's chat template.

    Example:
        >>> rag.ask(ChatPrompt("What is the capital of Chad?"))  # doctest: +SKIP
    """

    __slots__ = ()


class PlainPrompt(str):
    """A prompt that is text, even where it looks like a filled chat template."""

    __slots__ = ()


def chat_ids(tokenizer: Any, message: str) -> list[int]:
    """Token ids of a message in the tokenizer's chat template, up to where the answer begins.

    Raises:
        ImpRAGError: the tokenizer has no chat template, or the template refuses the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ImpRAGError(
            "this model's tokenizer has no chat template; ask without chat, with a prompt that the "
            "model can continue, such as 'Q: who ...? A:'"
        )
    literals = render_chat(tokenizer, _CONTENT).split(_CONTENT)
    contents = [message] * (len(literals) - 1)
    return encode_template(tokenizer, literals, contents, whole=render_chat(tokenizer, message))


def rendered_ids(tokenizer: Any, prompt: str) -> list[int] | None:
    """Token ids of a prompt that is a filled chat template; None for any other prompt.

    Such a prompt begins with a control token, as the tokenizer's template does, and contains the
    text that the template puts before an answer. If the tokenizer has no template, the prompt must
    begin with a control token other than the end token, contain a second one, and end with one or
    with a line end.
    """
    control = control_ids(tokenizer)
    if control.isdisjoint(encode_with_control(tokenizer, prompt[:_LONGEST])[:1]):
        return None
    ids = encode_with_control(tokenizer, prompt)
    prefix = prefix_ids(tokenizer)
    missing = prefix if ids[: len(prefix)] != prefix else []
    if getattr(tokenizer, "chat_template", None):
        wanted = render_chat(tokenizer, _CONTENT)
        wanted_ids = encode_with_control(tokenizer, wanted)
        if ids[0] not in wanted_ids or wanted.split(_CONTENT)[-1].strip() not in prompt:
            return None
        return (missing if wanted_ids[: len(prefix)] == prefix else []) + ids
    begins = ids[: len(prefix)] == prefix if prefix else ids[0] != tokenizer.eos_token_id
    several = sum(number in control for number in ids) > 1
    ends = prompt.endswith("\n") or ids[-1] in control
    return missing + ids if begins and several and ends else None


def render_chat(tokenizer: Any, message: str) -> str:
    """The text of a message in the tokenizer's chat template, up to where the answer begins.

    Raises:
        ImpRAGError: the template refuses the message, or needs a package that is missing.
    """
    try:
        rendered: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
    except ImportError as error:
        raise ImpRAGError("chat templates need jinja2; run: pip install jinja2") from error
    except Exception as error:  # a template may raise what it likes
        raise ImpRAGError(f"the model's chat template refuses the prompt: {error}") from error
    return rendered
