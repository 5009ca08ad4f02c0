"""The gateway's part of a request to the trainer, for tests whose clients speak as callers do."""

from __future__ import annotations

import base64
import json

import httpx

CONTEXT_HEADER = "x-test-context"
"""A test's word on what the gateway has resolved: base64url over JSON. Nothing but the transport below knows it."""


class ThroughGateway(httpx.AsyncBaseTransport):
    """Puts a body and the context beside it into one envelope, as the gateway does."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        context = request.headers.pop(CONTEXT_HEADER, None)
        if context is not None:
            sent = {
                "request": json.loads(await request.aread()),
                "context": json.loads(base64.urlsafe_b64decode(context)),
            }
            request = httpx.Request(
                request.method,
                request.url,
                headers={name: value for name, value in request.headers.items() if name != "content-length"},
                json=sent,
                extensions=request.extensions,
            )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()
