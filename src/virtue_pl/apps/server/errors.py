"""Errors as replies, all in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from virtue_pl.apps.server.batching import QueueClosed, QueueFull
from virtue_pl.types import VirtueError
from virtue_pl.types.prompt_values import describe
from virtue_pl.types.requests import describe_problem

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        401: "No key, or a wrong one",
        404: "Another model",
        408: "The body did not come in time",
        413: "The body is too large",
        422: "A value or a key that is not allowed; the line names it",
        429: "The queue is full; see Retry-After",
        503: "The server starts or stops; see Retry-After",
    }.items()
}
"""Replies that any route may give, for the OpenAPI document."""

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable"}
PARAM = re.compile(r"(?P<key>[A-Za-z_]\w*(\.\w+)*): ")
UNKNOWN_KEY = re.compile(r"(?P<before>[\w.]+: )?'(?P<key>[^']*)' is no key")


class UnknownModel(VirtueError):
    """A request for a model that the server does not have.

    Example:
        >>> raise UnknownModel("model: found 'gpt', expected 'virtue'")
        Traceback (most recent call last):
        virtue_pl.apps.server.errors.UnknownModel: model: found 'gpt', expected 'virtue'
    """


class UnknownImage(VirtueError):
    """A request for an image by a uuid under which none was sent lately.

    Example:
        >>> raise UnknownImage("uuid: found 'x', under which no image was sent lately")
        Traceback (most recent call last):
        virtue_pl.apps.server.errors.UnknownImage: uuid: found 'x', under which no image was sent lately
    """


def error_reply(
    status: int, message: str, headers: Mapping[str, str] | None = None, code: str | None = None
) -> JSONResponse:
    """Return an error with its one line. param is the key that it names, if any. code: OpenAI's name of the error."""
    text = message.encode("utf-8", "replace").decode("utf-8")
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": text, "type": kind, "param": find_param(text) if status < 500 else None, "code": code}
    return JSONResponse({"error": error}, status, dict(headers or {}))


def names_unknown_image(error: BaseException | None) -> bool:
    """Return whether an error is an UnknownImage, or comes of one."""
    return error is not None and (isinstance(error, UnknownImage) or names_unknown_image(error.__cause__))


def find_param(message: str) -> str | None:
    """Return the key that a message is about.

    Example:
        >>> find_param("input.0: found 3, expected a text"), find_param("'box' is no key of a request here")
        ('input.0', 'box')
    """
    if unknown := UNKNOWN_KEY.match(message):
        return f"{(unknown['before'] or '').removesuffix(': ')}.{unknown['key']}".removeprefix(".")
    found = PARAM.match(message)
    return found["key"] if found else None


def describe_body_problem(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with a body, in one line."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON ({first['ctx']['error']})"
    if isinstance(first.get("input"), bytes):
        return "the body is no JSON, or does not say so, expected `content-type: application/json`"
    if first["type"] == "missing" and first["loc"] == ("body",):
        return "the body is empty, expected JSON"
    return describe_problem([{**error, "loc": tuple(error["loc"])[1:]} for error in errors])


def add_error_replies(app: FastAPI, retry_seconds: int) -> None:
    """Have an application answer every error in OpenAI's form."""
    retry = {"Retry-After": str(retry_seconds)}

    @app.exception_handler(VirtueError)
    async def refuse_value(request: Request, error: VirtueError) -> JSONResponse:
        if isinstance(error, UnknownModel):
            return error_reply(404, str(error), code="model_not_found")
        return error_reply(422, str(error), code="image_not_found" if names_unknown_image(error) else None)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_reply(422, describe_body_problem(error.errors()))

    @app.exception_handler(QueueFull)
    async def refuse_for_now(request: Request, error: QueueFull) -> JSONResponse:
        return error_reply(429, f"{error}: try again", retry)

    @app.exception_handler(QueueClosed)
    async def refuse_closed(request: Request, error: QueueClosed) -> JSONResponse:
        return error_reply(503, f"{error}: try again", retry)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        return error_reply(error.status_code, str(error.detail), error.headers)


def check_model(own: str, name: str | None) -> None:
    """Raise UnknownModel for another name than that of the server's model; none is right, too."""
    if name is not None and name != own:
        raise UnknownModel(f"model: found {describe(name)}, expected {own!r}, the one that is here")
