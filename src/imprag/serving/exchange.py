"""The requests of one HTTP call: their events, and the client that may leave."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from imprag.serving.requests import Completed, EngineEvent, EngineRequest, Failed

if TYPE_CHECKING:
    from imprag.serving.engine import Engine
    from imprag.serving.running import Ticket

T = TypeVar("T")
Numbered = tuple[int, EngineEvent]


def hand_over(loop: asyncio.AbstractEventLoop, events: "asyncio.Queue[T]", event: T) -> None:
    """Put an event of the engine's thread into a queue of an event loop."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the client with it
        loop.call_soon_threadsafe(events.put_nowait, event)


class Exchange:
    """Submits requests, passes their events on, and cancels them when the client leaves.

    Args:
        engine: answers the requests.
        request: the HTTP call, whose body has been read.
    """

    def __init__(self, engine: "Engine", request: Request) -> None:
        self._engine = engine
        self._request = request
        self._events: asyncio.Queue[Numbered | None] = asyncio.Queue()
        self._tickets: dict[int, Ticket] = {}
        self._tickets_lock = threading.Lock()
        self._completed: set[int] = set()
        self._ended = False
        self._watcher: asyncio.Task[None] | None = None

    async def begin(self, make_requests: Callable[[], Sequence[EngineRequest]]) -> int:
        """Make and submit the requests, in a thread.

        Args:
            make_requests: makes the requests; it may take time, to read long prompts.

        Returns:
            the number of requests.

        Raises:
            BusyError: the engine's queue is full.
            ImpRAGError: a request cannot be answered.
        """
        loop = asyncio.get_running_loop()
        self._watcher = asyncio.create_task(self._watch())
        try:
            return await run_in_threadpool(self._submit, make_requests, loop)
        except BaseException:
            self.end()
            raise

    def _submit(
        self,
        make_requests: Callable[[], Sequence[EngineRequest]],
        loop: asyncio.AbstractEventLoop,
    ) -> int:
        requests = make_requests()
        for number, request in enumerate(requests):
            ticket = self._engine.submit(request, partial(self._receive, loop, number))
            with self._tickets_lock:
                self._tickets[number] = ticket
                if self._ended:
                    ticket.cancel()
        return len(requests)

    def _receive(self, loop: asyncio.AbstractEventLoop, number: int, event: EngineEvent) -> None:
        hand_over(loop, self._events, (number, event))

    async def _watch(self) -> None:
        """Wait until the client leaves."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(None)
        self._cancel()

    async def events(self, requests: int) -> AsyncGenerator[Numbered, None]:
        """The events of all requests, each with its request's number, until all are completed.

        Args:
            requests: their number.

        Raises:
            ClientDisconnect: the client has left; its requests are cancelled.
            Exception: a request failed; the others are cancelled.
        """
        try:
            while len(self._completed) < requests:
                numbered = await self._events.get()
                if numbered is None:
                    raise ClientDisconnect
                number, event = numbered
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Completed):
                    self._completed.add(number)
                yield numbered
        finally:
            self.end()

    def end(self) -> None:
        """Cancel what has not ended, and stop watching the client."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._cancel()

    def _cancel(self) -> None:
        with self._tickets_lock:
            self._ended = True
            tickets, self._tickets = self._tickets, {}
        for number, ticket in tickets.items():
            if number not in self._completed:
                ticket.cancel()
