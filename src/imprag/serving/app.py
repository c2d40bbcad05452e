"""The HTTP application: routes, gates and the engine's life."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from imprag.serving.errors import add_error_handlers
from imprag.serving.gates import BodyGate, HostGate, KeyGate
from imprag.serving.mcp import mcp_app
from imprag.serving.routes import (
    chat,
    completions,
    embeddings,
    operations,
    rerank,
    vector_stores,
)
from imprag.serving.service import Service
from imprag.serving.settings import ServerSettings

if TYPE_CHECKING:
    from imprag.serving.engine import Engine

PAGE = Path(__file__).parent / "web"
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def create_app(engine: "Engine", settings: ServerSettings | None = None) -> FastAPI:
    """The server's application, for any ASGI server.

    Its lifespan starts the engine and, at the end, lets the engine finish what runs and closes it.

    Args:
        engine: answers prompts.
        settings: of the server; for one without a key that only this machine should reach, give
            ``hosts``.
    """
    settings = settings or ServerSettings()
    mcp = mcp_app(engine)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            async with mcp.router.lifespan_context(mcp):
                yield
        finally:
            await run_in_threadpool(engine.close)

    app = FastAPIOffline(  # its /docs loads nothing from another site
        title="ImpRAG",
        version=version("imprag"),
        description="One language model that retrieves, reads and answers.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = Service(engine, settings)
    for module in (chat, completions, embeddings, rerank, vector_stores, operations):
        app.include_router(module.router)
    app.router.routes.extend(mcp.routes)
    page = _add_page(app)
    add_error_handlers(app)
    # The last one added is the first that a request passes.
    app.add_middleware(BodyGate, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
    if settings.api_key is not None:
        app.add_middleware(KeyGate, key=settings.api_key, open_paths={"/health", *page})
    if settings.hosts is not None:
        app.add_middleware(HostGate, hosts=settings.hosts)
    return app


def _add_page(app: FastAPI) -> list[str]:
    """Serve the web page and its files; returns their paths.

    They need no key: they hold no data, and the page asks for the key. Each file has a route of its
    own, so that a wrong path or method of the API gets the API's error.
    """
    files = StaticFiles(directory=PAGE, check_dir=False)
    paths = []

    async def send(name: str, request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(_PAGE_HEADERS)
        return response

    for file in sorted(path for path in PAGE.rglob("*") if path.is_file()):
        name = file.relative_to(PAGE).as_posix()
        path = "/" if name == "index.html" else f"/{name}"
        app.add_route(path, partial(send, name), methods=["GET"], include_in_schema=False)
        paths.append(path)
    return paths
