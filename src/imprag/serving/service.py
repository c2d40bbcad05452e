"""What the routes share: the engine, the limits, and the model's work outside the engine."""

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from imprag.errors import ImpRAGError
from imprag.io.files import cache_dir
from imprag.io.text_checks import check_unicode
from imprag.pipeline import ImpRAG
from imprag.serving.errors import NotFoundError
from imprag.serving.requests import BusyError
from imprag.serving.settings import ServerSettings

if TYPE_CHECKING:
    from imprag.serving.engine import Engine


class Service:
    """The engine with the server's settings.

    Args:
        engine: answers prompts.
        settings: of the server.
    """

    def __init__(self, engine: "Engine", settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.started = int(time.time())
        self._places = threading.BoundedSemaphore(settings.waiting_calls)

    @property
    def rag(self) -> ImpRAG:
        """The model with its index."""
        return self.engine.rag

    @cached_property
    def store(self) -> str:
        """The vector store's id: the name of the index folder, or ``default`` for the built-in one.

        Raises:
            ImpRAGError: there is no index.
        """
        folder = self.rag.index.path
        return "default" if folder.is_relative_to(cache_dir()) else folder.name

    def check_model(self, name: str | None) -> None:
        """Refuse the name of another model.

        Raises:
            NotFoundError: the name is not the loaded model's.
        """
        if name is not None and name != self.settings.model:
            raise NotFoundError(
                f"there is no model {name!r} here; the loaded one is {self.settings.model!r}",
                "model_not_found",
            )

    def check_store(self, name: str) -> None:
        """Refuse the id of another vector store.

        Raises:
            NotFoundError: the id is not the loaded index's.
        """
        if name != self.store:
            raise NotFoundError(
                f"there is no vector store {name!r} here; the loaded one is {self.store!r}",
                "vector_store_not_found",
            )

    def check_retrieval(self, name: str) -> None:
        """Refuse a retriever that the server has not loaded; a text encoder would embed the corpus.

        Raises:
            ImpRAGError: the name is none of the model's retrievers, nor the server's own.
        """
        known = dict.fromkeys((self.rag.retrieval, "implicit", "hybrid", "lexical"))
        if name not in known:
            raise ImpRAGError(
                f"imprag.retrieval is {name!r}, but this server retrieves by {', '.join(known)}"
            )

    def check_number(self, what: str, number: int, limit: int) -> None:
        """Refuse more than the server allows.

        Raises:
            ImpRAGError: the number is above the limit.
        """
        if number > limit:
            raise ImpRAGError(f"{what} is {number}, but this server allows {limit}; ask for less")

    def check_text(self, what: str, text: str) -> None:
        """Refuse a text that no model can read.

        Raises:
            ImpRAGError: the text is blank, too long or not valid Unicode.
        """
        check_unicode(text, what)
        if not text.strip():
            raise ImpRAGError(f"{what} is empty; write its text or leave it out")
        if len(text) > (limit := self.settings.max_prompt_characters):
            raise ImpRAGError(
                f"{what} has {len(text):,} characters, but this server reads {limit:,}; shorten it"
            )

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the calls that run the model outside the engine.

        Raises:
            BusyError: all places are taken.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError("too many calls are waiting for the model; try again", 1.0)
        try:
            yield
        finally:
            self._places.release()

    @property
    def lock(self) -> threading.Lock:
        """Held while the model runs outside the engine."""
        return self.engine.lock


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]
