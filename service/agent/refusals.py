"""What an agent answers to requests that it refuses, and how much of that its log has.

Whoever reaches the agent can be refused, as often as they like: nobody shall fill its disk that way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from service.engine.agent_wire import ERROR_HEADER
from service.errors import Unauthenticated, to_hatrack_error
from service.http.peer_errors import dump_error

EVERY_S: Final = 10.0
REASON_HEADER: Final = "x-hatrack-reason"


class Sparse(logging.Filter):
    """Passes one record in EVERY_S seconds; its field ``more`` is how many were held back since the one before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._until = clock()
        self._more = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        now = self._clock()
        if now < self._until:
            self._more += 1
            return False
        record.more = self._more
        self._until, self._more = now + EVERY_S, 0
        return True


def sparse_logger(name: str) -> logging.Logger:
    """A logger of its own below ``hatrack.agent``, of which no flood of requests makes a flood of lines."""
    parent = logging.getLogger("hatrack.agent")
    logger = logging.Logger(f"{parent.name}.{name}")  # not by name: each server has its own count
    logger.parent = parent
    logger.addFilter(Sparse())
    return logger


def answer_errors() -> Middleware:
    """A middleware that answers with errors as our users read them."""
    log = sparse_logger("refused")

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            known = to_hatrack_error(error, request.headers.get("x-request-id"))
            if request.transport is None or request.transport.is_closing():
                raise web.HTTPBadGateway from error  # nobody reads it
            headers = known.headers | {ERROR_HEADER: known.code or "error"}
            if isinstance(known, Unauthenticated):
                log.warning("a request was refused", extra={"peer": request.remote, "reason": known.message})
                headers[REASON_HEADER] = known.message
            body = orjson.dumps(dump_error(known))
            return web.Response(status=known.status, body=body, content_type="application/json", headers=headers)
        return response

    return middleware
