"""Clients that leave, read slowly or come when the server is busy, and a server that ends."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from tiny_api import MESSAGES, asking_rag, running, tiny_app

from imprag.model.decoding import DecodingBatch
from imprag.pipeline import ImpRAG
from imprag.serving.engine import Engine
from imprag.serving.requests import EngineRequest, Failed, OnEvent, TimeLimitError
from imprag.serving.running import Ticket

STEP = 0.01
LONG: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 800, "stop": []}  # 8 seconds


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return asking_rag(tmp_path_factory.mktemp("leaving"))


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes as long as one of a larger model."""
    step = DecodingBatch.step

    def slow(self: DecodingBatch, *arguments: object) -> object:
        time.sleep(STEP)
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodingBatch, "step", slow)


def becomes(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition holds within some seconds."""
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            return False
        threading.Event().wait(0.005)
    return True


@contextlib.contextmanager
def served(rag: ImpRAG, **engine: int) -> Iterator[tuple[str, Engine]]:
    app = tiny_app(rag, engine=engine)
    with running(app) as url:
        yield url, app.state.service.engine


@contextlib.contextmanager
def connected(url: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A client that has sent a chat request and reads nothing by itself."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + content)
        yield client


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_a_second(
    rag: ImpRAG, slow_steps: None, stream: bool
) -> None:
    with served(rag) as (url, engine):
        with connected(url, {**LONG, "stream": stream}) as client:
            assert becomes(lambda: engine.running == 1, 10)
            if stream:
                assert b"200 OK" in client.recv(4096)
        assert becomes(lambda: engine.running == 0, 1)
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_client_that_leaves_the_queue_leaves_its_place(rag: ImpRAG, slow_steps: None) -> None:
    with served(rag, slots=1) as (url, engine), connected(url, LONG):
        assert becomes(lambda: engine.running == 1, 10)
        with connected(url, LONG):
            assert becomes(lambda: engine.waiting == 1, 10)
        assert becomes(lambda: engine.waiting == 0, 1)


def test_a_client_that_reads_nothing_holds_nobody_up(rag: ImpRAG) -> None:
    with served(rag) as (url, engine), connected(url, {**LONG, "max_tokens": 200, "n": 4}):
        assert becomes(lambda: engine.running == 4, 10)
        body = {"prompt": "w1", "max_tokens": 3}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        assert becomes(lambda: engine.running == 0, 60)


def test_a_full_queue_is_busy_and_says_when_to_come_back(rag: ImpRAG, slow_steps: None) -> None:
    with served(rag, slots=1, queue=1) as (url, engine), httpx.Client(base_url=url) as client:
        with client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}):
            waiting = threading.Thread(
                target=lambda: httpx.post(
                    f"{url}/v1/completions", json={"prompt": "w1"}, timeout=60
                )
            )
            waiting.start()
            assert becomes(lambda: engine.waiting == 1, 10)
            reply = httpx.post(f"{url}/v1/completions", json={"prompt": "w2"})
        waiting.join()
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.json()["error"]["code"] == "busy"
    assert reply.json()["error"]["type"] == "overloaded_error"


def test_an_answer_ends_at_its_time_limit(rag: ImpRAG, slow_steps: None) -> None:
    with served(rag, time_limit=1) as (url, _):
        reply = httpx.post(f"{url}/v1/chat/completions", json=LONG, timeout=60).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert 0 < reply["usage"]["completion_tokens"] < LONG["max_tokens"]


def test_a_request_that_waited_too_long_may_come_back(
    rag: ImpRAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: Engine, request: EngineRequest, on_event: OnEvent) -> Ticket:
        on_event(Failed(TimeLimitError("the request waited too long for a free place")))
        return Ticket()

    monkeypatch.setattr(Engine, "submit", late)
    client = TestClient(tiny_app(rag))
    for stream in (False, True):
        reply = client.post("/v1/completions", json={"prompt": "w1", "stream": stream})
        assert reply.status_code == 503
        assert reply.headers["Retry-After"] == "5"
        assert reply.json()["error"]["message"] == "the request waited too long for a free place"


def test_a_fault_while_streaming_is_the_last_event(
    rag: ImpRAG, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: DecodingBatch, *arguments: object) -> None:
        raise RuntimeError("no memory for secret plans")

    monkeypatch.setattr(DecodingBatch, "step", fails)
    with served(rag) as (url, _):
        reply = httpx.post(f"{url}/v1/chat/completions", json={**LONG, "stream": True})
        assert reply.status_code == 200
        last = json.loads(reply.text.strip().split("\n")[-1].removeprefix("data: "))
        whole = httpx.post(f"{url}/v1/chat/completions", json=LONG)
    assert last["error"]["message"] == "the server failed; its log says why"
    assert "secret" not in reply.text + whole.text
    assert whole.status_code == 500
    assert whole.json()["error"] == last["error"]
    assert "no memory for secret plans" in caplog.text
