"""The whole data path before an engine that misbehaves on its socket: every answer is whole, or a named error."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from service.access.authentication import Authenticator
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.config import Settings
from service.engine.client import EngineClient
from service.inference.dispatch import Dispatch
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from tests.unit.service.inference.fakes import (
    BASE,
    DONE,
    KEY,
    Answer,
    World,
    catalog,
    chat_body,
    completion,
    last_error,
    token,
    until,
    usage_event,
)

PATIENCE_S: Final = 1.0
"""The gateway's time limit for a request: what an engine that says nothing costs a test."""
Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EVENTS = (token("A"), token("hoy"), usage_event(), DONE)


def head(kind: str, *more: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"content-type: {kind}", *more, "", ""]).encode()


STREAM_HEAD = head("text/event-stream", "connection: close")
WHOLE = completion("Ahoy")
ANSWER = head("application/json", f"content-length: {len(WHOLE)}") + WHOLE


class HostileEngine:
    """An engine that reads each request and then does what the test says; a `World` asks it by ``client``."""

    def __init__(self, client: EngineClient, timeout_s: float) -> None:
        self.requests = 0
        self.open = 0
        self.world = World(request_timeout_s=timeout_s)
        self.client = client
        self.queue = AdmissionQueue(Policy(width=64, common=64, slots=4, queue_size=64))
        settings = Settings(engine_device="cpu", engine_context=2048, request_timeout_s=timeout_s)
        dispatch = Dispatch(settings, self.client, BASE, suspect=self.world.suspects.append, admission_queue=self.queue)
        pipeline = Pipeline(settings, Authenticator(KEY), catalog(), dispatch, account=self.world.records.append)
        self.world.app = InferenceApp(settings, pipeline)


