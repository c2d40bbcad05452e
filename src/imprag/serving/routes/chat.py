"""``POST /v1/chat/completions``."""

from typing import Any

from fastapi import APIRouter, Request, Response

from imprag.errors import ImpRAGError
from imprag.serving.citations import annotations
from imprag.serving.completing import complete
from imprag.serving.errors import REFUSALS, STREAM
from imprag.serving.prompts import Conversation
from imprag.serving.replies import Answer, ChatChoice, ChatCompletion
from imprag.serving.requests import Ended, Retrieved
from imprag.serving.schema import ChatRequest
from imprag.serving.service import Served

router = APIRouter(responses=REFUSALS)


class ChatForm:
    """The choices of ``chat.completion.chunk``."""

    def opening(self, choice: int) -> dict[str, Any]:
        """The role, without text."""
        return self._choice(choice, {"role": "assistant", "content": ""})

    def piece(self, choice: int, text: str) -> dict[str, Any]:
        """More text."""
        return self._choice(choice, {"content": text})

    def ending(self, choice: int, retrieved: Retrieved, ended: Ended) -> dict[str, Any]:
        """The citations, and why the answer ended."""
        cited = [one.model_dump() for one in annotations(retrieved.passages, ended)]
        return self._choice(choice, {"annotations": cited}, ended.reason)

    def _choice(
        self, choice: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM)
async def create_chat_completion(
    body: ChatRequest, request: Request, service: Served
) -> Response | ChatCompletion:
    """Answer the last message of a conversation from passages that it retrieves."""
    conversation = Conversation.of(body.messages)
    service.check_text("the conversation", conversation.prompt)
    reply = await complete(
        service,
        request,
        body,
        max_tokens=_max_tokens(body),
        marked=lambda: service.rag.asked_prompts([conversation.prompt], raw=conversation.raw),
        notes=conversation.notes,
        kind="chat.completion.chunk",
        form=ChatForm(),
    )
    if isinstance(reply, Response):
        return reply
    head, outcome = reply
    passages = outcome.retrieved[0].passages
    choices = [
        ChatChoice(
            index=choice,
            message=Answer(content=ended.text, annotations=annotations(passages, ended)),
            finish_reason=ended.reason,
        )
        for (_, choice), ended in sorted(outcome.ended.items())
    ]
    return ChatCompletion(**head, choices=choices, usage=outcome.usage, imprag=outcome.details)


def _max_tokens(body: ChatRequest) -> int | None:
    """The limit of new tokens under either of its names."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ImpRAGError(
            f"max_tokens is {old}, but max_completion_tokens is {new}: they mean the same, send one"
        )
    return new if old is None else old
