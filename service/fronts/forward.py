"""Passes requests on to the gateway as they came, and its answers back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

from service.access.http import request_id_of
from service.engine.remote import split_address
from service.errors import EngineCut, HatrackError
from service.fronts.link import CONNECT_TIMEOUT_S, GatewayAway
from service.fronts.wire import READS, VERSION_HEADER, VIA
from service.grounding.fields import RetrievalOptions
from service.http.connection_errors import ConnectionErrors
from service.http.disconnect import DISCONNECT, Disconnect
from service.http.pool import ConnectionPool
from service.inference.exchange import ClientLeft, Exchange
from service.inference.relay import PassedEvents
from service.registry.catalog import Target
from service.structured.spec import specs_of

HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade"),
        *("transfer-encoding", "host", "expect", "proxy-connection"),
    }
)
"""Headers that are one connection's alone."""
NOT_RETURNED: Final = HOP_BY_HOP | {VERSION_HEADER}
KEEP_ALIVE_S: Final = 30.0
EVENT_STREAM: Final = "text/event-stream"

_ERRORS: Final = ConnectionErrors(
    unreachable=lambda _: GatewayAway("the gateway cannot be reached; only requests to models are answered meanwhile"),
    cut=lambda _: EngineCut("the gateway closed the connection before its answer was complete", code="gateway_cut"),
)


