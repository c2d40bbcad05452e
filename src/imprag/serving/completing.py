"""What the routes of chat and plain completions do alike."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Request
from starlette.responses import StreamingResponse

from imprag.serving.exchange import Exchange, Numbered
from imprag.serving.generation import Outcome, engine_requests
from imprag.serving.schema import Generation
from imprag.serving.service import Service
from imprag.serving.streaming import HEADERS, Form, server_sent_events


async def complete(
    service: Service,
    request: Request,
    body: Generation,
    *,
    max_tokens: int | None,
    marked: Callable[[], list[str]],
    notes: tuple[str, ...],
    kind: str,
    form: Form,
) -> StreamingResponse | tuple[dict[str, Any], Outcome]:
    """Answer the prompts of a completion request.

    Args:
        service: the server.
        request: the HTTP call.
        body: its body.
        max_tokens: the most new tokens that it asks for.
        marked: makes the prompts, marked for their template.
        notes: what of the body is not in the prompts.
        kind: ``object`` of chunks.
        form: of the choices of chunks.

    Returns:
        the streamed response, if the body asks for one; otherwise the fields that any response
        has, and the outcome. A request that fails at its beginning gets a status of its own either
        way.
    """
    service.check_model(body.model)
    exchange = Exchange(service.engine, request)
    make = engine_requests(service, body, max_tokens, marked)
    events = exchange.events(await exchange.begin(make))
    outcome = Outcome(body.n or 1, notes)
    head = {"id": f"{kind[:4]}-{uuid.uuid4().hex}", "created": int(time.time())}
    head["model"] = service.settings.model
    if not body.stream:
        async for numbered in events:
            outcome.note(numbered)
        return head, outcome
    head["object"] = kind
    first = await anext(events)
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    lines = server_sent_events(_with(first, events), form, head, outcome, usage)
    return StreamingResponse(lines, media_type="text/event-stream", headers=HEADERS)


async def _with(
    first: Numbered, rest: AsyncGenerator[Numbered, None]
) -> AsyncGenerator[Numbered, None]:
    """An event, and the rest; closing it closes the rest."""
    async with contextlib.aclosing(rest):
        yield first
        async for numbered in rest:
            yield numbered
