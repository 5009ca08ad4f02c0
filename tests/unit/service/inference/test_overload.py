"""The whole gateway on a real socket, asked for more than it carries and by clients that misbehave: what is left of it.

`loadtests/overload.py` and `loadtests/clients.py` do the same at full size, and take the times.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import orjson
from aiohttp import web

from tests.support.adapters import make_base
from tests.unit.service.gateway_app import BASE, GatewayApp, InferenceEngine, running
from tests.unit.service.inference.fakes import DONE, token, until, usage_event
from tests.unit.service.server.served import Client, Served, served

PLACES: Final = 4
QUEUE: Final = 8
TIMES: Final = 25
ENDLESS: Final = token("x" * 8000, BASE)
"""An event that fills a client's buffers soon."""
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: the closing sends a reset."""


@dataclass
class StreamingEngine(InferenceEngine):
    """Sends each stream a token, and the rest once ``go`` is set; or tokens without an end."""

    open: int = 0
    most: int = 0
    endless: bool = False
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def _answer(self, request: web.Request) -> web.StreamResponse:  # type: ignore[override]
        if not (await request.json()).get("stream"):
            return await super()._answer(request)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await response.prepare(request)
            await response.write(token("A", BASE))
            while self.endless:
                await response.write(ENDLESS)
            await self.go.wait()
            await response.write(token("hoy", BASE) + usage_event(BASE) + DONE)
        finally:
            self.open -= 1
        return response


@dataclass
class Busy:
    """A gateway behind its own server, and the streaming engine."""

    gateway: GatewayApp
    server: Served
    keys: list[str]
    """Of two projects."""

    @property
    def engine(self) -> StreamingEngine:
        return cast(StreamingEngine, self.gateway.engine)

    def request(self, number: int = 0, **more: Any) -> bytes:
        """A stream's request with the key of one of the projects."""
        body = orjson.dumps({"model": BASE, "messages": [{"role": "user", "content": "Ahoy?"}], "stream": True, **more})
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {self.keys[number % len(self.keys)]}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def nothing_left(self) -> None:
        """Wait until no request is anywhere, and no connection open."""
        queue = self.gateway.api.state.admission_queue
        pipeline = self.gateway._inference.pipeline
        await until(lambda: not self.engine.open and not pipeline.in_flight and not self.server.connections)
        assert (queue.snapshot().in_flight, queue.snapshot().queued) == (0, 0)

    async def series(self) -> set[str]:
        """The names and labels of `/metrics`."""
        answer = await self.gateway.http.get("/metrics")
        return {line.rpartition(" ")[0] for line in answer.text.splitlines() if not line.startswith("#")}


@asynccontextmanager
async def busy(folder: Path, **limits: Any) -> AsyncIterator[Busy]:
    settings = {"engine_max_seqs": PLACES, "queue_size": QUEUE}
    async with (
        running(folder / "home", make_base(folder / "base"), make_engine=StreamingEngine, **settings) as gateway,
        served(gateway.app, **limits) as server,
    ):
        keys = [await gateway.key("infer", project=project) for project in ("one", "two")]
        yield Busy(gateway, server, keys)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def read_stream(client: Client) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer whose server closes no connection: read by its length, or its last chunk."""
    head = await client.reader.readuntil(b"\r\n\r\n")
    status = int(head.split()[1])
    if status != 200:
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return status, head.lower(), await client.reader.readexactly(length)
    return status, head.lower(), await client.reader.readuntil(b"\r\n0\r\n\r\n")


async def flood(busy: Busy) -> list[tuple[int, bytes, bytes]]:
    """`TIMES` as many requests as there are places, all at once; the engine ends none before all others are refused."""
    busy.engine.go.clear()
    count = TIMES * PLACES
    clients = [await busy.server.connect() for _ in range(count)]
    for number, client in enumerate(clients):
        await client.send(busy.request(number))
    answers = [asyncio.create_task(read_stream(client)) for client in clients]
    await until(lambda: sum(answer.done() for answer in answers) == count - PLACES - QUEUE)
    assert busy.engine.open == PLACES
    busy.engine.go.set()
    done = await asyncio.gather(*answers)
    for client in clients:
        client.writer.close()
    await busy.nothing_left()
    return done


async def test_of_a_flood_what_fits_is_answered_and_the_rest_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with busy(tmp_path) as here:
        await flood(here)  # threads and connections that are kept come with the first
        files, threads = open_files(), threading.active_count()
        answers = await flood(here)
        await until(lambda: open_files() <= files)
        assert threading.active_count() <= threads
        assert here.engine.most == PLACES
    whole = [body for status, _, body in answers if status == 200]
    refused = [(status, head, orjson.loads(body)["error"]) for status, head, body in answers if status != 200]
    assert len(whole) == PLACES + QUEUE
    assert all(b"hoy" in body and DONE.strip() in body for body in whole)
    assert {(status, error["code"]) for status, _, error in refused} <= {(429, "queue_share_full"), (503, "overloaded")}
    for _, head, _ in refused:
        assert int(head.partition(b"\r\nretry-after: ")[2].split(b"\r\n")[0]) >= 1


async def test_clients_that_leave_in_the_middle_leave_nothing(tmp_path: Path) -> None:
    async with busy(tmp_path) as here:
        counts = []
        for _ in range(3):
            clients = [await here.server.connect() for _ in range(PLACES + QUEUE)]
            for number, client in enumerate(clients):
                await client.send(here.request(number))
            await until(lambda: here.engine.open == PLACES)
            for number, client in enumerate(clients):
                if number % 2:
                    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    client.writer.transport.abort()
                else:
                    client.writer.close()
            await here.nothing_left()
            counts.append((open_files(), threading.active_count()))
        assert counts[2] <= counts[0]


async def test_who_reads_a_byte_at_a_time_loses_its_place_without_leaving(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with busy(tmp_path, body_timeout_s=0.4) as here:
        here.engine.endless = True
        readers = [socket.socket() for _ in range(PLACES)]
        files = open_files()
        for reader in readers:
            reader.setblocking(False)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)  # as on a network: small buffers
            await loop.sock_connect(reader, ("127.0.0.1", here.server.port))
            await loop.sock_sendall(reader, here.request())
        await until(lambda: here.engine.open == PLACES)

        async def creep(reader: socket.socket) -> None:
            while await loop.sock_recv(reader, 1):  # noqa: ASYNC110 (the pace of its reading)
                await asyncio.sleep(0.02)

        creeping = [asyncio.create_task(creep(reader)) for reader in readers]
        await here.nothing_left()
        for task in creeping:
            task.cancel()
        await asyncio.gather(*creeping, return_exceptions=True)
        await until(lambda: open_files() <= files)
        for reader in readers:
            reader.close()


async def test_names_that_no_model_has_leave_no_labels(tmp_path: Path) -> None:
    async with busy(tmp_path) as here:
        client = await here.server.connect()
        seen = []
        for first in (0, 10):
            for number in range(first, first + (10 if not first else 300)):
                name = ("nobody-{}", "nobody-{}@3", "nobody-{}:canary", "Nobody {}")[number % 4].format(number)
                answer = await client.ask(here.request(model=name))
                assert answer.error() == (404, "model_not_found")
            seen.append(await here.series())
        assert seen[0] == seen[1]
        assert not any("obody" in series for series in seen[1])
