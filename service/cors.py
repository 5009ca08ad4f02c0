"""Browsers' access from pages of other origins (CORS), where `HATRACK_CORS_ORIGINS` names some."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.errors import Forbidden

METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")
EXPOSED: Final = (
    *("x-hatrack-adapter", "x-hatrack-digest", "x-hatrack-grounding", "x-hatrack-citations", "x-hatrack-replayed"),
    *(f"x-ratelimit-{kind}-{unit}" for kind in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
    *("x-request-id", "request-id", "retry-after", "x-should-retry", "location", "content-disposition"),
)
"""Response headers that a page's code may read."""
PREFLIGHT_S: Final = 600
"""How long a browser keeps the answer to its question whether it may ask."""


class Cors(CORSMiddleware):
    """Starlette's, without credentials: a page shows a key, cookies mean nothing here.

    Args:
        app: What is called with every request; its answers, streams included, pass through as they come.
        origins: Such as `https://app.example.com`; `*` is every origin.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),  # clients send headers of their own, such as x-stainless-os
            expose_headers=EXPOSED,
            max_age=PREFLIGHT_S,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser's question; a refusal has the usual body."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        error = Forbidden(
            f"A page of {origin[:200]!r} may not send {method[:20]} requests to this gateway; the operator's setting "
            "HATRACK_CORS_ORIGINS names the origins that may",
            code="origin_not_allowed",
        )
        return Response(error.body(), error.status, {"vary": "Origin"}, media_type="application/json")
