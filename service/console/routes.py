"""`/console`: static files, served with headers that let a browser run nothing else.

The pages hold no data and need no key; whoever signs in to them sends it with each call of the API. `CONSOLE.md` says
how they are made.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

STATIC: Final = Path(str(files("service.console") / "static"))
PAGE: Final = "index.html"
MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No inline script or style, no `eval`, nothing from elsewhere; and with trusted types switched off no script can turn
a string into HTML, so a model's text stays text even where the console errs."""
HEADERS: Final = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def static_files() -> tuple[str, ...]:
    """The names of all files below `/console/`, the page itself included."""
    paths = (path for path in STATIC.rglob("*") if path.is_file() and path.suffix in MEDIA_TYPES)
    return tuple(sorted(path.relative_to(STATIC).as_posix() for path in paths))


def console() -> APIRouter:
    """The routes: one for each file, so that no path of a request ever names a file."""
    router = APIRouter()
    for name in static_files():
        path = "/console" if name == PAGE else f"/console/{name}"
        router.add_api_route(path, _file(name), methods=["GET"], include_in_schema=False)
    return router


class StaticFile:
    """One file, read and hashed when it is first asked for and after each change, always in a thread: a request costs
    the event loop, which inference shares, neither a hash nor a look at the disk.

    Args:
        path: Where it is; it is there as long as the gateway runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int], bytes, str] | None = None

    async def content(self) -> tuple[bytes, str]:
        """Its bytes, and their `ETag`."""
        return await asyncio.to_thread(self._current)

    def _current(self) -> tuple[bytes, str]:
        status = self._path.stat()
        state = (status.st_mtime_ns, status.st_size)
        if self._read is None or self._read[0] != state:
            content = self._path.read_bytes()
            self._read = (state, content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        return self._read[1:]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    static = StaticFile(STATIC / name)
    headers = HEADERS | {"cache-control": "no-store" if name == PAGE else "no-cache"}
    media_type = MEDIA_TYPES[Path(name).suffix]

    async def file(request: Request) -> Response:
        content, etag = await static.content()
        if name != PAGE and etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers | {"etag": etag})
        tagged = headers if name == PAGE else headers | {"etag": etag}
        return Response(content, media_type=media_type, headers=tagged)

    return file