class Forwarder:
    """The gateway, for all that a front does not answer itself.

    Args:
        address: Of the gateway, as in HATRACK_FRONT_GATEWAY.
        local_bases: Served names of the bases that the front answers for.
        require_answers: Raises GatewayAway where the gateway is known not to answer.
        catch_up: Waits until the front was told what an epoch and version of the gateway's feed have.
    """

    def __init__(
        self,
        address: str,
        local_bases: Iterable[str] = (),
        *,
        require_answers: Callable[[], None] = lambda: None,
        catch_up: Callable[[str, int], Awaitable[None]] | None = None,
    ) -> None:
        self.in_flight = 0
        """Requests that are being passed on."""
        self._require_answers = require_answers
        self._catch_up = catch_up
        url, socket = split_address(address)
        self._url = url.rstrip("/")
        self._local_bases = frozenset(local_bases)
        self._pool = ConnectionPool(
            socket,
            connect_s=CONNECT_TIMEOUT_S,
            keep_alive_s=KEEP_ALIVE_S,
            auto_decompress=False,
            cookie_jar=None,
            skip_auto_headers=("accept-encoding", "user-agent", "accept", "content-type"),
        )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Close the connections: what is passed on over them is cut. Others may be opened after it."""
        await self._pool.close()

    # inference, as ``service.inference.pipeline.Elsewhere``

    def serves(self, target: Target) -> bool:
        """Whether only the gateway reaches the target: the embedder, and engines without an agent."""
        return target.embeds or target.base not in self._local_bases

    def answers(self, target: Target, body: dict[str, Any], options: RetrievalOptions | None) -> bool:
        """Whether the request needs what only the gateway has: vector stores, or the check of structured outputs."""
        return options is not None or bool(specs_of(body)) or bool(specs_of(target.settings.sampling))

    async def forward(self, exchange: Exchange, raw: bytes, events: PassedEvents) -> None:
        """Have the gateway answer an inference request whose body was read; ``events`` takes a stream.

        Raises:
            GatewayAway: It cannot be reached.
            EngineCut: It went away before its answer was complete.
        """
        self._require_answers()
        with self._counted():
            await self._forward(exchange, raw, events)

    async def _forward(self, exchange: Exchange, raw: bytes, events: PassedEvents) -> None:
        sent = ((name, value.encode("latin-1")) for name, value in exchange.headers.items())
        passed = [(name, _text(value)) for name, value in sent if _passes(name) and name != "x-request-id"]
        headers = _via(CIMultiDict([*passed, ("x-request-id", exchange.request_id)]))
        with _ERRORS:
            async with self._pool.session.post(
                self._url + exchange.path, data=raw, headers=headers, allow_redirects=False
            ) as answer:
                if answer.content_type != EVENT_STREAM:
                    await exchange.start_foreign(answer.status, _returned(answer))
                    async for chunk in answer.content.iter_any():
                        await exchange.write(chunk)
                else:
                    await _pass_events(exchange, answer, events)
        await exchange.finish()

    # everything else

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one HTTP request on, its body and the answer's as they come; a client that leaves ends it."""
        sender, task = _Sender(send), asyncio.current_task()
        disconnect: Disconnect | None = scope.get("state", {}).get(DISCONNECT)
        left = False

        def leave() -> None:
            nonlocal left
            left = True
            if task is not None:
                task.cancel()

        if disconnect is not None:
            disconnect.subscribe(leave)
        try:
            with self._counted():
                await self._pass(scope, receive, sender)
        except ClientLeft:
            return
        except HatrackError as error:
            if not sender.started:  # else the connection is cut, and nobody takes it for the whole
                await _refuse(scope, send, error)
        except asyncio.CancelledError:
            if not left:
                raise
        finally:
            if disconnect is not None:
                disconnect.subscribe(None)

    async def _pass(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        self._require_answers()
        headers = _via(
            CIMultiDict(
                (name.decode("latin-1"), _text(value))
                for name, value in scope["headers"]
                if _passes(name.decode("latin-1"))
            )
        )
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        query = scope.get("query_string", b"").decode("latin-1")
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
        if not path.startswith("/"):  # `OPTIONS *`: what follows the address must not become a part of it
            path = "/"
        url = URL(f"{self._url}{path}{'?' if query else ''}{query}", encoded=True)
        with _ERRORS:
            async with self._pool.session.request(
                scope["method"], url, data=_body(receive) if has_body else None, headers=headers, allow_redirects=False
            ) as answer:
                if scope["method"] not in READS and answer.status < 400:
                    await self._meet(answer.headers.get(VERSION_HEADER, ""))
                await send.start(answer.status, _returned(answer))
                async for chunk in answer.content.iter_any():
                    await send.part(chunk)
        await send.end()

    async def _meet(self, version: str) -> None:
        """Wait until the front knows what its client has just written."""
        epoch, _, count = version.partition(" ")
        if self._catch_up is not None and count.isdecimal():
            await self._catch_up(epoch, int(count))


async def _pass_events(exchange: Exchange, answer: aiohttp.ClientResponse, events: PassedEvents) -> None:
    """Pass a stream on, so that it can be told where it is cut."""
    await exchange.start_foreign(answer.status, _returned(answer), events.error_event)
    async for chunk in answer.content.iter_any():
        if whole := events.feed(chunk):
            await exchange.write(whole)
    if rest := events.rest():
        await exchange.write(rest)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it comes. Raises ClientLeft."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


class _Sender:
    """Sends one answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


def _passes(name: str) -> bool:
    return name.lower() not in HOP_BY_HOP


def _via(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """The headers, with the word that a front passes the request on. Raises GatewayAway if one has done so before."""
    if any(VIA in value for value in headers.getall("via", ())):
        raise GatewayAway(
            "the request was passed on by a front to a front: HATRACK_FRONT_GATEWAY must be the address of the gateway "
            "itself, not of its fronts or their balancer"
        )
    headers.add("via", f"1.1 {VIA}")
    return headers


def _returned(answer: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The answer's headers but for the connection's own."""
    return [
        (name.lower(), value)
        for name, value in answer.raw_headers
        if name.decode("latin-1").lower() not in NOT_RETURNED
    ]


def _text(value: bytes) -> str:
    """A header's value as a text whose UTF-8, in which it is sent on, has the same bytes, if it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


async def _refuse(scope: Scope, send: Send, error: HatrackError) -> None:
    body = error.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    headers["x-request-id"] = request_id_of(scope["headers"])
    start: Message = {
        "type": "http.response.start",
        "status": error.status,
        "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
