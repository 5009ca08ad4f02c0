"""The load: a process that sends chat completions over a fixed number of connections and takes the times.

    echo '{"port": 9000, "connections": 16, "seconds": 2}' | python -m loadtests.gateway.driver

Without a rate each connection sends its next request when the last one is answered. With a rate requests arrive at
random (a Poisson process) whether or not earlier ones are answered; one that finds no free connection waits, and its
time counts from its arrival, so that a gateway that stalls does not hide its own delay.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

from loadtests.gateway.clock import Reading, Timer, Usage

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_TOKEN_EVENT = b'"delta":'
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: where, how much, how fast, for how long (s)."""

    port: int
    connections: int
    seconds: float
    model: str = "base"
    key: str = "none"
    tokens: int = 0
    """Tokens of each streamed answer; 0: not streamed."""
    rate: float = 0.0
    """Requests a second; 0: a connection's next one follows its last answer."""
    warmup_s: float = 0.3
    spread_s: float = 0.0
    """The connections' first requests are spread over this time, so that their streams do not go in step."""
    seed: int = 1
    pids: dict[str, int] = field(default_factory=dict)
    """Processes whose CPU time is read at the beginning and the end of what counts."""
    message_bytes: int = 0
    """Length of the user's message; 0: a question of two sentences, which makes a body of some 300 bytes."""

    def request(self) -> bytes:
        """The bytes of one request."""
        question = "Where is my parcel? It should have been here by now. "
        repeated = -(-self.message_bytes // len(question)) if self.message_bytes else 2
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": "You answer customers of a parcel service, kindly and in short."},
                {"role": "user", "content": (question * repeated)[: self.message_bytes or None]},
            ],
            "max_tokens": self.tokens or 64,
            "temperature": 0.2,
        }
        if self.tokens:
            body["stream"] = True
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\naccept: */*\r\n"
            f"user-agent: load\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


@dataclass(slots=True)
class Seen:
    """What came back between the end of the warm-up and the end. Times in seconds."""

    answers: int = 0
    tokens: int = 0
    latency_s: list[float] = field(default_factory=list)
    """From arrival to the last byte, of requests that arrived after the warm-up."""
    first_s: list[float] = field(default_factory=list)
    """The same to the first byte of the body."""
    unanswered: int = 0
    """Requests that were still out, or had not been sent, at the end."""
    errors: int = 0
    first_error: str = ""
    usage: Usage | None = None

    def fail(self, words: str) -> None:
        """Count an answer that is no answer."""
        self.errors += 1
        self.first_error = self.first_error or words[:300]


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, arrived: float) -> None:
        """Send a request that arrived at this time."""
        self.busy = True
        self._arrived = arrived
        self._first = 0.0
        self._parts: list[bytes] = []
        self._size = 0
        self._whole = 0
        self._head_done = False
        self.transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if not self._head_done and not self._read_head():
            return
        if not self._first:
            self._first = time.monotonic()
        if self._run.streaming:
            self._run.tokens += data.count(_TOKEN_EVENT)
        if self._whole:
            if self._size >= self._whole:
                self._done()
        elif data.endswith(_LAST_CHUNK) or (len(data) < len(_LAST_CHUNK) and self._joined().endswith(_LAST_CHUNK)):
            self._done()

    def _read_head(self) -> bool:
        """Look for the end of the response's head; True where some of the body is here too."""
        data = self._joined()
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return False
        self._head_done = True
        length = _LENGTH.search(data, 0, end)
        if length:
            self._whole = end + int(length[1])
        elif not _CHUNKED.search(data, 0, end):
            self._run.seen.fail("an answer that does not say where it ends: " + repr(data[:end]))
            self.transport.abort()
            return False
        return len(data) > end

    def _joined(self) -> bytes:
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def _done(self) -> None:
        self.busy = False
        self._run.answered(self, self._joined(), self._arrived, self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.lost(self)


class Run:
    """One run of a load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = load.request()
        self.streaming = load.tokens > 0
        self.seen = Seen()
        self.tokens = 0
        self._all: set[Connection] = set()
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._random = random.Random(load.seed)
        self._counting = False
        self._ending = False
        self._count_from = 0.0
        self._gone = asyncio.Event()
        self._reconnecting: set[asyncio.Task[None]] = set()

    async def __call__(self) -> Seen:
        """Run for the warm-up and the time that counts; what is still out then is given up."""
        load, seen = self.load, self.seen
        for _ in range(load.connections):
            await self._connect()
        if load.rate:
            self._timer = Timer()
            self._next = time.monotonic()
            asyncio.get_running_loop().add_reader(self._timer.fd, self._arrivals)
            self._arrivals()
        else:
            self._start_all()
        await asyncio.sleep(load.warmup_s)
        before, tokens = Reading.take(load.pids), self.tokens
        self._counting, self._count_from = True, before.wall_s
        await asyncio.sleep(load.seconds)
        self._counting, self._ending = False, True
        seen.tokens = self.tokens - tokens
        seen.usage = Reading.take(load.pids).since(before)
        seen.unanswered = len(self._waiting) + sum(connection.busy for connection in self._all)
        await self._close()
        return seen

    async def _close(self) -> None:
        if self.load.rate:
            asyncio.get_running_loop().remove_reader(self._timer.fd)
            self._timer.close()
        for task in self._reconnecting:
            task.cancel()
        await asyncio.gather(*self._reconnecting, return_exceptions=True)
        if not self._all:
            self._gone.set()
        for connection in tuple(self._all):
            connection.transport.abort()
        await self._gone.wait()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.load.port)
        self._all.add(connection)
        self._free.append(connection)

    def _start_all(self) -> None:
        loop, step_s = asyncio.get_running_loop(), self.load.spread_s / self.load.connections
        for number in range(len(self._free)):
            if step_s:
                loop.call_later(number * step_s, self._start_one)
            else:
                self._start_one()

    def _start_one(self) -> None:
        if self._free and not self._ending:
            self._free.popleft().send(time.monotonic())

    def _arrivals(self) -> None:
        self._timer.clear()
        now = time.monotonic()
        while self._next <= now:
            if self._free:
                self._free.popleft().send(self._next)
            else:
                self._waiting.append(self._next)
            self._next += self._random.expovariate(self.load.rate)
        if not self._ending:
            self._timer.set(self._next)

    def answered(self, connection: Connection, answer: bytes, arrived: float, first: float) -> None:
        """Take an answer's times, and give the connection its next request."""
        now = time.monotonic()
        seen = self.seen
        if answer[9:12] != b"200" or answer.count(_TOKEN_EVENT) < self.load.tokens:
            seen.fail(answer[:1000].decode("latin-1"))
        if self._counting:
            seen.answers += 1
            if arrived >= self._count_from:
                seen.latency_s.append(now - arrived)
                seen.first_s.append(first - arrived)
        if connection.transport.is_closing():
            return
        if self._waiting:
            connection.send(self._waiting.popleft())
        elif self.load.rate or self._ending:
            self._free.append(connection)
        else:
            connection.send(now)

    def lost(self, connection: Connection) -> None:
        """A connection was closed: in the middle of an answer that is an error, else another takes its place."""
        self._all.discard(connection)
        if self._ending:
            if not self._all:
                self._gone.set()
            return
        if connection.busy:
            self.seen.fail("the connection was closed in the middle of an answer")
        if connection in self._free:
            self._free.remove(connection)
        task = asyncio.ensure_future(self._replace())
        self._reconnecting.add(task)
        task.add_done_callback(self._reconnecting.discard)

    async def _replace(self) -> None:
        await self._connect()
        if not self.load.rate:
            self._start_one()


async def run(load: Load) -> Seen:
    """Run one load in this process."""
    gc.collect()
    gc.disable()
    return await Run(load)()


def main() -> None:
    """Run the load that standard input describes as JSON, and print what was seen."""
    seen = uvloop.run(run(Load(**json.load(sys.stdin))))
    # buffered whatever PYTHONUNBUFFERED says: an unbuffered pipe takes only the beginning of so long a line
    with os.fdopen(os.dup(1), "wb") as out:
        out.write(json.dumps(asdict(seen)).encode())


if __name__ == "__main__":
    main()
