"""A push as server-sent events: how far the fetch of its files is, and in the end the version or the error.

    data: {"object": "adapter.push", "stage": "fetching", "file": "adapter_model.safetensors", "bytes": 1, "total": 2}
    data: {"object": "adapter.push", "stage": "proving"}
    data: {"object": "adapter.version", …}            or: data: {"error": {…}, "status": 422}

Whoever leaves ends the push; what has come of the files is kept, and the same push goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import orjson

from service.errors import HatrackError, Unavailable, to_hatrack_error
from service.http.stream import END
from service.registry.push import PushResult, PushStage

EVERY_S: Final = 0.5
"""Between two events on a fetch."""
QUIET_S: Final = 10.0
"""Between two comments while a version is proven: they keep the connection open, and show when the caller has left."""
Push = Callable[[Callable[[PushStage], object]], Awaitable[PushResult]]
"""Does a push; calls the given function as it proceeds."""


class PushEvents:
    """Runs pushes whose callers listen."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[PushResult]] = set()

    async def close(self) -> None:
        """Cancel the pushes that run."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(self, push: Push, request_id: str | None) -> AsyncIterator[bytes]:
        """The events of a push, complete ones."""
        news = _News()
        task = asyncio.ensure_future(push(news.put))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            while not task.done():
                yield await news.next(task)
        finally:
            task.cancel()  # of one that has ended it does nothing
        yield _last(task, request_id)

    def _done(self, task: asyncio.Task[PushResult]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the last event says it


class _News:
    """The latest stage that was not told yet; older ones are not worth telling."""

    def __init__(self) -> None:
        self._stage: PushStage | None = None
        self._changed = asyncio.Event()

    def put(self, stage: PushStage) -> None:
        self._stage = stage
        self._changed.set()

    async def next(self, task: asyncio.Task[PushResult]) -> bytes:
        """The next event; a comment where the push has ended or there is no news for a while."""
        waiter = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({task, waiter}, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if self._stage is not None and self._stage.file is not None:
            await asyncio.wait({task}, timeout=EVERY_S)
        self._changed.clear()
        if self._stage is None:
            return b":" + END
        stage, self._stage = self._stage, None
        return _event({"object": "adapter.push", **stage.shown()})


def _last(task: asyncio.Task[PushResult], request_id: str | None) -> bytes:
    if task.cancelled():
        failure: HatrackError = Unavailable("the gateway is stopping; push again to go on")
        return _event({**failure.payload(), "status": failure.status})
    error = task.exception()
    if error is None:
        return _event(task.result().version)
    if not isinstance(error, Exception):
        raise error
    failure = to_hatrack_error(error, request_id)
    return _event({**failure.payload(), "status": failure.status})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + END
