"""A front's way to its gateway: the feed, and signed POSTs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from typing import Any, Final

import aiohttp
import orjson

from service.engine.remote import split_address
from service.errors import Unavailable
from service.fronts.wire import FEED_PATH, FRONT_HEADER, MAX_NAME, PROTOCOL, PURPOSE, SIGN_OF_LIFE_S, Message
from service.http.connection_errors import ConnectionErrors
from service.http.pool import ConnectionPool
from service.http.signing import sign, signing_key

CONNECT_TIMEOUT_S: Final = 5.0
SILENCE_S: Final = 10 * SIGN_OF_LIFE_S
"""A gateway that says nothing for so long is away, s."""
MAX_LINE: Final = 64 * 2**20
"""Far more than the largest version of an adapter has."""


class GatewayAway(Unavailable):
    """The gateway cannot be asked now, or refuses the front; the message says why."""

    default_code = "gateway_unavailable"


class GatewaySilent(GatewayAway):
    """The gateway says nothing, though it may be there: it stands still, or the network swallows what it says."""


def _away(error: BaseException) -> GatewayAway:
    return GatewayAway(f"the gateway cannot be reached ({type(error).__name__})")


def _silent(error: BaseException) -> GatewaySilent:
    return GatewaySilent(f"the gateway says nothing ({type(error).__name__})")


_ERRORS: Final = ConnectionErrors(unreachable=_away, cut=_away, timeout=_silent)


class GatewayLink:
    """Asks one gateway, as one start of a front.

    Args:
        address: Of the gateway, as in HATRACK_FRONT_GATEWAY.
        secret: HATRACK_FRONT_KEY.
        name: Of this front, for people.
    """

    def __init__(self, address: str, secret: str, name: str) -> None:
        self.address = address
        self.id = secrets.token_hex(16)
        self._front = f"{self.id} {PROTOCOL} {name[:MAX_NAME].encode('ascii', 'replace').decode()}"
        self._key = signing_key(secret, PURPOSE)
        url, socket = split_address(address)
        self._url = url.rstrip("/")
        self._pool = ConnectionPool(
            socket, connect_s=CONNECT_TIMEOUT_S, keep_alive_s=30.0, read_bufsize=1 << 20, auto_decompress=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def post(self, path: str, body: Any, *, timeout_s: float) -> Any:
        """POST JSON and read a JSON answer.

        Raises:
            GatewayAway: There is none, or it refuses.
        """
        data = orjson.dumps(body)
        headers = {"content-type": "application/json", **self._signed("POST", path, data)}
        with _ERRORS:
            async with (
                asyncio.timeout(timeout_s),
                self._pool.session.post(self._url + path, data=data, headers=headers, allow_redirects=False) as answer,
            ):
                return await _read(answer)

    async def feed(self) -> AsyncGenerator[Message]:
        """What the gateway tells, until it says nothing any more.

        Raises:
            GatewayAway: There is no feed, or it has ended.
            GatewaySilent: Nothing came for SILENCE_S.
        """
        with _ERRORS:
            async with asyncio.timeout(SILENCE_S):
                answer = await self._pool.session.get(
                    self._url + FEED_PATH, headers=self._signed("GET", FEED_PATH), allow_redirects=False
                )
            try:
                if answer.status != 200:
                    async with asyncio.timeout(SILENCE_S):
                        await _read(answer)
                async for line in _lines(answer):
                    yield _message(line)
            finally:
                answer.close()
        raise GatewayAway("the gateway has ended the feed")

    def _signed(self, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        return {FRONT_HEADER: self._front, **sign(self._key, method, path, body, bound=self._front)}


async def _lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """The answer's lines as they come. Raises TimeoutError if none comes for SILENCE_S."""
    pieces: list[bytes] = []  # of a line that has not ended; joined once, as a long one comes in many
    size = 0
    while True:
        async with asyncio.timeout(SILENCE_S):  # of the reading alone: what is done with a line may take longer
            chunk = await answer.content.readany()
        if not chunk:
            return
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise GatewayAway("the gateway's feed has no lines")
        if others:
            yield b"".join(pieces)
            *lines, rest = others
            for line in lines:
                yield line
            pieces, size = [rest], len(rest)


async def _read(answer: aiohttp.ClientResponse) -> Any:
    """The JSON of a good answer. Raises GatewayAway for any other."""
    data = await answer.read()
    try:
        told = orjson.loads(data)
        if answer.status == 200:
            return told
        why = str(told["error"]["message"])[:300]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        why = "its answer is not a Hatrack gateway's"
    raise GatewayAway(f"the gateway refuses this front with status {answer.status}: {why}")


def _message(line: bytes) -> Message:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise GatewayAway("the gateway's feed is not a Hatrack gateway's")
    return told
