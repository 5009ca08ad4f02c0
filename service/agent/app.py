"""The agent's HTTP server: sessions, the requests of a session, and its health. Everything but health is signed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Final

from aiohttp import HttpVersion11, WSCloseCode, WSMsgType, web

from service import __version__
from service.agent.announcer import Announcer
from service.agent.gate import Gate, Session
from service.agent.refusals import answer_errors, sparse_logger
from service.engine.agent_wire import (
    ENGINE_PATH,
    MAX_FRAME_BYTES,
    PROTOCOL,
    SESSION_HEADER,
    SESSION_PATH,
    SIGN_OF_LIFE_S,
    Message,
    dump_frame,
    load_frame,
)
from service.engine.client import EngineResponse
from service.engine.watched import WatchedEngine
from service.errors import BadGateway, EngineUnavailable, HatrackError, TooLarge, Unauthenticated
from service.http.signing import HEADER, Verifier

TIME_S: Final = 0.25
"""How often a session is told of the engine's time while it changes, s."""
REPORT_AGAIN_S: Final = 1.0
STOPS: Final = "its agent stops"
PASSED: Final = ("content-type", "x-request-id", "traceparent", "tracestate")
"""Request headers that the engine gets."""
RETURNED: Final = ("content-type",)
GETS: Final = frozenset({"/metrics", "/v1/models", "/health", "/hatrack/plugin"})
"""Paths of the engine that may be read."""
POSTS: Final = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/embeddings", "/tokenize", "/detokenize"),
    }
)
"""Paths of the engine that requests may be sent to; the others administer it."""
_LOG: Final = logging.getLogger("hatrack.agent")


