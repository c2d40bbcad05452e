"""MCP, by which assistants use a corpus: the tools ``search``, ``fetch`` and ``ask``."""

import asyncio
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from anyio import to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Route

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.retrieval import RetrievedPassage
from imprag.serving.citations import passage_url
from imprag.serving.engine import Engine
from imprag.serving.errors import response_to
from imprag.serving.exchange import hand_over
from imprag.serving.requests import Completed, Ended, EngineEvent, EngineRequest, Failed, Retrieved
from imprag.serving.running import Ticket
from imprag.serving.settings import ServerSettings

_INSTRUCTIONS = (
    "A corpus of passages. search finds passages, fetch gives the whole text of one, and ask lets "
    "a small language model answer a question from the passages that it retrieves."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_MAX_CHARACTERS = ServerSettings.max_prompt_characters
_ARGUMENTS = {"search": "query", "fetch": "id", "ask": "prompt"}


class Found(BaseModel):
    """A passage that was found."""

    id: str
    title: str
    url: str


class SearchResults(BaseModel):
    """The passages for a query, best first."""

    results: list[Found]


class Document(Found):
    """A passage with its text."""

    text: str


class Reply(BaseModel):
    """An answer, and the passages that it was read from."""

    answer: str
    passages: list[Found]


class ToolServer(MCPServer[Any]):
    """An MCP server that explains a failed call in one sentence."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; each takes one text.

        Raises:
            ToolError: there is no such tool, or its argument is missing, wrong, too long or not the
                only one.
        """
        argument = _ARGUMENTS.get(name)
        if argument and not (
            arguments.keys() == {argument} and isinstance(arguments[argument], str)
        ):
            raise ToolError(f"{name} takes one argument, {argument}, which is a text")
        if argument and len(arguments[argument]) > _MAX_CHARACTERS:
            raise ToolError(f"{argument} is longer than {_MAX_CHARACTERS:,} characters: shorten it")
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            if isinstance(error.__cause__, ImpRAGError):
                raise ToolError(response_to(error.__cause__).error.message) from error
            raise


def mcp_server(engine: Engine, k: int | None = None) -> ToolServer:
    """The MCP server of an engine that has been started.

    Args:
        engine: answers prompts; its pipeline searches.
        k: passages per search and per answer; by default, and for searches with 0, the model's
            number.
    """
    rag = engine.rag
    server = ToolServer(
        "ImpRAG",
        instructions=_INSTRUCTIONS,
        version=version("imprag"),
        log_level="WARNING",
        subscriptions=False,  # the tools never change
    )

    @server.tool(annotations=_READS)
    def search(query: str) -> SearchResults:
        """Find the passages of the corpus that fit a question or a topic best."""
        with engine.lock:
            (passages,) = rag.retrieve([query], k or None)
        return SearchResults(results=_found(passages))

    @server.tool(annotations=_READS)
    def fetch(id: str) -> Document:
        """Give the whole text of a passage by the id that search or ask gave."""
        corpus = rag.corpus
        (row,) = corpus.find([id])
        if row is None:
            raise ImpRAGError(
                f"no passage has the id {id[:100]!r}; search gives the ids of passages"
            )
        passage = corpus[row]
        return Document(text=passage.text, **_facts(passage))

    @server.tool(annotations=_READS)
    async def ask(prompt: str) -> Reply:
        """Answer a question from passages that the model itself retrieves from the corpus."""
        return await _answer(engine, prompt, k)

    return server


def mcp_app(engine: Engine) -> Starlette:
    """An application that serves MCP over streamable HTTP at ``/mcp``.

    It checks neither keys nor host names. A server takes over its routes, so that they pass the
    server's own gates, and runs ``app.router.lifespan_context(app)`` within its own lifespan.

    Args:
        engine: answers prompts; started before the first request.
    """
    open_to_all = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = mcp_server(engine).streamable_http_app(
        stateless_http=True, transport_security=open_to_all
    )
    for route in app.routes:
        if isinstance(route, Route):
            route.methods = {"POST"}  # a stream by GET would keep a server from ending
    return app


def run_stdio(engine: Engine, k: int | None = None) -> None:
    """Serve one MCP client over standard input and output, until it closes the input.

    Args:
        engine: is started, and closed at the end.
        k: as for :func:`mcp_server`.
    """
    engine.start()
    try:
        mcp_server(engine, k).run("stdio")
    finally:
        engine.close(drain=False)


async def _answer(engine: Engine, prompt: str, k: int | None) -> Reply:
    """Answer a prompt; when the call is cancelled, its request is, too."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[EngineEvent] = asyncio.Queue()

    def submit() -> Ticket:
        (asked,) = engine.rag.asked_prompts([prompt])
        return engine.submit(EngineRequest(asked, k), partial(hand_over, loop, events))

    ticket = await to_thread.run_sync(submit)
    passages: list[RetrievedPassage] = []
    answer = ""
    try:
        while True:
            match await events.get():
                case Retrieved(passages=passages):
                    pass
                case Ended(text=answer):
                    pass
                case Failed(error=error):
                    raise error
                case Completed():
                    return Reply(answer=answer, passages=_found(passages))
    finally:
        ticket.cancel()


def _found(passages: Sequence[RetrievedPassage]) -> list[Found]:
    return [Found(**_facts(one.passage)) for one in passages]


def _facts(passage: Passage) -> dict[str, str]:
    return {"id": passage.id, "title": passage.title, "url": passage_url(passage)}
