"""The MCP server, by the official client: over standard input and output, and over HTTP."""

import asyncio
import contextlib
import json
import os
import shlex
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs mcp")

import httpx
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent
from starlette.applications import Starlette

from imprag.cli import main
from imprag.pipeline import ImpRAG
from imprag.serving.engine import Engine
from imprag.serving.mcp import mcp_app, mcp_server
from imprag.serving.requests import EngineRequest

PROMPT = "w1 w2 w3"
Calls = Callable[[Client], Awaitable[Any]]


@pytest.fixture(scope="module")
def engine(hybrid_rag: ImpRAG) -> Iterator[Engine]:
    engine = Engine(hybrid_rag)
    engine.start()
    yield engine
    engine.close(drain=False)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The URL of an application on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    listener = server.config.bind_socket()
    started = threading.Event()
    startup = server.startup

    async def note(*arguments: Any, **settings: Any) -> None:
        await startup(*arguments, **settings)
        started.set()

    server.startup = note  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        thread.join()


def within(engine: Engine) -> Starlette:
    """A server of its own that has taken over the routes of MCP."""
    mcp = mcp_app(engine)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with mcp.router.lifespan_context(mcp):
            yield

    return Starlette(routes=mcp.routes, lifespan=lifespan)


def call(server: Any, calls: Calls, **settings: Any) -> Any:
    async def run() -> Any:
        async with Client(server, read_timeout_seconds=60, **settings) as client:
            return await calls(client)

    return asyncio.run(run())


def content(result: Any) -> Any:
    """The structured content of a tool's result, which the only text item holds as JSON, too."""
    assert isinstance(result, CallToolResult)
    assert not result.is_error, result.content
    (item,) = result.content
    assert isinstance(item, TextContent)
    assert json.loads(item.text) == result.structured_content
    return result.structured_content


async def use_all_tools(client: Client) -> dict[str, Any]:
    tools = (await client.list_tools()).tools
    found = content(await client.call_tool("search", {"query": PROMPT}))
    first = found["results"][0]["id"]
    return {
        "tools": {tool.name: list(tool.input_schema["properties"]) for tool in tools},
        "search": found,
        "fetch": content(await client.call_tool("fetch", {"id": first})),
        "ask": content(await client.call_tool("ask", {"prompt": PROMPT})),
    }


def expected(rag: ImpRAG, k: int | None = None) -> dict[str, Any]:
    answer = rag.ask(PROMPT, k)
    found = [
        {
            "id": one.passage.id,
            "title": one.passage.title,
            "url": f"imprag:{one.passage.id}",
        }
        for one in answer.passages
    ]
    return {
        "tools": {"search": ["query"], "fetch": ["id"], "ask": ["prompt"]},
        "search": {"results": found},
        "fetch": {**found[0], "text": answer.passages[0].passage.text},
        "ask": {"answer": answer.text, "passages": found},
    }


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools_over_http(hybrid_rag: ImpRAG, engine: Engine, mode: str) -> None:
    with served(within(engine)) as url:
        assert call(url, use_all_tools, mode=mode) == expected(hybrid_rag)


def test_the_tools_over_standard_input_and_output(
    tiny_home: Path, hybrid_rag: ImpRAG, tmp_path: Path
) -> None:
    command = f"{shlex.quote(sys.executable)} -m imprag mcp --model model --index index --k 3"
    options = "--retrieval hybrid --dtype float32"
    written, status = tmp_path / "written", tmp_path / "status"
    script = f"{command} {options} | tee {written}; echo ${{PIPESTATUS[0]}} > {status}"
    environment = dict(os.environ)
    server = StdioServerParameters(
        command="bash", args=["-c", script], cwd=tiny_home, env=environment
    )
    assert call(server, use_all_tools) == expected(hybrid_rag, 3)
    assert status.read_text() == "0\n"
    assert all("jsonrpc" in json.loads(line) for line in written.read_text().splitlines())


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("search", {}, "search takes one argument, query, which is a text"),
        ("search", {"query": 5}, "search takes one argument, query, which is a text"),
        ("fetch", {"id": "p1", "k": 3}, "fetch takes one argument, id, which is a text"),
        ("fetch", {"id": "p99"}, "no passage has the id 'p99'; search gives the ids of passages"),
        ("search", {"query": " "}, "the prompt is empty; ask something, such as 'Q: who ...? A:'"),
        ("ask", {"prompt": ""}, "the prompt is empty; ask something, such as 'Q: who ...? A:'"),
        ("ask", {"prompt": "w1 " * 2000}, "tokens"),
        ("search", {"query": "w" * 200_001}, "query is longer than 200,000 characters: shorten it"),
        ("summarise", {}, "Unknown tool: summarise"),
    ],
)
def test_bad_input_gets_one_sentence(
    engine: Engine, tool: str, arguments: dict[str, Any], message: str
) -> None:
    async def calls(client: Client) -> Any:
        failed = await client.call_tool(tool, arguments)
        return failed, content(await client.call_tool("search", {"query": PROMPT}))

    failed, after = call(mcp_server(engine), calls)
    (item,) = failed.content
    assert failed.is_error
    assert message in item.text
    assert "\n" not in item.text
    assert "Error executing" not in item.text
    assert after["results"]


def test_no_stream_stays_open(engine: Engine) -> None:
    with served(mcp_app(engine)) as url:
        answer = httpx.get(url, headers={"Accept": "text/event-stream"}, timeout=30)
    assert answer.status_code == 405


class NeverAnswering:
    """An engine that queues requests and answers none."""

    def __init__(self, rag: ImpRAG) -> None:
        self.rag = rag
        self.lock = threading.Lock()
        self.submitted = threading.Event()
        self.cancelled = threading.Event()

    def submit(self, request: EngineRequest, on_event: object) -> "NeverAnswering":
        self.submitted.set()
        return self

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_that_leaves_cancels_its_request(hybrid_rag: ImpRAG, mode: str) -> None:
    engine: Any = NeverAnswering(hybrid_rag)

    async def leave(client: Client) -> None:
        asking = asyncio.create_task(client.call_tool("ask", {"prompt": PROMPT}))
        assert await asyncio.to_thread(engine.submitted.wait, 30)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking

    with served(mcp_app(engine)) as url:
        call(url, leave, mode=mode)
        assert engine.cancelled.wait(1)


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main(["mcp"]) == 2
    error = 'imprag: error: imprag mcp needs mcp; run: pip install "imprag[serve]"\n'
    assert capsys.readouterr() == ("", error)
