"""A tiny model with an index and an engine, shared by the server's tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.attribution import Attribution
from imprag.pipeline import ImpRAG
from imprag.serving.engine import Engine
from imprag.serving.requests import Completed, EngineEvent, EngineRequest, Failed
from imprag.serving.running import Ticket

PASSAGES = [
    Passage(f"p{n}", f"w{n}", " ".join(f"w{(7 * n + i) % 94}" for i in range(4 + n)))
    for n in range(12)
]


def tiny_rag(folder: Path, **settings: Any) -> ImpRAG:
    """A random model over twelve passages; ``folder`` keeps the index."""
    values = {"b": 1, "t": 3, "k": 3, "max_passage_tokens": 16, **settings}
    model = ImpRAGModel(tiny_lm(), ImpRAGConfig(base_model="tiny", **values))
    rag = ImpRAG(model, tiny_tokenizer())
    if not (folder / "index").exists():
        corpus = Corpus.build(PASSAGES, folder / "corpus")
        IndexFolder.build(corpus, rag.encoder, folder / "index", progress=False, lexical=True)
    return ImpRAG(model, tiny_tokenizer(), IndexFolder.open(folder / "index"))


@contextmanager
def running_engine(rag: ImpRAG, **settings: Any) -> Iterator[Engine]:
    """An engine that is closed at the end."""
    engine = Engine(rag, **settings)
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=False)


class Client:
    """Collects the events of one request."""

    def __init__(self, engine: Engine, request: EngineRequest) -> None:
        self.events: list[EngineEvent] = []
        self.done = threading.Event()
        self.ticket: Ticket = engine.submit(request, self._note)

    def _note(self, event: EngineEvent) -> None:
        self.events.append(event)
        if isinstance(event, Completed | Failed):
            self.done.set()

    def wait(self) -> list[EngineEvent]:
        assert self.done.wait(60)
        return self.events

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def close(found: Attribution | None, expected: Attribution | None) -> bool:
    """Whether two attributions are the same but for the last bits."""
    assert found is not None
    assert expected is not None
    rows = [found.shares, *(token.shares for token in found.tokens)]
    others = [expected.shares, *(token.shares for token in expected.tokens)]
    places = [[(one.text, one.start, one.end) for one in a.tokens] for a in (found, expected)]
    return places[0] == places[1] and bool(np.allclose(rows, others, rtol=0, atol=1e-5))
