"""The way to the trainer: HTTP over its Unix socket (or TCP). What was sent once is never sent again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp
from yarl import URL

from adapters.protocol.runs import SECRET_HEADER
from service.errors import BadGateway, Timeout, TrainerUnavailable
from service.http.connection_errors import ConnectionErrors
from service.http.pool import ConnectionPool, PeerResponse

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
"""Until the trainer begins to answer, s; it looks at a record or writes one."""
CHECK_TIMEOUT_S: Final = 600.0
"""Until it begins to answer a data check, s: it reads, tokenizes and compares all of a file."""
SILENCE_TIMEOUT_S: Final = 300.0
"""Between two pieces of an answer, s; an event stream says a comment more often than that."""
KEEP_ALIVE_S: Final = 2.0
"""The trainer closes an idle connection after five: a request must not meet that moment."""
RETRY_AFTER_S: Final = 5

Body = bytes | AsyncIterable[bytes]


def _unreachable(_: BaseException) -> TrainerUnavailable:
    return TrainerUnavailable(
        "the trainer cannot be reached: it is not running, or is being started; inference goes on",
        retry_after=RETRY_AFTER_S,
    )


# no `timeout`: connecting for too long is unreachable here, while an answer that is late is a Timeout
_ERRORS: Final = ConnectionErrors(
    unreachable=_unreachable,
    cut=lambda _: BadGateway("the trainer went away before its answer was complete", code="trainer_cut"),
)


class TrainerResponse(PeerResponse):
    """The trainer's answer to one request."""

    __slots__ = ("_silence_s",)

    def __init__(self, response: aiohttp.ClientResponse, silence_s: float) -> None:
        super().__init__(response)
        self._silence_s = silence_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come. Raises BadGateway, Timeout."""
        pieces = self._response.content.iter_any()
        while True:
            try:
                with _ERRORS:
                    async with asyncio.timeout(self._silence_s):
                        piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Timeout(f"the trainer said nothing for {self._silence_s:g} s") from None
            yield piece

    async def read(self) -> bytes:
        """The whole body. Raises BadGateway, Timeout."""
        return b"".join([piece async for piece in self.chunks()])


class TrainerClient:
    """One trainer, by the path of its socket or a URL.

    Args:
        socket: Path of the Unix socket, or None.
        url: Base URL.
        secret: What it knows the gateway by, if it asks for that.
        answer_s: Longest time until it begins to answer, s, where no other is asked for.
        silence_s: Longest time between two pieces of an answer, s.
    """

    def __init__(
        self,
        *,
        socket: str | None,
        url: str = "http://trainer",
        secret: str | None = None,
        answer_s: float = ANSWER_TIMEOUT_S,
        silence_s: float = SILENCE_TIMEOUT_S,
    ) -> None:
        self.answer_s = answer_s
        self.silence_s = silence_s
        self._url = url.rstrip("/")
        self._pool = ConnectionPool(
            socket,
            connect_s=CONNECT_TIMEOUT_S,
            keep_alive_s=KEEP_ALIVE_S,
            headers={SECRET_HEADER: secret} if secret else {},
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        )

    async def close(self) -> None:
        """Close the connections; requests in flight end."""
        await self._pool.close()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None = None,
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[TrainerResponse]:
        """Ask; leaving the context before the body's end closes the connection, which ends the request.

        Args:
            method: The HTTP method.
            target: Path and query, percent-encoded.
            headers: All of the request's headers but the secret.
            body: Sent as it is, or as it comes.
            timeout_s: Longest time until the trainer begins to answer, s; None: the client's own.

        Raises:
            TrainerUnavailable: Nothing listens there; at once.
            BadGateway: It went away before it answered.
            Timeout: It did not answer in time.
        """
        limit_s = self.answer_s if timeout_s is None else timeout_s
        url = URL(self._url + target, encoded=True)  # as it came: what is quoted stays quoted
        asked = self._pool.session.request(method, url, headers=headers, data=body, allow_redirects=False)
        try:
            with _ERRORS:
                async with asyncio.timeout(limit_s):
                    response = await asked
        except TimeoutError as error:
            raise Timeout(f"the trainer did not answer within {limit_s:g} s") from error
        try:
            yield TrainerResponse(response, self.silence_s)
        finally:
            # a connection whose body was read to its end is kept for the next request; any other one is cut
            with suppress(aiohttp.ClientError):
                response.close() if not response.content.is_eof() else response.release()
