"""Checks of text: lone surrogates stand for bytes that are no UTF-8, or for half a character."""

from collections.abc import Sequence

from imprag.errors import ImpRAGError


def check_unicode(text: str, name: str, place: str = "") -> None:
    """Refuse a text with lone surrogates, which stand for bytes that are no UTF-8.

    Args:
        text: any.
        name: of the text, for the message.
        place: where it stands, for the message.

    Raises:
        ImpRAGError: so; it tells the first such character's number, from 1. Or it is no text.
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
    """Refuse one text where a list of them is expected: its letters would be taken for texts.

    Raises:
        ImpRAGError: so.
    """
    if isinstance(prompts, str):
        raise ImpRAGError("prompts must be a list of texts, but are one text; pass [prompt]")


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that nobody can answer, whatever the model.

    Raises:
        ImpRAGError: they are no list of texts, or one of them is empty or not valid Unicode.
    """
    check_several(prompts)
    if not isinstance(prompts, Sequence):
        raise ImpRAGError(f"prompts must be a list of texts, not {type(prompts).__name__}")
    for number, prompt in enumerate(prompts, start=1):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        check_unicode(prompt, name)
        if not prompt.strip():
            raise ImpRAGError(f"{name} is empty; ask something, such as 'Q: who ...? A:'")
