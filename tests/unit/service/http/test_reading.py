"""Bodies that are sent slowly hold no more memory than all of them, and one client's, may."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import HatrackError
from service.http import body as bodies
from service.http.reading import BodiesRead
from service.inference import exchange as exchanges
from service.inference.exchange import ClientLeft, Exchange

MAX_BODY = 1000


class SlowClient:
    """Sends its body in parts, one when it is told to."""

    def __init__(self, peer: str, reader: str) -> None:
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "http",
            "path": "/v1/completions",
            "headers": [(b"content-type", b"application/json")],
            "client": (peer, 1),
        }
        if reader == "data path":
            exchange = Exchange(scope, self.parts.get, lambda _: pytest.fail("it answers"))
            reading: Any = exchange.read_json_body(MAX_BODY)
        else:
            reading = bodies.read_bytes(Request(scope, self.parts.get), MAX_BODY)
        self.reading: asyncio.Task[bytes] = asyncio.create_task(reading)

    async def send(self, size: int, *, is_last: bool = False) -> None:
        self.parts.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": not is_last})
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def refusal(self) -> tuple[int, str | None, str | None] | None:
        error = self.reading.exception() if self.reading.done() else None
        assert error is None or isinstance(error, HatrackError)
        return None if error is None else (error.status, error.code, error.headers.get("retry-after"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> BodiesRead:
    read = BodiesRead(max_bytes=1000, max_peer_bytes=600)
    monkeypatch.setattr(exchanges, "BODIES", read)
    monkeypatch.setattr(bodies, "BODIES", read)
    return read


@pytest.mark.parametrize("reader", ["data path", "control plane"])
async def test_what_one_client_sends_at_once_is_bounded(read: BodiesRead, reader: str) -> None:
    first, second, other = (
        SlowClient("10.0.0.1", reader),
        SlowClient("10.0.0.1", reader),
        SlowClient("10.0.0.2", reader),
    )
    await first.send(300)
    await second.send(300)
    await second.send(1)
    assert second.refusal == (429, "rate_limit_exceeded", "1")
    await other.send(300, is_last=True)
    assert len(await other.reading) == 300
    await first.send(600, is_last=True)
    assert len(await first.reading) == 900, "a body alone has its own limit"
    assert read.bytes == 0


@pytest.mark.parametrize("reader", ["data path", "control plane"])
async def test_what_all_clients_send_at_once_is_bounded(read: BodiesRead, reader: str) -> None:
    clients = [SlowClient(f"10.0.0.{number}", reader) for number in range(12)]
    for client in clients:
        await client.send(100)
    assert [client.refusal for client in clients] == [None] * 10 + [(503, "overloaded", "1")] * 2
    assert read.bytes == 1000, "what was refused is not held"
    clients[0].parts.put_nowait({"type": "http.disconnect"})
    await asyncio.wait({clients[0].reading}, timeout=60)
    late = SlowClient("10.0.1.1", reader)
    await late.send(100, is_last=True)
    assert len(await late.reading) == 100
    for client in clients[1:10]:
        await client.send(0, is_last=True)
        assert len(await client.reading) == 100
    assert read.bytes == 0
    assert isinstance(clients[0].reading.exception(), ClientLeft if reader == "data path" else ClientDisconnect)
