"""Runs the application: its socket, its start and its end."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from imprag.errors import ImpRAGError


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; it refuses connections until the server listens.

    Args:
        host: a name or an IP address.
        port: 0 takes a free one.

    Raises:
        ImpRAGError: the address cannot be bound.
    """
    if not 0 <= port < 2**16:
        raise ImpRAGError(f"--port must be between 0 and {2**16 - 1}, not {port}")
    listener = None
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise ImpRAGError(
            f"cannot serve at {host}, port {port}: {error}; choose another --host or --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """A server that says where it is as soon as it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another program bound the port, too, and was the first to listen
            await self.lifespan.shutdown()
            raise ImpRAGError(f"cannot serve: {error}; choose another --port") from error
        if self.started:
            print(f"serving at {', '.join(map(url_of, sockets or []))}", flush=True)


def run_server(app: FastAPI, listener: socket.socket, patience: float | None) -> None:
    """Serve until SIGINT or SIGTERM; then accept nothing more, and let running requests finish.

    Args:
        app: the application.
        listener: its bound socket.
        patience: seconds to wait for running requests; None waits for all.
    """
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=None if patience is None else int(patience),
        )
    )

    def leave(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # The server has handlers of its own while it runs. At its end it raises the signals again that
    # it received: these handlers take them, so that the process exits with 0.
    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(server.serve([listener]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
