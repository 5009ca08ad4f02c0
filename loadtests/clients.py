"""Clients that misbehave: what they leave behind in a gateway with everything on.

    .venv/bin/python -m loadtests.clients
    .venv/bin/python -m loadtests.clients --only names --names 10000

Before a fake engine that decodes 1,152 streams at once: 1,000 clients that leave together in the middle of their
streams; 200 that read their streams at one byte a second, beside one that reads as it should; 100,000 requests for
models that do not exist, each for another. The first two come twice: what grows would grow again. Each part prints what
the gateway's process, the engine and `/metrics` held before, during and after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from loadtests.gateway.cells import percentile
from loadtests.gateway.contenders import Failed
from loadtests.gateway.driver import Load
from loadtests.gateway.peers import ENGINE_MODEL
from loadtests.gateway.standing import Footprint, Standing, standing

SEQUENCES = 1152
"""Admission keeps a sixteenth of them for others than the one key of all who misbehave."""
TOKENS = 2000
"""Of each stream: none ends by itself while its client is looked at."""
CONNECT_AT_ONCE = 32
SETTLE_S = 10.0
GONE_WITHIN_S = 120.0
TOKEN = b'"delta"'
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: the closing sends a reset."""
SMALL_BUFFER = 2048
ETHERNET_MSS = 1460
"""Segments as on a network: over the loopback's own of 64 KiB the kernel alone would hold a whole stream."""
NAME_CONNECTIONS = 16
WARM_NAMES = 0.1
"""Share of the names after which the memory is looked at first."""


