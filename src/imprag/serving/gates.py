"""What a request passes before it reaches a route: its host, its key, and its body's size."""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imprag.errors import ImpRAGError
from imprag.serving.errors import ErrorResponse

#: The environment variable of the API key.
KEY_VARIABLE = "IMPRAG_API_KEY"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class _Gate:
    """A middleware that answers some HTTP requests itself and passes the others on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self.refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> ErrorResponse | None:
        """The response to a request that does not pass."""
        raise NotImplementedError


class HostGate(_Gate):
    """Refuses requests whose ``Host`` header names another server.

    A web page that points its own name at 127.0.0.1 could otherwise use a local server through its
    reader's browser.

    Args:
        app: what comes next.
        hosts: the names that pass, without port.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        super().__init__(app)
        self.hosts = hosts

    def refusal(self, scope: Scope) -> ErrorResponse | None:
        host = Headers(scope=scope).get("host", "").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name in self.hosts:
            return None
        names = ", ".join(sorted(self.hosts))
        return ErrorResponse(
            421,
            f"this server is not called {name!r}: call it {names}, or start it with an API key",
        )


class KeyGate(_Gate):
    """Refuses requests without the API key.

    The key is a bearer token, or the password of basic authentication, by which browsers open
    ``/docs``.

    Args:
        app: what comes next.
        key: the key.
        open_paths: paths that need no key.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str]) -> None:
        super().__init__(app)
        self.key = key.encode()
        self.open_paths = open_paths

    def refusal(self, scope: Scope) -> ErrorResponse | None:
        if scope["path"] in self.open_paths or self._has_key(Headers(scope=scope)):
            return None
        by = "Basic" if scope["path"] == "/docs" else "Bearer"
        return ErrorResponse(
            401,
            "the API key is missing or wrong; send it as the header Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": f'{by} realm="imprag"'},
        )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self.key)


class BodyGate:
    """Reads the body of a POST request, up to a size and for a time, before it is passed on.

    Only JSON passes. A browser sends JSON to another site only if that site allows it, and this
    server does not: so a web page of somebody else cannot use it through its reader's browser.

    Args:
        app: what comes next.
        max_bytes: greatest size of a body.
        seconds: in which a body must arrive.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        body: bytes | ErrorResponse | None
        if length.isdecimal() and int(length) > self.max_bytes:
            body = self._too_large()
        elif headers.get("content-type", "").partition(";")[0].strip().lower() != (
            "application/json"
        ):
            body = ErrorResponse(415, "the body must be JSON: send Content-Type: application/json")
        else:
            body = await self._body(receive)
        if isinstance(body, ErrorResponse):
            await body(scope, receive, send)
        elif body is not None:
            await self.app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | ErrorResponse | None:
        """The body, a refusal, or None if the client has gone."""
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > self.max_bytes:
                        return self._too_large()
        except TimeoutError:
            limit = f"{self.seconds:g} seconds"
            return ErrorResponse(408, f"the body did not arrive within {limit}; send it at once")
        return b"".join(parts)

    def _too_large(self) -> ErrorResponse:
        return ErrorResponse(
            413, f"the body is larger than {self.max_bytes:,} bytes; send several requests"
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that gives a body that was read, and then what ``receive`` gives."""
    rest = [body]

    async def replay() -> Message:
        if rest:
            return {"type": "http.request", "body": rest.pop(), "more_body": False}
        return await receive()

    return replay


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds to a host.

    Raises:
        ImpRAGError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImpRAGError(f"--host {host}: there is no such host ({error})") from error
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def check_exposure(host: str, key: str | None) -> None:
    """Refuse to serve other machines without a key, and a key that no header can hold.

    Raises:
        ImpRAGError: the host is not a loopback address and there is no key; or the key is empty or
            has characters other than visible ASCII.
    """
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ImpRAGError(
            "the API key must consist of letters, digits and signs of ASCII, without spaces"
        )
    if key is None and not is_loopback(host):
        raise ImpRAGError(
            f"--host {host} lets other machines in: set a key by {KEY_VARIABLE} or --api-key, or "
            "serve this machine alone with --host 127.0.0.1"
        )
