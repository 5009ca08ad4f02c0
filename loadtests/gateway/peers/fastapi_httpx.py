"""A gateway as it is usually written first: a FastAPI route, the body as a dict, httpx to the engine.

python -m loadtests.gateway.peers.fastapi_httpx --port 9002 --upstream http://127.0.0.1:9000
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from loadtests.gateway.peers import ENGINE_MODEL, MODEL, arguments


def create_app(upstream: str) -> FastAPI:
    """The app: one route."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1024)
    client = httpx.AsyncClient(base_url=upstream, limits=limits, timeout=httpx.Timeout(600, connect=5))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: dict[str, Any]) -> Response:
        sent = {**body, "model": ENGINE_MODEL}
        if not body.get("stream"):
            response = await client.post("/v1/chat/completions", json=sent)
            return JSONResponse({**response.json(), "model": MODEL}, response.status_code)
        request = client.build_request("POST", "/v1/chat/completions", json=sent)
        response = await client.send(request, stream=True)
        return StreamingResponse(_events(response), response.status_code, media_type="text/event-stream")

    return app


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk.replace(f'"model":"{ENGINE_MODEL}"'.encode(), f'"model":"{MODEL}"'.encode())
    finally:
        await response.aclose()


def main() -> None:
    """Run as a process of its own."""
    chosen = arguments(__doc__)
    uvicorn.run(create_app(chosen.upstream), port=chosen.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