class Client:
    """One connection to the gateway that does with its socket what it likes."""

    def __init__(self, port: int, *, slow: bool = False) -> None:
        self._port = port
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if slow:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_MSS)

    async def connect(self) -> None:
        """Connect to the gateway."""
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))

    async def send(self, request: bytes) -> None:
        """Send a request."""
        await asyncio.get_running_loop().sock_sendall(self._socket, request)

    async def read(self, size: int = 65536) -> bytes:
        """At most ``size`` bytes; b"": the gateway has closed."""
        with suppress(ConnectionError):
            return await asyncio.get_running_loop().sock_recv(self._socket, size)
        return b""

    async def read_until(self, mark: bytes, count: int = 1) -> bytes:
        """Everything until ``mark`` has come so often. Raises Failed where it cannot come any more."""
        data = b""
        while data.count(mark) < count:
            more = await self.read()
            data += more
            if not more or (mark == TOKEN and not data.startswith(b"HTTP/1.1 200"[: len(data)])):
                raise Failed(f"a client that should have got a stream got {data[:600]!r}")
        return data

    def close(self, *, reset: bool = False) -> None:
        """Leave."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._socket.close()


@dataclass(slots=True)
class State:
    """What everybody holds at one moment."""

    name: str
    held: Footprint
    streams: int
    """At the engine."""
    in_flight: int
    """Requests in the gateway."""
    series: int
    """Of `/metrics`."""

    @classmethod
    async def of(cls, name: str, both: Standing) -> State:
        """Look now."""
        metrics = await asyncio.to_thread(both.metrics)
        load = await asyncio.to_thread(both.engine_load)
        in_flight = int(metrics["hatrack_requests_in_flight"])
        return cls(name, both.footprint(), load["streams"], in_flight, len(metrics))

    def row(self) -> str:
        """Of the table."""
        held = self.held
        figures = f"{held.threads} | {held.descriptors} | {self.streams} | {self.in_flight} | {self.series}"
        return f"| {self.name} | {held.rss_mib:.0f} MiB | {figures} |"


HEADER = (
    "| | memory | threads | descriptors | streams at the engine | requests in flight | series |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


@dataclass(slots=True)
class Part:
    """What one part of the test has seen."""

    states: list[State]
    """The first before it, the last after it."""
    notes: list[str]

    def lines(self) -> list[str]:
        """Its table, and what else there is to say."""
        return [HEADER, *(state.row() for state in self.states), "", *self.notes]


async def until_gone(both: Standing) -> float:
    """How long until no stream is left at the engine and no request in the gateway, s; at most GONE_WITHIN_S."""
    began = time.monotonic()
    while time.monotonic() - began < GONE_WITHIN_S:
        state = await State.of("", both)
        if not state.streams and not state.in_flight:
            break
        await asyncio.sleep(0.2)
    return time.monotonic() - began


def stream_request(both: Standing, key: str, tokens: int = TOKENS) -> bytes:
    """A request for a long stream."""
    return Load(both.port, 1, 1.0, ENGINE_MODEL, key, tokens=tokens).request()


async def leavers(both: Standing, count: int) -> Part:
    """``count`` clients read three events each; then all leave at once, every second one with a reset."""
    both.set_engine(pace_ms=200)
    request = stream_request(both, both.key("leavers"))
    states = [await State.of("before", both)]
    clients = [Client(both.port) for _ in range(count)]
    gate = asyncio.Semaphore(CONNECT_AT_ONCE)

    async def begin(client: Client) -> None:
        async with gate:
            await client.connect()
            await client.send(request)
            await client.read_until(TOKEN, 3)

    await asyncio.gather(*(begin(client) for client in clients))
    states.append(await State.of(f"{count:,} in mid-stream", both))
    for number, client in enumerate(clients):
        client.close(reset=number % 2 == 0)
    gone_s = await until_gone(both)
    await asyncio.sleep(SETTLE_S)
    states.append(await State.of(f"{SETTLE_S:.0f} s after they left", both))
    return Part(states, [f"the last stream at the engine ended after {gone_s:.1f} s"])


async def readers(both: Standing, count: int, seconds: float) -> Part:
    """``count`` clients read a byte a second, and one, with a key of its own, as it should."""
    both.set_engine(pace_ms=20)
    request, own = stream_request(both, both.key("readers")), stream_request(both, both.key("caller"), 8)
    states = [await State.of("before", both)]
    alone = await caller(both, own, 10.0)
    clients = [Client(both.port, slow=True) for _ in range(count)]
    began = time.monotonic()

    async def creep(client: Client) -> None:
        await client.connect()
        await client.send(request)
        while time.monotonic() - began < seconds and await client.read(1):  # noqa: ASYNC110 (its pace)
            await asyncio.sleep(1)

    creeping = [asyncio.create_task(creep(client)) for client in clients]
    beside = asyncio.create_task(caller(both, own, seconds))
    for share in (0.25, 0.5, 0.75, 1.0):
        await asyncio.sleep(max(0.0, began + seconds * share - time.monotonic()))
        states.append(await State.of(f"after {seconds * share:.0f} s", both))
    await asyncio.gather(*creeping)
    gone_s = await until_gone(both)
    for client in clients:
        client.close()
    await asyncio.sleep(SETTLE_S)
    states.append(await State.of(f"{SETTLE_S:.0f} s after they left", both))
    firsts = [percentile(values, 0.99) * 1000 for values in (alone, await beside)]
    notes = [
        f"nothing of them left in gateway and engine {gone_s:.1f} s after the last look"
        if gone_s < GONE_WITHIN_S
        else f"streams left after {gone_s:.0f} s",
        f"the other caller's p99 to the first token: {firsts[0]:.0f} ms alone, {firsts[1]:.0f} ms beside them",
    ]
    return Part(states, notes)


async def caller(both: Standing, request: bytes, seconds: float) -> list[float]:
    """Times to the first event of a caller that reads as it should, one request after another, s."""
    client, began, firsts = Client(both.port), time.monotonic(), []
    await client.connect()
    while time.monotonic() - began < seconds:
        sent = time.monotonic()
        await client.send(request)
        data = await client.read_until(TOKEN)
        firsts.append(time.monotonic() - sent)
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data = data[-16:] + await client.read()
    client.close()
    return firsts


async def unknown_names(both: Standing, count: int) -> Part:
    """``count`` requests, each for another model that does not exist."""
    key = both.key("names")
    states, statuses = [await State.of("before", both)], Counter[bytes]()
    names = unknown(count)

    async def ask(how_many: int) -> None:
        client = Client(both.port)
        await client.connect()
        for _ in range(how_many):
            await client.send(name_request(both.port, key, next(names)))
            head, _, body = (await client.read_until(b"\r\n\r\n")).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(body) < length:
                body += await client.read()
            statuses[head[9:12]] += 1
        client.close()

    began, warm = time.monotonic(), int(count * WARM_NAMES)
    for part in (warm, count - warm):
        share, rest = divmod(part, NAME_CONNECTIONS)
        await asyncio.gather(*(ask(share + (number < rest)) for number in range(NAME_CONNECTIONS)))
        states.append(await State.of(f"after {statuses.total():,} names", both))
    took_s = time.monotonic() - began
    await asyncio.sleep(SETTLE_S)
    states.append(await State.of(f"{SETTLE_S:.0f} s after", both))
    answered = ", ".join(f"{number:,} × {status.decode()}" for status, number in statuses.items())
    return Part(states, [f"answers: {answered}, {count / took_s:,.0f} a second"])


def unknown(count: int) -> Iterator[str]:
    """Names that no model has, in every form that a name may take."""
    forms = ("nobody-{}", "nobody-{}@3", "nobody-{}:canary", "Nobody {} of that name", "{:0>64}")
    for number in range(count):
        yield forms[number % len(forms)].format(number)


def name_request(port: int, key: str, model: str) -> bytes:
    """The bytes of a request for a model."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Who are you?"}]}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leavers", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--reading-s", type=float, default=60.0, help="how long they read")
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2, help="of leavers and readers: what grows would grow again")
    parser.add_argument("--only", choices=("leavers", "readers", "names"), nargs="+")
    parser.add_argument("--core", type=int, default=0, help="of the gateway and the engine")
    chosen = parser.parse_args(argv)
    parts: dict[str, Callable[[Standing], Coroutine[None, None, Part]]] = {
        "leavers": lambda both: leavers(both, chosen.leavers),
        "readers": lambda both: readers(both, chosen.readers, chosen.reading_s),
        "names": lambda both: unknown_names(both, chosen.names),
    }

    async def run(both: Standing) -> None:
        for name, part in parts.items():
            if chosen.only is None or name in chosen.only:
                for number in range(1, chosen.rounds + 1 if name != "names" else 2):
                    print(f"\n{name}, round {number}\n", *(await part(both)).lines(), sep="\n", flush=True)

    with standing(sequences=SEQUENCES, pace_ms=20, core=chosen.core) as both:
        asyncio.run(run(both))


if __name__ == "__main__":
    main()
