"""One session with an agent, from its user's side; ``service.engine.agent_wire`` is the language."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import aiohttp

from service.engine.agent_wire import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    SESSION_PATH,
    SIGN_OF_LIFE_S,
    Message,
    dump_frame,
    load_frame,
)
from service.errors import BadGateway, HatrackError
from service.http.signing import HEADER, sign

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_S: Final = 0.1
REDIRECTS: Final = range(300, 400)
_MALFORMED: Final = (KeyError, IndexError, TypeError, ValueError)


class SessionEnded(Exception):
    """The session has ended, or could not begin; the message says why."""

    def __init__(self, reason: str, *, unreached: bool = False) -> None:
        super().__init__(reason)
        self.unreached = unreached
        """Nothing listens there."""


class AgentLink:
    """Opens sessions with one agent, one after another.

    Args:
        name: The agent's address, for people.
        url: Its base URL.
        socket: The path of its Unix socket, if that is where it listens.
        key: What signs the sessions.
        silence_s: After so long without a message the agent counts as gone, s.
    """

    def __init__(self, *, name: str, url: str, socket: str | None, key: bytes, silence_s: float) -> None:
        self.key = key
        self.session: str | None = None
        """The id of the open session."""
        self.move(name, url, socket)
        self._silence_s = silence_s
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._outbox: list[Message] = []
        self._wake = asyncio.Event()

    def move(self, name: str, url: str, socket: str | None) -> None:
        """The next session is with the agent there; arguments as of the class."""
        self.name = name
        self._url = url.rstrip("/")
        self._socket = socket

    def on(self, kind: str, handler: Callable[..., Any]) -> None:
        """Call ``handler`` with the parts of each message of a kind; what it returns is awaited if it can be."""
        self._handlers[kind] = handler

    def send(self, *message: Any) -> None:
        """Send a message in the open session; without one it goes nowhere, as does what waits for it."""
        if self.session is not None:
            self._outbox.append(list(message))
            self._wake.set()

    async def run(self) -> None:
        """One session, from its beginning to its end. Always raises.

        Raises:
            SessionEnded: It could not begin, or has ended.
        """
        connector: aiohttp.BaseConnector = (
            aiohttp.UnixConnector(self._socket) if self._socket else aiohttp.TCPConnector(force_close=True)
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, middlewares=(self._refuse_redirect,)
        ) as http:
            socket = await self._connect(http)
            writer = asyncio.create_task(self._write(socket), name="agent-session-write")
            try:
                await self._read(socket)
            except (HatrackError, *_MALFORMED) as error:
                raise SessionEnded(
                    f"the agent at {self.name} does not speak this gateway's language: {error}"
                ) from error
            finally:
                self.session = None
                self._outbox.clear()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                with suppress(TimeoutError):  # an agent that stands still reads nothing, not even this
                    async with asyncio.timeout(2 * CLOSE_S):
                        await socket.close()

    async def _connect(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + self._silence_s):
                return await http.ws_connect(
                    self._url + SESSION_PATH,
                    headers=sign(self.key, "GET", SESSION_PATH),
                    max_msg_size=MAX_FRAME_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise SessionEnded(self._refusal(error)) from error
        except aiohttp.ClientConnectorError as error:
            raise SessionEnded(f"the agent at {self.name} cannot be reached", unreached=True) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SessionEnded(f"the agent at {self.name} does not answer") from error

    async def _refuse_redirect(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Follow no redirect: what answers at an agent's address does not choose where else this process asks."""
        answer = await send(request)
        if answer.status in REDIRECTS:
            answer.close()
            raise SessionEnded(self._no_agent(answer.status))
        return answer

    def _refusal(self, error: aiohttp.WSServerHandshakeError) -> str:
        if error.status == 401:
            why = "" if error.headers is None else error.headers.get("x-hatrack-reason", "")
            return (
                f"the agent at {self.name} refuses this gateway's signature (HATRACK_AGENT_KEY){': ' * bool(why)}{why}"
            )
        return self._no_agent(error.status)

    def _no_agent(self, status: int) -> str:
        return f"what answers at {self.name} is no agent (status {status}): `hatrack agent` starts one"

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    frame = await socket.receive()
            except TimeoutError:
                raise SessionEnded(
                    f"the agent at {self.name} has said nothing for {self._silence_s:g} s (HATRACK_AGENT_TIMEOUT_S)"
                ) from None
            if frame.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                raise SessionEnded(f"the agent at {self.name} has closed the session")
            for kind, *rest in load_frame(frame.data):
                if kind == "hello":
                    self._begin(rest[0])
                handler = self._handlers.get(kind)
                if handler is not None:
                    done = handler(*rest)
                    if asyncio.iscoroutine(done):
                        await done

    def _begin(self, hello: dict[str, Any]) -> None:
        if hello["protocol"] != PROTOCOL:
            raise BadGateway(
                f"it uses protocol {hello['protocol']!r} (version {hello.get('version')}), this gateway {PROTOCOL}; "
                "run the same version of Hatrack on both sides"
            )
        self.session = str(hello["session"])
        self.send("proof", sign(self.key, "GET", SESSION_PATH, bound=self.session)[HEADER])

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        with suppress(aiohttp.ClientError, ConnectionError):  # the reader notices
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SIGN_OF_LIFE_S):
                        await self._wake.wait()
                self._wake.clear()
                messages, self._outbox = self._outbox or [["ping"]], []
                await socket.send_bytes(dump_frame(messages))
