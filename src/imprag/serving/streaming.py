"""Streamed answers: server-sent events in OpenAI's form."""

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Protocol

from starlette.requests import ClientDisconnect

from imprag.errors import ImpRAGError
from imprag.serving.errors import response_to
from imprag.serving.exchange import Numbered
from imprag.serving.generation import Outcome
from imprag.serving.requests import Completed, Ended, NewText, Retrieved

#: What the last chunk of a prompt says under ``imprag``; the first one says the rest.
_LAST = {"timings", "retrievals", "attributions", "confidences"}
#: Answers are neither stored nor held back on their way.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Form(Protocol):
    """How the choices of a chunk look."""

    def opening(self, choice: int) -> dict[str, Any]:
        """The beginning of an answer, before its first text."""

    def piece(self, choice: int, text: str) -> dict[str, Any]:
        """More text of an answer."""

    def ending(self, choice: int, retrieved: Retrieved, ended: Ended) -> dict[str, Any]:
        """The end of an answer."""


async def server_sent_events(
    events: AsyncGenerator[Numbered, None],
    form: Form,
    head: dict[str, Any],
    outcome: Outcome,
    include_usage: bool,
) -> AsyncIterator[str]:
    """The lines of a streamed response, up to ``[DONE]``.

    The first chunk of each prompt has the passages that it reads under ``imprag``, the last one the
    timings, what later tokens retrieved, and what was read for each token, if asked for.

    Args:
        events: of the exchange.
        form: of the choices.
        head: the fields that all chunks have.
        outcome: notes the events.
        include_usage: whether a last chunk, without choices, has the numbers of tokens.
    """
    more = {"usage": None} if include_usage else {}
    try:
        async with contextlib.aclosing(events):
            async for numbered in events:
                outcome.note(numbered)
                for choice, details in _choices(numbered, form, outcome):
                    yield _line({**head, "choices": [choice], **more, **details})
        if include_usage:
            yield _line({**head, "choices": [], "usage": outcome.usage.model_dump()})
        yield "data: [DONE]\n\n"
    except ClientDisconnect:
        return
    except Exception as error:
        if not isinstance(error, ImpRAGError):
            logging.getLogger(__name__).exception("a streamed answer failed")
        yield _line({"error": response_to(error).error.model_dump()})


def _choices(
    numbered: Numbered, form: Form, outcome: Outcome
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The choices that an event adds, each with what its chunk says under ``imprag``.

    The ends of a prompt's answers come when all of them have ended, so that the last chunk of a
    prompt has its timings.
    """
    number, event = numbered
    n = outcome.n
    first = number * n
    match event:
        case Retrieved():
            only = Outcome(n, outcome.notes, {number: event})
            own = only.details.model_dump(exclude=_LAST)
            for choice in range(n):
                yield form.opening(first + choice), {} if choice else {"imprag": own}
        case NewText():
            yield form.piece(first + event.choice, event.text), {}
        case Completed():
            answers = {(number, choice): outcome.ended[number, choice] for choice in range(n)}
            only = Outcome(n, ended=answers, timings={number: event.timings})
            last = only.details.model_dump(include=_LAST)
            for choice in range(n):
                ended = outcome.ended[number, choice]
                end = form.ending(first + choice, outcome.retrieved[number], ended)
                yield end, {"imprag": last} if choice == n - 1 else {}


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