@asynccontextmanager
async def hostile(folder: Path, act: Act, *, timeout_s: float = 60.0) -> AsyncIterator[HostileEngine]:
    path = folder / "e.sock"
    engine = HostileEngine(EngineClient(socket=str(path)), timeout_s)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine.open += 1
        try:
            header = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in header.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            engine.requests += 1
            await act(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway has left
        finally:
            engine.open -= 1
            writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield engine
        await until(lambda: engine.open == 0)
        assert engine.client.in_flight == 0
        assert engine.queue.load == 0, "nobody keeps a place in the engine"
    finally:
        server.close()
        await engine.client.close()


def says(*parts: bytes, abort: bool = False) -> Act:
    """Sends the parts and closes; ``abort``: by a reset."""

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if abort:
            writer.transport.abort()

    return act


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the gateway gives up


def then_nothing(*parts: bytes) -> Act:
    """Sends the parts and then nothing more, without closing."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(*parts)(reader, writer)
        await say_nothing(reader, writer)

    return act


def bytewise(data: bytes) -> Sequence[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def text_of(answer: Answer) -> str:
    """The text that a client of the stream has read, whose end must be there."""
    events = answer.body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return "".join(orjson.loads(event[6:])["choices"][0]["delta"]["content"] for event in events[:-2])


@pytest.mark.parametrize(
    ("parts", "chunked"),
    [
        ([STREAM_HEAD, *EVENTS], False),
        (bytewise(STREAM_HEAD + b"".join(EVENTS)), False),
        ([STREAM_HEAD + b"".join(EVENTS)], False),
        ([b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS] + [b"0\r\n\r\n"], True),
    ],
    ids=["event by event", "byte by byte", "all at once", "chunked"],
)
async def test_a_stream_is_whole_in_whatever_pieces_it_comes(
    tmp_path: Path, parts: Sequence[bytes], chunked: bool
) -> None:
    before = [head("text/event-stream", "transfer-encoding: chunked")] if chunked else []
    async with hostile(tmp_path, says(*before, *parts)) as engine:
        assert text_of(await engine.world.chat(stream=True)) == "Ahoy"


async def test_a_whole_answer_may_come_byte_by_byte(tmp_path: Path) -> None:
    async with hostile(tmp_path, says(*bytewise(ANSWER))) as engine:
        answer = await engine.world.chat()
    assert answer.json()["choices"][0]["message"]["content"] == "Ahoy"


@pytest.mark.parametrize("stream", [True, False])
async def test_nobody_listens(tmp_path: Path, stream: bool) -> None:
    engine = HostileEngine(EngineClient(socket=str(tmp_path / "nobody.sock")), 60.0)
    answer = await engine.world.chat(stream=stream)
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert "retry-after" in answer.headers
    await engine.client.close()


@contextmanager
def black_hole(kind: socket.AddressFamily, address: Any) -> Iterator[Any]:
    """A socket that nobody accepts from and whose backlog is full: over TCP, whoever connects hears nothing at all."""
    with ExitStack() as sockets:
        hole = sockets.enter_context(socket.socket(kind))
        hole.bind(address)
        hole.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket(kind))
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        yield hole.getsockname()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_black_hole_costs_the_time_limit_of_connecting_and_no_more(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.client.CONNECT_TIMEOUT_S", 0.2)
    with black_hole(socket.AF_INET, ("127.0.0.1", 0)) as (host, port):
        engine = HostileEngine(EngineClient(url=f"http://{host}:{port}"), 600.0)
        await is_unavailable(engine, stream=stream)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_socket_that_takes_no_more_connections_is_unavailable_at_once(tmp_path: Path, stream: bool) -> None:
    with black_hole(socket.AF_UNIX, str(tmp_path / "e.sock")) as path:
        await is_unavailable(HostileEngine(EngineClient(socket=path), 600.0), stream=stream)


async def is_unavailable(engine: HostileEngine, *, stream: bool) -> None:
    """A request of the engine's world is told that there is no engine, and is not charged: nothing was sent."""
    answer = await engine.world.chat(stream=stream)
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert engine.world.records[0].tokens is None
    assert (engine.client.in_flight, engine.queue.load) == (0, 0)
    await engine.client.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_accepts_no_connection_costs_the_time_limit_and_no_more(
    tmp_path: Path, stream: bool
) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "e.sock"))
        deaf.listen()
        engine = HostileEngine(EngineClient(socket=deaf.getsockname()), PATIENCE_S)
        answer = await engine.world.chat(stream=stream)
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert (engine.client.in_flight, engine.queue.load) == (0, 0)
        await engine.client.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([], 502, "engine_cut"),
        ([b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n"], 502, "engine_cut"),
        ([b"HTTP/1.1 200"], 502, "engine_cut"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n"], 502, "engine_cut"),
        ([b"HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\ncontent-length: 0\r\n\r\n"], 502, "engine_error"),
        ([b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops"], 502, "engine_error"),
        ([b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}"], 503, "engine_unavailable"),
    ],
    ids=["closed", "no HTTP", "half a status line", "an endless header", "a redirect", "500", "503"],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_what_is_no_answer_is_an_error_before_the_stream_begins(
    tmp_path: Path, parts: list[bytes], status: int, code: str, stream: bool, abort: bool
) -> None:
    async with hostile(tmp_path, says(*parts, abort=abort)) as engine:
        answer = await engine.world.chat(stream=stream)
        assert answer.headers["content-type"] == "application/json"
        found = (answer.status, answer.error["code"])
        # a reset may take with it what was sent before
        assert found == (status, code) or (abort and found == (502, "engine_cut"))
        assert engine.requests == 1, "nothing that was sent is sent again"
        assert engine.world.suspects == []


@pytest.mark.parametrize(
    ("body", "status"),
    [(WHOLE[:40], 502), (b"", 502)],
    ids=["half of it", "none of it"],
)
async def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path, body: bytes, status: int) -> None:
    announced = head("application/json", f"content-length: {len(WHOLE)}") + body
    async with hostile(tmp_path, says(announced)) as engine:
        answer = await engine.world.chat()
    assert (answer.status, answer.error["code"]) == (status, "engine_cut")


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        ([], "engine_cut"),
        ([token("half")[:25]], "engine_cut"),
        ([b'data: {"error": {"message": "x", "type": "InternalServerError", "code": 500}}\n\n'], "engine_error"),
    ],
    ids=["closed", "half an event", "an error in the stream"],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_a_stream_that_breaks_off_ends_in_a_named_error(
    tmp_path: Path, tail: list[bytes], code: str, abort: bool
) -> None:
    async with hostile(tmp_path, says(STREAM_HEAD, token("A"), *tail, abort=abort)) as engine:
        answer = await engine.world.chat(stream=True)
        assert b"[DONE]" not in answer.body
        assert engine.requests == 1
        if answer.status == 200:
            assert last_error(answer.body)["code"] in ({code, "engine_cut"} if abort else {code})
        else:
            assert abort, "only a reset takes the first token with it"
            assert (answer.status, answer.error["code"]) == (502, "engine_cut")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_says_nothing_costs_the_time_limit_and_no_more(tmp_path: Path, stream: bool) -> None:
    async with hostile(tmp_path, say_nothing, timeout_s=PATIENCE_S) as engine:
        answer = await engine.world.chat(stream=stream)
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert engine.world.suspects == []


@pytest.mark.parametrize("head_comes_first", [True, False])
async def test_a_first_token_that_is_late_is_delivered_and_the_stream_ends_as_usual(
    tmp_path: Path, head_comes_first: bool
) -> None:
    first, last = [STREAM_HEAD], [*EVENTS]
    if not head_comes_first:
        first, last = last[:0], [*first, *last]
    is_late = asyncio.Event()

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(*first)(reader, writer)
        await is_late.wait()
        await says(*last)(reader, writer)

    async with hostile(tmp_path, act) as engine:
        answer = Answer()
        body = orjson.dumps(chat_body(stream=True))
        asking = asyncio.create_task(engine.world.ask_in_parts("/v1/chat/completions", [body], answer=answer))
        await until(lambda: engine.requests == 1)
        await asyncio.sleep(0.2)
        assert (answer.status, asking.done()) == (0, False), "nothing is said before the first token"
        is_late.set()
        assert text_of(await asking) == "Ahoy"
        assert (answer.status, engine.world.records[0].outcome) == (200, "ok")
        assert (engine.world.records[0].first_byte_s or 0) >= 0.2


@pytest.mark.parametrize("parts", [(ANSWER,), (ANSWER[:-20], ANSWER[-20:])], ids=["at once", "in two pieces"])
async def test_an_answer_without_an_end_in_sight_is_not_read_on(
    tmp_path: Path, parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, status in ((len(WHOLE), 200), (len(WHOLE) - 1, 502)):
        monkeypatch.setattr("service.engine.client.MAX_ANSWER_BYTES", limit)
        async with hostile(tmp_path, says(*parts)) as engine:
            answer = await engine.world.chat()
            assert answer.status == status
    assert answer.error["code"] == "engine_error"


async def test_a_stream_that_stops_in_the_middle_ends_in_the_time_limits_error(tmp_path: Path) -> None:
    async with hostile(tmp_path, then_nothing(STREAM_HEAD, token("A")), timeout_s=PATIENCE_S) as engine:
        answer = await engine.world.chat(stream=True)
        # on a machine so slow that the limit comes before the first token there is no stream yet
        error = last_error(answer.body) if answer.status == 200 else answer.error
        assert error["code"] == "timeout"


async def test_a_connection_that_stays_open_after_the_last_event_keeps_nothing_from_the_client(tmp_path: Path) -> None:
    async with hostile(tmp_path, then_nothing(STREAM_HEAD, *EVENTS), timeout_s=PATIENCE_S) as engine:
        answer = await engine.world.chat(stream=True)
        assert answer.status != 200 or b"".join([token("A", "voice"), token("hoy", "voice"), DONE]) in answer.body


async def test_fifty_streams_that_are_cut_at_once_each_end_in_an_error_and_leave_nothing_open(tmp_path: Path) -> None:
    everyone = asyncio.Barrier(50)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says(STREAM_HEAD, token("A"))(reader, writer)
        await everyone.wait()
        writer.transport.abort()

    async with hostile(tmp_path, act) as engine:
        answers = await asyncio.gather(*(engine.world.chat(stream=True) for _ in range(50)))
        assert {answer.status for answer in answers} <= {200, 502}
        for answer in answers:
            assert (last_error(answer.body) if answer.status == 200 else answer.error)["code"] == "engine_cut"
        assert len(engine.world.records) == 50