class AgentServer:
    """Serves one engine.

    Args:
        watched: The engine.
        gate: Its queue.
        verifier: Of the shared secret.
        announcer: Tells the gateway where this agent is; None: nobody does.
        silence_s: A user who says nothing for so long is gone, s.
        max_body: Largest body of a request, bytes.
        store_url: The object store that adapters come from; None: they are in the engine's folder.
    """

    def __init__(
        self,
        watched: WatchedEngine,
        gate: Gate,
        verifier: Verifier,
        *,
        announcer: Announcer | None,
        silence_s: float,
        max_body: int,
        store_url: str | None,
    ) -> None:
        self._watched = watched
        self._gate = gate
        self._verifier = verifier
        self._announcer = announcer
        self._silence_s = silence_s
        self._max_body = max_body
        self._store_url = store_url
        self._outboxes: dict[str, _Outbox] = {}
        self._sockets: set[web.WebSocketResponse] = set()
        self._telling = asyncio.Lock()
        self._again: asyncio.TimerHandle | None = None
        """Tells the state once more, after an engine that was too busy to report."""
        self._stops = False
        self._tasks: set[asyncio.Task[Any]] = set()
        watched.on_change(lambda _: self._spawn(self._tell_state()))

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=self._max_body, middlewares=[answer_errors()])
        app.on_shutdown.append(self._close_sessions)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get(SESSION_PATH, self._session)
        app.router.add_post(ENGINE_PATH + "/{path:.*}", self._forward)
        app.router.add_get(ENGINE_PATH + "/{path:.*}", self._read)
        return app

    # health, which needs no signature

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "version": __version__})

    async def _readyz(self, _request: web.Request) -> web.Response:
        state, ready = self._watched.state, self._watched.ready
        queue = self._gate.admission.queue.snapshot()
        shown = {
            "status": "ready" if ready else state.name,
            "base": self._watched.config.base_name,
            "engine": {"state": state.name, "reason": state.reason, "since": state.since},
            "sessions": len(self._gate.sessions),
            "queued": queue.queued,
            "in_flight": queue.in_flight,
            "width": queue.width,
            "slots": self._watched.config.slots,
            "slots_in_use": queue.slots_in_use,
            "adapters_waiting": queue.adapters_waiting,
        }
        if self._announcer is not None:
            shown["announced"] = self._announcer.shown()
        return web.json_response(shown, status=200 if ready else 503, headers={} if ready else {"retry-after": "5"})

    # sessions

    async def _session(self, request: web.Request) -> web.StreamResponse:
        self._verifier.verify(request.headers, "GET", request.path, once=True)
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, timeout=0.1, compress=False)
        await socket.prepare(request)
        outbox = _Outbox()
        session = Session(self._gate, outbox.put, request.remote or "(socket)")
        hello = {"protocol": PROTOCOL, "session": session.id, "version": __version__, "store_url": self._store_url}
        if not await self._is_proven(socket, session, ["hello", hello]):
            _LOG.warning("a session was refused: its user did not sign it", extra={"peer": session.peer})
            await socket.close(code=WSCloseCode.POLICY_VIOLATION)
            return socket
        _LOG.info("a session began", extra={"peer": session.peer, "session": session.id[:8]})
        # nothing is awaited from here to the `try`: a user that leaves meanwhile would stay for ever
        self._gate.sessions[session.id], self._outboxes[session.id] = session, outbox
        self._sockets.add(socket)
        self._spawn(self._tell_state([outbox]))
        writer = asyncio.create_task(self._write(socket, outbox), name="agent-session-write")
        reason = "it was closed"
        try:
            reason = await self._listen(request, socket, session)
        finally:
            writer.cancel()
            self._sockets.discard(socket)
            del self._gate.sessions[session.id], self._outboxes[session.id]
            session.close()
            await asyncio.gather(writer, return_exceptions=True)
            _LOG.info("a session ended", extra={"peer": session.peer, "session": session.id[:8], "reason": reason})
        return socket

    async def _is_proven(self, socket: web.WebSocketResponse, session: Session, hello: Message) -> bool:
        """Whether the user, once greeted, signs the session's id, which is new.

        The handshake was signed before there was one: whoever has listened to it could open a session with another
        agent of the same secret.
        """
        with suppress(TimeoutError, BadGateway, Unauthenticated, IndexError, ConnectionError):
            async with asyncio.timeout(self._silence_s):
                await socket.send_bytes(dump_frame([hello]))
                while (frame := await socket.receive()).type in (WSMsgType.BINARY, WSMsgType.TEXT):
                    for kind, *rest in load_frame(frame.data):
                        if kind == "proof":
                            self._verifier.verify({HEADER: str(rest[0])}, "GET", SESSION_PATH, bound=session.id)
                            return True
                        if kind != "ping":
                            return False
        return False

    async def _listen(self, request: web.Request, socket: web.WebSocketResponse, session: Session) -> str:
        """Hear what the session says, until it ends; returns why."""
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    frame = await socket.receive()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                return f"nothing was heard for {self._silence_s:g} s"
            if frame.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return "it was closed"
            try:
                for message in load_frame(frame.data):
                    session.hear(message)
            except BadGateway as error:
                return error.message

    async def _write(self, socket: web.WebSocketResponse, outbox: _Outbox) -> None:
        loop = asyncio.get_running_loop()
        told_at, time_told = 0.0, None
        with suppress(ConnectionError):
            while True:
                messages = await outbox.take(TIME_S)
                if loop.time() - told_at >= SIGN_OF_LIFE_S:
                    told_at = loop.time()
                    messages += self._gate.statistics()
                time = self._gate.time()
                if time != time_told:
                    messages.append(time)
                    time_told = time
                if messages:
                    await socket.send_bytes(dump_frame(messages))

    async def drain(self, limit_s: float) -> None:
        """Give no more turns, tell all users so, and wait for what is in the engine, at most ``limit_s`` seconds."""
        self._stops = True
        self._gate.admission.queue.close(STOPS)
        self._gate.admission.counting.close(STOPS)
        await self._tell_state()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while any(session.requests for session in self._gate.sessions.values()):  # noqa: ASYNC110 (seldom)
                    await asyncio.sleep(TIME_S)

    def _spawn(self, telling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(telling, name="agent-state")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_state(self, outboxes: Collection[_Outbox] | None = None) -> None:
        """Tell these sessions, or all of them, how the engine is."""
        async with self._telling:  # in order: nobody is told last what was true before
            message = await self._state()
            for outbox in self._outboxes.values() if outboxes is None else outboxes:
                outbox.put(message)

    def _tell_again(self) -> None:
        self._again = None
        self._spawn(self._tell_state())

    async def _close_sessions(self, _app: web.Application) -> None:
        if self._again is not None:
            self._again.cancel()
        for socket in tuple(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)

    async def _state(self) -> Message:
        """The engine's state, with its report if it is ready."""
        state, report = self._watched.state, None
        if self._stops:
            return ["state", {"name": "down", "reason": STOPS, "since": state.since, "report": None}]
        if state.name == "ready":
            try:
                report = await self._watched.client.report()
            except HatrackError as error:  # it is busy, or says itself in a moment that it is away
                _LOG.warning("the engine does not report", extra={"reason": error.message})
                if self._again is None:
                    self._again = asyncio.get_running_loop().call_later(REPORT_AGAIN_S, self._tell_again)
            state = self._watched.state
        told = {"name": state.name, "reason": state.reason, "since": state.since, "report": report}
        return ["state", told]

    # the requests of a session

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        session, check_body = self._authorized(request)
        if request.path.removeprefix(ENGINE_PATH) not in POSTS:
            raise web.HTTPNotFound
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a handler runs in one
        session.requests.add(task)  # from now on it ends with its session, also where its body stops coming
        try:
            check_body(body := await self._body(request))
            entered = self._gate.clock.enter()
            try:
                return await self._relay(request, body)
            finally:
                self._gate.clock.leave(entered)
        finally:
            session.requests.discard(task)

    async def _body(self, request: web.Request) -> bytes:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise TooLarge(f"the body has more than {self._max_body} bytes (HATRACK_MAX_BODY_MIB)") from None

    async def _relay(self, request: web.Request, body: bytes) -> web.StreamResponse:
        path = request.path.removeprefix(ENGINE_PATH)
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        with closing(await self._watched.client.send(path, body, headers)) as response:
            answer = web.StreamResponse(
                status=response.status,
                headers={name: response.headers[name] for name in RETURNED if name in response.headers},
            )
            length = response.headers.get("content-length")
            if length is not None:
                answer.content_length = int(length)
            await answer.prepare(request)
            try:
                if length is None and request.version >= HttpVersion11:  # then aiohttp frames it in chunks
                    await self._stream(response, answer, request)
                else:
                    async for chunk in response.chunks():
                        self._watched.saw_tokens()
                        await answer.write(chunk)
            except HatrackError:
                # whoever reads must not take it for the whole answer
                if request.transport is not None:
                    request.transport.abort()
                raise
            await answer.write_eof()
        return answer

    async def _stream(self, response: EngineResponse, answer: web.StreamResponse, request: web.Request) -> None:
        """Pass on a body of unknown length: many short pieces, which go past aiohttp's coroutines where they can."""
        pending, has_begun = b"", False

        def take(data: bytes) -> bool:
            nonlocal pending
            self._watched.saw_tokens()
            transport = request.transport
            if not has_begun or transport is None or transport.is_closing() or request.protocol.writing_paused:
                pending = data
                return False
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            return True

        while not await response.pass_to(take):
            await answer.write(pending)  # the first with the headers; waits, soon, where the other side reads slowly
            has_begun = True

    async def _read(self, request: web.Request) -> web.Response:
        self._authorized(request)
        path = request.path.removeprefix(ENGINE_PATH)
        if path not in GETS:
            raise web.HTTPNotFound
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(text=await self._watched.client.get_text(path + query), content_type="text/plain")

    def _authorized(self, request: web.Request) -> tuple[Session, Any]:
        """The session that a request belongs to, and what must be called with its body.

        Raises:
            Unauthenticated: It is not signed for that session.
            EngineUnavailable: The session has ended; nothing was sent to the engine.
        """
        name = request.headers.get(SESSION_HEADER, "")
        check_body = self._verifier.verify(request.headers, request.method, request.path_qs, bound=name, once=True)
        session = self._gate.sessions.get(name)
        if session is None:
            raise EngineUnavailable("the engine is not ready: the session with its agent has ended")
        return session, check_body


class _Outbox:
    """Messages that wait to be sent in one session."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._wake = asyncio.Event()

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._wake.set()

    async def take(self, patience_s: float) -> list[Message]:
        """What is there, or comes within ``patience_s`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._wake.wait()
        self._wake.clear()
        messages, self._messages = self._messages, []
        return messages


@asynccontextmanager
async def listening(server: AgentServer, *, host: str, port: int, uds: str | None, stop_s: float) -> AsyncIterator[str]:
    """Listen while this is open; yields the address, as HATRACK_ENGINE_AGENT takes it.

    Args:
        uds: Path of a Unix socket, instead of host and port.
        stop_s: How long requests may go on when it ends, s.
    """
    # a client that leaves cancels the handler, which aborts its request in the engine
    runner = web.AppRunner(
        server.application(),
        access_log=None,
        logger=sparse_logger("http"),  # what is no HTTP at all would be a traceback each
        handler_cancellation=True,
        shutdown_timeout=stop_s,
        keepalive_timeout=75,
    )
    await runner.setup()
    site = web.UnixSite(runner, uds) if uds is not None else web.TCPSite(runner, host, port)
    try:
        await site.start()
        bound = runner.addresses[0]
        yield f"unix:{uds}" if uds is not None else f"http://{host}:{bound[1]}"
    finally:
        await runner.cleanup()
