"""Request ids and error responses for every route outside the data path."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import AdapterError
from adapters.validation import message, shown
from service.access.http import note_refusal, request_id, request_id_of
from service.errors import BadRequest, HatrackError, MethodNotAllowed, UnknownField, no_such_route, to_hatrack_error

PUBLIC: Final = frozenset({"/", "/console", "/docs", "/health", "/healthz", "/openapi.json", "/readyz"})
"""Paths that need no key. Every other path answers 401 without one; `GET /metrics` decides for itself."""


class RequestIds:
    """Sets ``x-request-id`` on each response: the client's own if it is well formed, else a new one.

    Also turns an unexpected exception into a 500 with the usual body, unless the response has started.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = request_id_of(scope["headers"]).encode()
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
                return None  # Starlette re-raises what its handler, `hatrack_error`, has already answered and logged
            internal = to_hatrack_error(error, request_id.decode())
            if started:
                raise
            return await answer(internal)(scope, receive, send_with_id)


def answer(error: HatrackError) -> Response:
    """The response for an error."""
    return Response(error.body(), error.status, error.headers, media_type="application/json")


def add_error_handlers(app: FastAPI, inference_paths: Collection[str] = ()) -> None:
    """Answer every error of a route or of the framework with the same body shape.

    Args:
        inference_paths: Paths that the data path answers, which the app does not know.
    """

    @cache
    def groups() -> frozenset[str]:
        paths = [*inference_paths, *(getattr(route, "path", "") for route in app.routes)]
        return frozenset(path.split("/")[2] for path in paths if path.startswith("/v1/"))

    async def hatrack_error(request: Request, error: Exception) -> Response:
        refusal = to_hatrack_error(error, request_id(request))
        note_refusal(request, refusal.status, refusal.code)
        return answer(refusal)

    async def validation_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        param = ".".join(str(part)[:64] for part in first["loc"] if part not in ("body", "query", "path")) or None
        error_class = UnknownField if first["type"] == "extra_forbidden" else BadRequest
        text = f"{param or 'the request'}: {message(first)}; got {shown(first.get('input'))}"
        return answer(error_class(text, param=param))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if request.scope["path"] not in PUBLIC:
            # callers without a key must not learn which routes exist
            try:
                app.state.authenticator.authenticate(request.headers)
            except HatrackError as refusal:
                note_refusal(request, refusal.status, refusal.code)
                return answer(refusal)
        if error.status_code == 405:
            headers = dict(error.headers or {})
            allowed = f"; allowed: {headers['Allow']}" if "Allow" in headers else ""
            text = f"{request.method} is not allowed for this route{allowed}"
            return answer(MethodNotAllowed(text, headers=headers))
        if error.status_code == 404:
            return answer(no_such_route(request.method, request.scope["path"], groups()))
        return answer(BadRequest(str(error.detail)))

    app.add_exception_handler(Exception, hatrack_error)
    app.add_exception_handler(HatrackError, hatrack_error)
    app.add_exception_handler(AdapterError, hatrack_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
