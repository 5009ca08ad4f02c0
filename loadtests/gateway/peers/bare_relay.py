"""The least that a gateway in Python can do: bare ASGI and aiohttp, renames the model and passes bytes on.

    python -m loadtests.gateway.peers.bare_relay --port 9001 --upstream http://127.0.0.1:9000

No keys, no limits, no checks, nothing parsed: the yardstick for what everything else costs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn

from loadtests.gateway.peers import ENGINE_MODEL, MODEL, arguments

_ASKED = b'"model": "' + MODEL.encode() + b'"'
_SENT = b'"model":"' + ENGINE_MODEL.encode() + b'"'
_SHOWN = b'"model":"' + MODEL.encode() + b'"'


class Relay:
    """The ASGI app."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Relay one request."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=5)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=timeout, auto_decompress=False
            )
        parts = []
        more = True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts).replace(_ASKED, _SENT)
        headers = {"content-type": "application/json"}
        async with self._session.post(self._upstream + scope["path"], data=body, headers=headers) as response:
            kind = response.headers["content-type"].encode()
            await send({"type": "http.response.start", "status": response.status, "headers": [(b"content-type", kind)]})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk.replace(_SENT, _SHOWN), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """Run as a process of its own."""
    chosen = arguments(__doc__)
    uvicorn.run(Relay(chosen.upstream), port=chosen.port, log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
