"""What an agent logs of requests that it refuses: enough to see them, and not a line for each."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from service.agent import refusals
from service.agent.refusals import EVERY_S, Sparse
from service.engine.agent_wire import ENGINE_PATH, SESSION_PATH
from tests.support.adapters import make_base
from tests.unit.service.agent.support import site

FLOOD = 20


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "EVERY_S", 1e6)  # on no machine the next line is due within a test


async def test_a_flood_of_unsigned_requests_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path / "home", make_base(tmp_path / "base")) as made, made.agent():
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(made.socket)), timeout=60) as http:
            for _ in range(FLOOD):
                for path in (SESSION_PATH, ENGINE_PATH + "/v1/models"):
                    assert (await http.get("http://agent" + path)).status_code == 401
        for _ in range(FLOOD):
            reader, writer = await asyncio.open_unix_connection(str(made.socket))
            writer.write(b"GET / HTTP/1.1\r\nthis is no header\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
            writer.close()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(" from ")[0] for line in lines] == ["a request was refused", "Error handling request"]


def test_what_was_held_back_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "EVERY_S", EVERY_S)
    now = 100.0
    sparse = Sparse(lambda: now)

    def more() -> int | None:
        """How many were held back before this line; None: it is, too."""
        record = logging.makeLogRecord({})
        return int(vars(record)["more"]) if sparse.filter(record) else None

    assert [more() for _ in range(4)] == [0, None, None, None]
    now += EVERY_S
    assert [more() for _ in range(2)] == [3, None]
    now += EVERY_S
    assert more() == 1
