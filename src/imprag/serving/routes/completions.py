"""``POST /v1/completions``."""

from typing import Any

from fastapi import APIRouter, Request, Response

from imprag.serving.completing import complete
from imprag.serving.errors import REFUSALS, STREAM
from imprag.serving.replies import Completion, CompletionChoice
from imprag.serving.requests import Ended, Retrieved
from imprag.serving.schema import CompletionRequest
from imprag.serving.service import Served

router = APIRouter(responses=REFUSALS)


class TextForm:
    """The choices of streamed ``text_completion`` chunks."""

    def opening(self, choice: int) -> dict[str, Any]:
        """No text yet."""
        return self.piece(choice, "")

    def piece(self, choice: int, text: str, reason: str | None = None) -> dict[str, Any]:
        """More text."""
        return {"index": choice, "text": text, "logprobs": None, "finish_reason": reason}

    def ending(self, choice: int, retrieved: Retrieved, ended: Ended) -> dict[str, Any]:
        """Why the text ended."""
        return self.piece(choice, "", ended.reason)


@router.post("/v1/completions", response_model=Completion, responses=STREAM)
async def create_completion(
    body: CompletionRequest, request: Request, service: Served
) -> Response | Completion:
    """Continue prompts as they are, such as `Q: who ...? A:`, from passages that they retrieve."""
    service.check_number("the number of prompts", len(body.prompts), service.settings.max_prompts)
    for number, prompt in enumerate(body.prompts):
        several = len(body.prompts) > 1
        service.check_text(f"prompt[{number}]" if several else "the prompt", prompt)
    reply = await complete(
        service,
        request,
        body,
        max_tokens=body.max_tokens,
        marked=lambda: service.rag.asked_prompts(body.prompts, raw=True),
        notes=(),
        kind="text_completion",
        form=TextForm(),
    )
    if isinstance(reply, Response):
        return reply
    head, outcome = reply
    choices = [
        CompletionChoice(index=index, text=ended.text, finish_reason=ended.reason)
        for index, (_, ended) in enumerate(sorted(outcome.ended.items()))
    ]
    return Completion(**head, choices=choices, usage=outcome.usage, imprag=outcome.details)
