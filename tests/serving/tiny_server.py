"""A tiny model with twelve passages, and a server around it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.pipeline import ImpRAG
from imprag.serving.app import create_app
from imprag.serving.engine import Engine
from imprag.serving.settings import ServerSettings

PASSAGES = [
    Passage(
        f"p{n}",
        f"w{n}",
        " ".join(f"w{(7 * n + i) % 94}" for i in range(4 + n)),
        {"url": f"https://example.org/{n}"} if n % 2 else {},
    )
    for n in range(12)
]
MESSAGES = [{"role": "user", "content": "w1 w2 w3"}]
#: Settings of a tiny model that is asked by the tests.
CONFIG = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 20, "question_template": "w90 {question}"}


def tiny_rag(folder: Path) -> ImpRAG:
    """A tiny model with an index at ``folder / "tiny-index"``, made where it is missing."""
    model = ImpRAGModel(tiny_lm(), ImpRAGConfig(base_model="tiny", **CONFIG))
    path = folder / "tiny-index"
    if not path.exists():
        corpus = Corpus.build(PASSAGES, folder / "corpus", source="made up")
        IndexFolder.build(corpus, ImpRAG(model, tiny_tokenizer()).encoder, path, progress=False)
    return ImpRAG(model, tiny_tokenizer(), IndexFolder.open(path))


def tiny_app(rag: ImpRAG, *, engine: dict[str, Any] | None = None, **settings: Any) -> FastAPI:
    """The server's application around a pipeline.

    Args:
        rag: the pipeline.
        engine: arguments of the engine.
        **settings: of the server.
    """
    return create_app(Engine(rag, **(engine or {})), ServerSettings(model="tiny", **settings))


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an application at a free port of this machine.

    Yields:
        its address.
    """
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
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


class SlowSteps:
    """Holds an engine's steps: each waits until the test allows it.

    Args:
        rag: the pipeline of the engine.
    """

    def __init__(self, rag: ImpRAG) -> None:
        self.allowed = threading.Semaphore(0)
        self.endless = threading.Event()
        self.begun = threading.Event()


@torch.no_grad()
def score(rag: ImpRAG, prompt: str, passage: Passage) -> float:
    """s(q, p) of a prompt and a passage, from the model itself."""
    (found,) = rag.retrieve([prompt], len(rag.corpus))
    return next(one.score for one in found if one.passage.id == passage.id)
