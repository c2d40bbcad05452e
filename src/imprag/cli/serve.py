"""``imprag serve``."""

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from imprag.cli.options import (
    DEFAULT_MODEL,
    KVCache,
    MinConfidence,
    ModelOptions,
    Retrieval,
    use_kv_cache,
)
from imprag.errors import ImpRAGError


def serve(
    *,
    model: ModelOptions = DEFAULT_MODEL,
    index: Path | None = None,
    kv_cache: KVCache = None,
    kv_ram: Annotated[float, Parameter(name="--kv-ram")] = 1.0,
    retrieval: Retrieval = None,
    min_confidence: MinConfidence = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str | None, Parameter(env_var="IMPRAG_API_KEY")] = None,
    slots: int = 16,
    time_limit: float = 300.0,
) -> None:
    """Serve a model with its passages to the clients of OpenAI's API, and a web page.

    Answers of several clients are made at the same time. Ctrl-C or SIGTERM ends the server: running
    requests finish.

    For example:

    - `imprag serve`
    - `imprag serve --model my-model --index my-index --kv-cache my-kv --port 8080`
    - `imprag serve --host 0.0.0.0`, with a key in the environment variable `IMPRAG_API_KEY`

    Args:
        index: The index folder to retrieve from, made by `imprag index` with the same model. If not
            given, the one that `imprag adapt` fitted the model to, or the built-in corpus of the
            default model.
        kv_ram: Gigabytes of RAM for the keys and values of the passages that were read last. Raise
            it if the metrics show that many passages are encoded again.
        host: The address to listen at. Another one than this machine's own needs a key.
        port: The port; 0 takes a free one.
        api_key: The key that every request must present. Prefer the environment variable: other
            users of the machine can see the options.
        slots: Answers that are generated at the same time. More slots serve more clients, each of
            them slower.
        time_limit: Seconds that a request may take: one that still waits is refused, an answer ends
            where it is.
    """
    from imprag.io.optional import require

    require("the server", "serve", "fastapi", "uvicorn", "prometheus_client")
    from imprag.serving.gates import LOOPBACK_NAMES, check_exposure
    from imprag.serving.server import bind, run_server

    if not (0 <= kv_ram < math.inf and 0 < time_limit < math.inf):
        raise ImpRAGError(
            "--kv-ram must not be negative and --time-limit must be positive, and both finite, but "
            f"they are {kv_ram:g} and {time_limit:g}"
        )
    check_exposure(host, api_key)
    listener = bind(host, port)
    with listener:
        from imprag.generation import Judge
        from imprag.model.confidence import check_min_confidence
        from imprag.serving.app import create_app
        from imprag.serving.engine import Engine
        from imprag.serving.settings import ServerSettings

        check_min_confidence(min_confidence)
        rag = model.load(index, retrieval=retrieval)
        use_kv_cache(rag, kv_cache)
        Judge.of(rag, min_confidence, attribution=False)  # which refuses what has no confidence
        rag.retriever  # noqa: B018  builds or opens the index before the first request
        settings = ServerSettings(
            model=_name(model.model),
            api_key=api_key,
            min_confidence=min_confidence,
            hosts=None if api_key is not None else LOOPBACK_NAMES | {host.lower()},
        )
        engine = Engine(rag, slots=slots, time_limit=time_limit, kv_bytes=int(kv_ram * 10**9))
        run_server(create_app(engine, settings), listener, time_limit + 10)


def _name(model: str) -> str:
    """The model's name in the API: that of its folder or file, or its id."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model
