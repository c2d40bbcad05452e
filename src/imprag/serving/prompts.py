"""Messages become a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from imprag.errors import ImpRAGError
from imprag.serving.schema import Message

INSTRUCTIONS_NOTE = (
    "system and developer messages were not read: the model was trained on prompts without "
    "instructions"
)


@dataclass(frozen=True)
class Conversation:
    """A conversation as one prompt.

    Attributes:
        prompt: a single user's message as it was typed, or all turns, with a space between them:
            the template of the paper's dialogues.
        raw: whether the prompt is read as it is; a single message is put into the model's question
            template, if it is a plain question.
        notes: what of the conversation is not in the prompt.
    """

    prompt: str
    raw: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Conversation":
        """Make the prompt of a conversation.

        Raises:
            ImpRAGError: a message is empty, or the last one is not the user's.
        """
        for number, message in enumerate(messages):
            if not message.text.strip():
                raise ImpRAGError(f"messages[{number}] is empty; leave it out or write its text")
        turns = [one for one in messages if one.role in ("user", "assistant")]
        if not turns or messages[-1].role != "user":
            raise ImpRAGError("the last message must be the user's: add one with the role 'user'")
        notes = () if len(turns) == len(messages) else (INSTRUCTIONS_NOTE,)
        prompt = " ".join(turn.text.strip() for turn in turns)
        return cls(prompt, len(turns) > 1, notes)
