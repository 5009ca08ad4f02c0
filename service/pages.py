"""Public pages: a description of the service, the OpenAPI document and Swagger UI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, Final

import orjson
from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, HTMLResponse

from service import __version__
from service.http.schema import ApiModel, answers

ASSETS: Final = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
"""Swagger UI's files from the package `fastapi-offline`, so that nothing is loaded from a CDN."""
POLICY: Final = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
DOCS: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Hatrack: API</title>
<link rel="icon" type="image/png" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
START: Final = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, docExpansion: "none",
  defaultModelsExpandDepth: 0, validatorUrl: null,
});
"""


class About(ApiModel):
    """The service, and where to find its documentation and health."""

    name: str
    version: str
    base: str
    console: str
    docs: str
    openapi: str
    health: str


def pages(base: str, document: Callable[[], dict[str, Any]]) -> APIRouter:
    """Build the routes.

    Args:
        base: Name under which the base is served.
        document: Builds the OpenAPI document; called once, at the first request for it.
    """
    router = APIRouter()
    cached: list[bytes] = []

    @router.get("/", tags=["health"], responses=answers(About))
    async def about() -> dict[str, str]:
        """Name, version and links; needs no key."""
        return {
            "name": "hatrack",
            "version": __version__,
            "base": base,
            "console": "/console",
            "docs": "/docs",
            "openapi": "/openapi.json",
            "health": "/readyz",
        }

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        if not cached:
            cached.append(orjson.dumps(document()))
        return Response(cached[0], media_type="application/json")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(DOCS, headers={"content-security-policy": POLICY})

    @router.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(START, media_type="text/javascript")

    for name, media_type in ASSETS.items():
        router.add_api_route(f"/docs/{name}", _asset(name, media_type), include_in_schema=False)
    return router


def _asset(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    path = str(files("fastapi_offline") / "static" / name)

    async def asset() -> Response:
        return FileResponse(path, media_type=media_type, headers={"cache-control": "max-age=86400"})

    return asset
