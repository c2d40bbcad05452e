"""Errors in OpenAI's form, ``{"error": {...}}``, whatever raised them."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from imprag.errors import FaultError, ImpRAGError
from imprag.serving.replies import ErrorDetail, ErrorReply
from imprag.serving.requests import BusyError, TimeLimitError

#: The error responses of a route with a body, for the OpenAPI schema.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in {
        400: "The request cannot be answered as it is.",
        401: "The API key is missing or wrong.",
        404: "There is no such model or vector store.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        421: "The Host header names another server.",
        422: "A field is unknown, missing or of another type.",
        503: "The server is busy; try again after the seconds in Retry-After.",
    }.items()
}
#: The other form of a response that may be streamed, for the OpenAPI schema.
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_NO_ROUTE = "there is no {method} {path} here; /docs lists what there is"


class NotFoundError(ImpRAGError):
    """The request names a model or vector store that is not loaded.

    Attributes:
        code: for programs, such as ``model_not_found``.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ErrorResponse(Response):
    """An error in OpenAI's form.

    Args:
        status: of HTTP.
        message: one sentence.
        code: for programs.
        param: the field that is wrong.
        headers: further headers.
    """

    media_type = "application/json"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        types = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
        kind = types.get(status, "server_error" if status >= 500 else "invalid_request_error")
        message, param = _printable(message), param and _printable(param)
        self.error = ErrorDetail(message=message, type=kind, code=code, param=param)
        super().__init__(json.dumps({"error": self.error.model_dump()}), status, headers)


def response_to(error: Exception) -> ErrorResponse:
    """The response to a request that failed.

    A fault of the server is not described to clients: that of its index is logged here, any other
    by the server.
    """
    match error:
        case BusyError():
            wait = {"Retry-After": str(max(1, round(error.retry_after)))}
            return ErrorResponse(503, str(error), code="busy", headers=wait)
        case TimeLimitError():
            return ErrorResponse(503, str(error), code="time_limit", headers={"Retry-After": "5"})
        case NotFoundError():
            return ErrorResponse(404, str(error), code=error.code)
        case FaultError():
            logging.getLogger(__name__).error("a request failed: %s", error)
            message = "the server cannot use its index; its log says why"
            return ErrorResponse(500, message, code="index_error")
        case ImpRAGError():
            return ErrorResponse(400, str(error))
        case _:
            return ErrorResponse(500, "the server failed; its log says why", code="server_error")


def add_error_handlers(app: FastAPI) -> None:
    """Let an app answer every error in OpenAI's form."""

    async def refuse(request: Request, error: Exception) -> Response:
        return response_to(error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = _NO_ROUTE.format(method=request.method, path=request.url.path)
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow") or "another method"
            message = f"{request.url.path} does not take {request.method}; use {allowed}"
        elif error.status_code == 400:
            message = "the body is not valid JSON in UTF-8"
        return ErrorResponse(error.status_code, message, headers=error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(error.errors())

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody receives it

    app.add_exception_handler(ImpRAGError, refuse)
    app.add_exception_handler(Exception, refuse)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> ErrorResponse:
    """The response to a body that is no JSON or does not have the schema's form."""
    first = errors[0]
    if first["type"] == "json_invalid":
        place = first["loc"][-1] + 1
        message = f"the body is not valid JSON at character {place}: {first['ctx']['error']}"
        return ErrorResponse(400, message)
    same = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    field = _field([error["loc"] for error in same])
    if first["type"] == "extra_forbidden":
        message = f"there is no field {field!r}; leave it out"
    elif first["type"] == "missing":
        message = f"the field {field!r} is missing" if field else "the body is missing"
    else:
        wrong = ", or ".join(dict.fromkeys(_sentence(error) for error in same))
        message = f"{field or 'the body'} {wrong}"
    return ErrorResponse(422, message, param=field or None)


def _field(places: Sequence[Sequence[int | str]]) -> str:
    """The innermost field that contains all places, such as ``messages[0].content``."""
    common = []
    for parts in zip(*places, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    name = ""
    for part in common[1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return name.removeprefix(".")


def _sentence(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, as the end of a sentence that begins with its name."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "string_unicode":
        return "must be valid Unicode"
    if error["type"] == "model_attributes_type":
        return "must be a JSON object"
    message: str = error["msg"]
    for begin in ("Input should be ", "String should ", "List should "):
        if message.startswith(begin):
            return ("must be " if "be" in begin else "must ") + message.removeprefix(begin)
    return f"is wrong: {message}"


def _printable(text: str) -> str:
    """The text, with lone surrogates, which no encoding has, as escapes."""
    return text.encode(errors="backslashreplace").decode()
