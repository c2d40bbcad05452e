"""``imprag mcp``."""

import signal

from imprag.cli.ask import Source
from imprag.cli.imports import quick_imports
from imprag.cli.options import KVCache, use_kv_cache
from imprag.io.optional import require


def mcp(*, source: Source | None = None, kv_cache: KVCache = None) -> None:
    """Let an MCP client, such as a desktop assistant, use a corpus.

    The client starts this command and speaks with it over standard input and output; it gets the
    tools `search`, `fetch` and `ask`. `imprag serve` offers the same tools over HTTP, at `/mcp`.

    For example:

    - `imprag mcp`
    - `imprag mcp --model my-model --index my-index`
    """
    require("imprag mcp", "serve", "mcp", "prometheus_client")
    with quick_imports():
        from imprag.serving.engine import Engine
        from imprag.serving.mcp import run_stdio

    source = source or Source()
    source.note_fitted_index()
    rag = source.load()
    use_kv_cache(rag, kv_cache)
    rag.retriever  # noqa: B018  opens or builds the index before a client waits for it
    # Python's own handler would wait for the thread that reads standard input.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run_stdio(Engine(rag), source.k)
