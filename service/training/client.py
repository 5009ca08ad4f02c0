"""HTTP client for the trainer, over its Unix socket or TCP. Requests are never retried."""

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
"""Time limit until the response starts, s, for requests that read or write one record."""
CHECK_TIMEOUT_S: Final = 600.0
"""Time limit until the response to a data check starts, s: it reads, tokenizes and compares a whole file."""
SILENCE_TIMEOUT_S: Final = 300.0
"""Time limit between two chunks of a response, s; event streams send keep-alive comments more often."""
KEEP_ALIVE_S: Final = 2.0
"""Below the five seconds after which the trainer closes an idle connection, so that no request meets the close."""
RETRY_AFTER_S: Final = 5

Body = bytes | AsyncIterable[bytes]


def _unreachable(_: BaseException) -> TrainerUnavailable:
    return TrainerUnavailable(
        "the trainer is not reachable: it is not running or still starting; inference is not affected; retry later",
        retry_after=RETRY_AFTER_S,
    )


# no `timeout` entry: a connect timeout counts as unreachable; only a late response is a Timeout
_ERRORS: Final = ConnectionErrors(
    unreachable=_unreachable,
    cut=lambda _: BadGateway("the trainer closed the connection before its response was complete", code="trainer_cut"),
)


class TrainerResponse(PeerResponse):
    """The trainer's response to one request."""

    __slots__ = ("_silence_s",)

    def __init__(self, response: aiohttp.ClientResponse, silence_s: float) -> None:
        super().__init__(response)
        self._silence_s = silence_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body's bytes as they arrive. Raises BadGateway, Timeout."""
        chunks = self._response.content.iter_any()
        while True:
            try:
                with _ERRORS:
                    async with asyncio.timeout(self._silence_s):
                        chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Timeout(f"the trainer sent nothing for {self._silence_s:g} s") from None
            yield chunk

    async def read(self) -> bytes:
        """The whole body. Raises BadGateway, Timeout."""
        return b"".join([chunk async for chunk in self.chunks()])


class TrainerClient:
    """A client for one trainer, reached by its socket or its URL.

    Args:
        socket: Path of the Unix socket, or None.
        url: Base URL.
        secret: The shared secret sent with each request; None sends none.
        answer_s: Default time limit until a response starts, s.
        silence_s: Time limit between two chunks of a response, s.
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
        """Close the connections; requests in flight are cancelled."""
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
        """Send a request. Leaving the context before the end of the body closes the connection and ends the request.

        Args:
            method: The HTTP method.
            target: Path and query, percent-encoded.
            headers: The request's headers, without the secret.
            body: Bytes, or an async iterable that is streamed.
            timeout_s: Time limit until the response starts, s; None uses the client's default.

        Raises:
            TrainerUnavailable: It cannot be connected to.
            BadGateway: It closed the connection before it responded.
            Timeout: It did not respond in time.
        """
        limit_s = self.answer_s if timeout_s is None else timeout_s
        url = URL(self._url + target, encoded=True)  # keep the percent-encoding of the caller
        request = self._pool.session.request(method, url, headers=headers, data=body, allow_redirects=False)
        try:
            with _ERRORS:
                async with asyncio.timeout(limit_s):
                    response = await request
        except TimeoutError as error:
            raise Timeout(f"the trainer did not respond within {limit_s:g} s") from error
        try:
            yield TrainerResponse(response, self.silence_s)
        finally:
            # reuse the connection only if its body was read to the end
            with suppress(aiohttp.ClientError):
                response.close() if not response.content.is_eof() else response.release()
