"""The HTTP application around a tiny model, and a server for it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from tiny_server import tiny_rag

from imprag.pipeline import ImpRAG
from imprag.serving.app import create_app
from imprag.serving.engine import Engine
from imprag.serving.settings import ServerSettings

PROMPT = "w1 w2 w3"
#: Of the type that each client gives messages.
MESSAGES: Any = [{"role": "user", "content": PROMPT}]


def asking_rag(folder: Path) -> ImpRAG:
    """A tiny model that reads plain questions in a template."""
    return tiny_rag(folder, question_template="w90 {question}")


def tiny_app(rag: ImpRAG, *, engine: dict[str, Any] | None = None, **settings: Any) -> FastAPI:
    """The server's application around a pipeline.

    Args:
        rag: the pipeline.
        engine: arguments of the engine.
        **settings: of the server.
    """
    return create_app(Engine(rag, **(engine or {})), ServerSettings(model="tiny", **settings))


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an application at a free port of this machine, and give its address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # clients that come early wait
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
