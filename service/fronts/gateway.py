"""The gateway's side of its fronts: a bare ASGI app beside the API, every request of which is signed."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Any, Final

import orjson
from starlette.types import ASGIApp, Message

from service.errors import BadRequest, MethodNotAllowed, Unauthenticated, no_such_route, to_hatrack_error
from service.fronts.feed import Feed
from service.fronts.reports import FrontReports
from service.fronts.sessions import FrontSession, FrontSessions
from service.fronts.wire import (
    FEED_PATH,
    FRONT_HEADER,
    LEAVE_PATH,
    LIMITS_PATH,
    MAX_NAME,
    PREFIX,
    PROTOCOL,
    READS,
    REPORT_PATH,
    VERSION_HEADER,
    VIA,
)
from service.http.signing import Verifier
from service.inference.exchange import ClientLeft, Exchange, Receive, Scope, Send

MAX_BODY: Final = 32 * 2**20
FEED_S: Final = 7 * 86_400.0
"""After so long a feed ends and the front opens another, s."""
POSTS: Final = frozenset({LIMITS_PATH, REPORT_PATH, LEAVE_PATH})
_ID: Final = re.compile(r"[0-9a-f]{32}")
_NDJSON: Final = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]


class FrontsApp:
    """Serves the fronts.

    Args:
        verifier: Of HATRACK_FRONT_KEY.
    """

    def __init__(self, verifier: Verifier, feed: Feed, sessions: FrontSessions, reports: FrontReports) -> None:
        self._verifier = verifier
        self.feed = feed
        self.sessions = sessions
        self._reports = reports

    def handles(self, scope: Scope) -> bool:
        """True for a request of a front."""
        return bool(scope["type"] == "http" and scope["path"].startswith(PREFIX))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(scope["method"], exchange)
        except ClientLeft:
            return
        except Exception as error:
            await exchange.fail(to_hatrack_error(error, exchange.request_id))

    async def _route(self, method: str, exchange: Exchange) -> None:
        path, front = exchange.path, exchange.headers.get(FRONT_HEADER, "")
        check_body = self._verifier.verify(exchange.headers, method, path, bound=front, once=True)
        session = self._session(front)
        if path == FEED_PATH and method == "GET":
            await self._serve_feed(exchange, session)
        elif path in POSTS and method == "POST":
            body = await exchange.read_json_body(MAX_BODY)
            check_body(body)
            asked = orjson.loads(body)
            answer: Any
            if path == LIMITS_PATH:
                answer = {"session": session.token, "answers": self.sessions.operate_once(session, asked)}
            elif path == REPORT_PATH:
                answer = {"applied": await self._reports.apply(session.id, asked)}
            else:
                self.sessions.leave(session)
                answer = {}
            await exchange.answer(200, orjson.dumps(answer))
        elif path == FEED_PATH or path in POSTS:
            raise MethodNotAllowed(f"{method} is not allowed here")
        else:
            raise no_such_route(method, path)

    def _session(self, front: str) -> FrontSession:
        parts = front.split(" ", 2)
        if len(parts) != 3 or not _ID.fullmatch(parts[0]):
            raise Unauthenticated(f"the header `{FRONT_HEADER}` does not name a front")
        if parts[1] != str(PROTOCOL):
            raise BadRequest(
                f"the front uses protocol {parts[1][:8]!r}, this gateway {PROTOCOL}; run the same version of Hatrack "
                "on both sides",
                code="front_protocol",
            )
        return self.sessions.session(parts[0], parts[2][:MAX_NAME])

    async def _serve_feed(self, exchange: Exchange, session: FrontSession) -> None:
        exchange.never_ends()
        async with exchange.cancel_on_disconnect(FEED_S):
            with self.sessions.feeding(session.id, session.name):
                await exchange.start_foreign(200, _NDJSON)
                async with aclosing(self.feed.lines()) as lines:
                    async for line in lines:
                        if session.is_gone:
                            break
                        await exchange.write(line)
                await exchange.finish()


class NamesVersions:
    """Has the answers to writes that a front passes on name the version of the feed that has them."""

    def __init__(self, feed: Feed, app: ASGIApp) -> None:
        self._feed = feed
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if scope["type"] != "http" or scope["method"] in READS or not _is_passed_on(scope):
            await self.app(scope, receive, send)
            return

        async def name_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                version = f"{self._feed.epoch} {self._feed.version}".encode()
                message["headers"] = [*message.get("headers", ()), (VERSION_HEADER.encode(), version)]
            await send(message)

        await self.app(scope, receive, name_version)


def _is_passed_on(scope: Scope) -> bool:
    return any(name == b"via" and VIA.encode() in value for name, value in scope["headers"])
