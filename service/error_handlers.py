"""What every route outside the data path shares: request ids, and one error shape for whatever goes wrong."""

from __future__ import annotations

import re
import secrets
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import AdapterError
from adapters.validation import message, shown
from service.access.http import note_refusal, request_id
from service.errors import BadRequest, HatrackError, MethodNotAllowed, NotFound, UnknownField, to_hatrack_error

PUBLIC: Final = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/readyz"})
"""Paths that need no key; without one, everything else is 401 (`GET /metrics` decides for itself)."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Gives each response an ``x-request-id``: the client's own where it is a sane one, else a new one.

    Also the last resort: an exception that nobody expected becomes a 500 in the one shape, if nothing was sent yet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12).encode()
        scope["state"] = {**scope.get("state", {}), "request_id": request_id.decode()}
        started = finished = False

        async def send_with_id(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            return await self.app(scope, receive, send_with_id)
        except Exception as error:
            if finished:
                return None  # Starlette raises again what its handler, `ours`, has answered and logged
            failed = to_hatrack_error(error, request_id.decode())
            if started:
                raise
            return await answer(failed)(scope, receive, send_with_id)


def answer(error: HatrackError) -> Response:
    """An error as a response."""
    return Response(error.body(), error.status, error.headers, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """One shape for every error that a route or the framework raises."""

    async def ours(request: Request, error: Exception) -> Response:
        refusal = to_hatrack_error(error, request_id(request))
        note_refusal(request, refusal.status, refusal.code)
        return answer(refusal)

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        param = ".".join(str(part)[:64] for part in first["loc"] if part not in ("body", "query", "path")) or None
        kind = UnknownField if first["type"] == "extra_forbidden" else BadRequest
        said = f"{param or 'the request'}: {message(first)} (found {shown(first.get('input'))})"
        return answer(kind(said, param=param))

    async def frameworks(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if request.scope["path"] not in PUBLIC:
            # without a key nobody learns which routes there are
            try:
                app.state.authenticator.authenticate(request.headers)
            except HatrackError as refusal:
                note_refusal(request, refusal.status, refusal.code)
                return answer(refusal)
        if error.status_code == 405:
            return answer(MethodNotAllowed(f"{request.method} is not allowed here", headers=dict(error.headers or {})))
        if error.status_code == 404:
            return answer(NotFound("there is nothing here"))
        return answer(BadRequest(str(error.detail)))

    app.add_exception_handler(Exception, ours)
    app.add_exception_handler(HatrackError, ours)
    app.add_exception_handler(AdapterError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, frameworks)
