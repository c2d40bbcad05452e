"""Checks of texts. A lone surrogate stands for a byte that is not UTF-8 or half a character."""

from collections.abc import Sequence

from imprag.errors import ImpRAGError


def check_unicode(text: str, name: str, place: str = "") -> None:
    """Refuse a text with lone surrogates.

    Args:
        text: the text.
        name: its name, for the message.
        place: where it stands, for the message.

    Raises:
        ImpRAGError: the value is not text, or has a lone surrogate; the message gives the number of
            the first one, counted from 1.
    """
    if not isinstance(text, str):
        raise ImpRAGError(f"{name} must be text, but is of type {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ImpRAGError(
            f"{name} is not valid Unicode at character {error.start + 1}{place}; give it as UTF-8"
        ) from None


def check_several(prompts: Sequence[str]) -> None:
    """Refuse a single text where a list is expected: its letters would be taken for prompts.

    Raises:
        ImpRAGError: the prompts are a single text.
    """
    if isinstance(prompts, str):
        raise ImpRAGError("prompts must be a list of texts, but are one text; pass [prompt]")


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that no model can answer.

    Raises:
        ImpRAGError: the prompts are not a list of texts, or one is empty or not valid Unicode.
    """
    check_several(prompts)
    if not isinstance(prompts, Sequence):
        raise ImpRAGError(f"prompts must be a list of texts, not {type(prompts).__name__}")
    for number, prompt in enumerate(prompts, start=1):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        check_unicode(prompt, name)
        if not prompt.strip():
            raise ImpRAGError(f"{name} is empty; ask something, such as 'Q: who ...? A:'")
