"""``imprag serve`` as a process: how it starts, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tiny_server import tiny_rag

from conftest import tiny_lm, tiny_tokenizer
from imprag.cli import main
from imprag.errors import ImpRAGError
from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
from imprag.serving.server import bind, run_server

CONFIG: dict[str, Any] = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its index."""
    folder = tmp_path_factory.mktemp("serve")
    model = ImpRAGModel(tiny_lm(), ImpRAGConfig(base_model="tiny", **CONFIG))
    save_pretrained(model, tiny_tokenizer(), folder / "my-model")
    tiny_rag(folder)
    return folder


@contextmanager
def serving(home: Path, *options: str, **environment: str) -> Iterator[tuple[Any, str]]:
    """The process of a server, and its address."""
    command = [sys.executable, "-m", "imprag", "serve", "--model", "my-model", "--index", "index"]
    process = subprocess.Popen(
        [*command, "--dtype", "float32", "--port", "0", *options],
        cwd=home,
        env={**os.environ, "IMPRAG_CACHE": str(home / "cache"), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving at http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def test_a_signal_under_load_lets_running_answers_finish(home: Path) -> None:
    replies: list[httpx.Response] = []
    body = {"model": "my-model", "prompt": "w1 w2", "max_tokens": 250, "stop": []}
    headers = {"Authorization": "Bearer sk-1"}
    environment = {"IMPRAG_API_KEY": "sk-1", "IMPRAG_KV_CACHE_GB": "1"}
    with serving(home, "--slots", "2", **environment) as (process, url):

        def ask() -> None:
            reply = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
            replies.append(reply)

        assert httpx.get(f"{url}/v1/models").status_code == 401
        askers = [threading.Thread(target=ask) for _ in range(4)]  # with the stream, three wait
        streamed = {**body, "stream": True}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=streamed, headers=headers, timeout=60
        ) as last:
            lines = last.iter_lines()
            next(lines)
            for asker in askers:
                asker.start()
            with httpx.Client() as client:
                while client.get(f"{url}/health").json()["waiting"] < 3:
                    pass
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        for asker in askers:
            asker.join()
        assert process.wait(30) == 0
    assert rest[-1] == "data: [DONE]"
    assert [reply.status_code for reply in replies] == [200] * 4
    assert len({reply.json()["usage"]["completion_tokens"] for reply in replies}) == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    read = CONFIG["k"]  # passages, which were written before the process ended
    assert len(list((home / "cache" / "kv").glob("*.cached"))) == read


def test_of_two_servers_that_start_at_one_port_the_second_says_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()  # once its model is loaded
        with pytest.raises(ImpRAGError, match="Address already in use; choose another --port"):
            run_server(FastAPI(), second, 1)
    assert not capfd.readouterr().err


def test_what_cannot_be_served_is_said_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("IMPRAG_API_KEY", raising=False)

    def refused(*options: str) -> str:
        assert main(["serve", "--model", "my-model", *options]) == 2
        line = capsys.readouterr().err
        assert line.startswith("imprag: error: ")
        assert line.count("\n") == 1
        return line

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "choose another --host or --port" in refused("--index", "index", "--port", port)
    assert "set a key by IMPRAG_API_KEY or --api-key" in refused("--host", "0.0.0.0")
    assert "--port must be between 0 and 65535" in refused("--port", "70000")
    assert "no index to retrieve from" in refused("--port", "0")
    assert "slots" in refused("--index", "index", "--port", "0", "--slots", "0")
    assert "--time-limit must be positive" in refused("--time-limit", "0")
    assert "--time-limit must be positive" in refused("--time-limit", "inf")
    assert "--kv-ram must not be negative" in refused("--kv-ram", "nan")
    assert "the API key must consist of" in refused("--api-key", "")
