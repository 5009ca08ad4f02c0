"""What must not be lost, shown or waited for in vain when either side of a front stands still or fails."""

from __future__ import annotations

import asyncio
import gc
import re
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from service.access.authentication import Authenticator
from service.access.keys import make_key
from service.config import Settings
from service.errors import EngineCut
from service.front import create_front
from service.fronts import feed as feed_module
from service.fronts import link as link_module
from service.fronts import reporter as reporter_module
from service.fronts import reports as reports_module
from service.fronts.follower import Follower, Secrets, View, _Known
from service.fronts.forward import Forwarder, _text
from service.fronts.link import GatewayLink
from service.fronts.topology import Topology
from service.inference.exchange import Exchange
from service.inference.relay import PassedEvents
from service.inference.routes import build_routes
from service.registry.catalog import Catalog
from service.usage.counter import HOUR_S
from tests.unit.service.agent.support import until
from tests.unit.service.fronts.support import FRONT_KEY, Cluster, eventually, serving
from tests.unit.service.gateway_app import AGENT_KEY, lifespan

# usage


async def test_more_rows_than_one_report_may_have_are_reported_one_after_another(
    made: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "MAX_ROWS", 2)
    monkeypatch.setattr(reports_module, "MAX_ROWS", 2)
    front = await made.front()
    usage, now = front.front.reporter._usage, int(time.time())
    for number in range(5):
        usage._row((now - now % HOUR_S, "default", "key_a", f"voice-{number}", 1)).requests += 1
    await until(lambda: front.front.reporter.pending_rows == 0)
    assert (await made.usage())["requests"] == 5


def test_a_gateway_takes_the_largest_report() -> None:
    assert reporter_module.MAX_ROWS <= reports_module.MAX_ROWS


async def test_reporting_goes_on_whatever_happens(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "RETRY_S", 0.01)
    front = await made.front()
    report, failures = front.front.reporter.report, 2

    async def fails() -> bool:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("nobody has thought of it")
        return await report()

    monkeypatch.setattr(front.front.reporter, "report", fails)
    assert (await front.chat()).status_code == 200
    await until(lambda: not failures and front.front.reporter.pending_rows == 0)


# a gateway that dies in the middle of a stream

PART = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}'
NUMBERED = b'event: response.output_text.delta\ndata: {"sequence_number":6,"delta":"a"}'


@pytest.mark.parametrize(
    ("route", "event", "error"),
    [
        ("/v1/chat/completions", PART, b'data: {"error":'),
        ("/v1/responses", NUMBERED, b'event: error\ndata: {"type":"error","sequence_number":7,"code":"gateway_cut"'),
        ("/v1/messages", PART, b"event: error\ndata: {"),
    ],
)
async def test_a_stream_that_is_passed_on_ends_in_an_error_event(route: str, event: bytes, error: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = event + b"\n\n" + event[:20]  # the second one is never whole
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body))
        await writer.drain()
        await passed.wait()
        writer.transport.abort()

    passed, sent = asyncio.Event(), []

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            passed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    forwarder = Forwarder(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    exchange = Exchange({"path": route, "headers": []}, asyncio.Event().wait, send)  # type: ignore[arg-type]
    dialect = build_routes(Settings(engine_device="cpu"))[route].dialect
    with pytest.raises(EngineCut) as cut:
        await forwarder.forward(exchange, b"{}", PassedEvents(dialect.error_event))
    await exchange.fail(cut.value)  # as the pipeline does
    body = b"".join(message.get("body", b"") for message in sent)
    assert body.startswith(event + b"\n\n" + error)
    assert b'"code":"gateway_cut"' in body
    assert sent[-1] == {"type": "http.response.body", "body": b""}
    await forwarder.close()
    server.close()


# a gateway that says nothing


@asynccontextmanager
async def mute(socket: Path) -> AsyncIterator[asyncio.Semaphore]:
    """A process that stands still: the system accepts connections for it. Released once for each request."""
    came = asyncio.Semaphore(0)
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.read(65536):
            came.release()

    server = await asyncio.start_unix_server(accept, str(socket))
    try:
        yield came
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        socket.unlink(missing_ok=True)


async def test_nobody_waits_for_a_gateway_that_stands_still(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SILENCE_S", 2.0)
    front = await made.front()
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    await made.vanish()
    async with mute(made.socket):
        async with asyncio.timeout(60):
            waits = await asyncio.gather(front.http.get("/v1/adapters"), front.chat(response_format=schema))
        codes = {(answer.status_code, answer.json()["error"]["code"]) for answer in waits}
        assert codes <= {(502, "gateway_cut"), (503, "gateway_unavailable")}
        at_once = await front.http.get("/v1/adapters")
        assert (at_once.status_code, at_once.json()["error"]["code"]) == (503, "gateway_unavailable")
        assert (await front.chat()).status_code == 200, "what it answers itself, it answers"
    await made.listen()

    async def is_passed_on() -> bool:
        return (await front.http.get("/v1/adapters")).status_code == 200

    await eventually(is_passed_on)


async def test_what_it_refuses_for_its_gateway_has_an_id(made: Cluster) -> None:
    front = await made.front()
    await made.vanish()
    refused = await front.http.get("/v1/keys", headers={"x-request-id": "mine-1"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (503, "mine-1")
    assert re.fullmatch(r"[0-9a-f]{24}", (await front.http.get("/v1/keys")).headers["x-request-id"])


@pytest.mark.parametrize("value", ["Jürgen".encode(), b"plain"])
def test_a_header_is_sent_on_as_it_came(value: bytes) -> None:
    assert _text(value).encode() == value
    assert _text("Jürgen".encode("latin-1")) == "Jürgen", "what is no UTF-8 is read as HTTP has it"


async def test_a_front_that_knows_too_little_calls_no_key_unknown(made: Cluster) -> None:
    front = await made.front(front_max_age_s=2)
    await made.vanish()
    await until(lambda: not front.front.follower.fresh)
    for answer in (
        await front.chat(key=make_key()),  # it may have been made meanwhile
        await front.http.get("/v1/models", headers={"authorization": f"Bearer {make_key()}"}),
        await front.chat(),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_unavailable")
    assert 'hatrack_engine_state{engine="engine"' in (await front.http.get("/metrics")).text


async def test_no_prompt_is_shown_where_a_feed_cannot_be_read(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    await made.push("voice", seed=1)
    written = feed_module.dump_adapter

    def newer(*given: Any) -> Iterator[dict[str, Any]]:
        for part in written(*given):
            versions = orjson.loads(orjson.dumps(part["versions"]))
            for version in versions:
                version["settings"] = {"prompt_of_a_later_release": "nobody may read this"}
            yield {**part, "versions": versions}

    monkeypatch.setattr(feed_module, "dump_adapter", newer)
    front = await made.front(wait=False)
    await until(lambda: "cannot be read" in (front.front.follower.trouble or ""))
    shown = (await front.http.get("/readyz")).text
    assert "prompt_of_a_later_release" in shown
    assert "nobody" not in shown


async def test_its_metrics_are_shown_before_it_has_heard_its_gateway(made: Cluster) -> None:
    front = await made.front(wait=False, front_key="another-secret-of-16-chars")
    assert (await front.http.get("/metrics")).status_code == 200


async def test_a_topology_that_returns_after_one_that_could_not_be_made_is_made_again() -> None:
    topologies = [Topology(version=name, policy={}, embedder=None, bases=(), engines=()) for name in ("good", "bad")]
    made: list[str] = []

    async def make(topology: Topology, secrets: Secrets) -> View:
        made.append(topology.version)
        if topology.version == "bad":
            raise ValueError("it has no bases")
        return View(Authenticator("", secrets.keys), Catalog("base", 1))

    async def cut() -> None:
        """Nothing is waited for."""

    follower = Follower(GatewayLink("http://127.0.0.1:1", FRONT_KEY, "front"), 60, make, cut)
    good, bad = (_Known(each, Secrets(b"k" * 32, b"s")) for each in topologies)
    await follower._take_over(good)
    with pytest.raises(ValueError, match="no bases"):
        await follower._take_over(bad)
    await follower._take_over(good)
    await follower._take_over(good)
    assert made == ["good", "bad", "good"]


@pytest.mark.usefixtures("frozen_heap")
async def test_nothing_stays_of_a_former_gateways_adapters(made: Cluster) -> None:
    front = await made.front()
    path = front.front._path
    assert path is not None
    catalog, authenticator = weakref.ref(path.view.catalog), weakref.ref(path.view.authenticator)
    del path
    await made.vanish()
    feed = made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    feed._topology = feed._topology.model_copy(update={"policy": {**feed._topology.policy, "max_n": 1}})
    await made.listen()

    def is_freed() -> bool:
        gc.collect()
        return catalog() is None and authenticator() is None

    await until(is_freed)


async def test_a_front_that_is_its_own_gateway_says_so_and_does_not_ask_itself_for_ever(tmp_path: Path) -> None:
    """As behind a balancer whose address is HATRACK_FRONT_GATEWAY, and which has no gateway behind it."""
    socket = tmp_path / "f.sock"
    given = {"front_gateway": f"unix:{socket}", "front_key": FRONT_KEY, "agent_key": AGENT_KEY, "max_connections": 50}
    front = create_front(Settings(home=tmp_path, engine_device="cpu", **given))
    async with (
        lifespan(front),
        serving(front, front._settings, socket) as server,
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://front") as http,
    ):
        await until(lambda: "HATRACK_FRONT_GATEWAY" in (front.follower.trouble or ""))
        for answer in (await http.get("/v1/adapters"), await http.post("/v1/chat/completions", json={})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_unavailable")
            assert "HATRACK_FRONT_GATEWAY" in answer.json()["error"]["message"]
        assert len(server.server_state.connections) < 20


@pytest.mark.parametrize("target", [b"*", b"@127.0.0.1:1/", b":1/"])
async def test_a_target_that_is_no_path_does_not_change_the_address(made: Cluster, target: bytes) -> None:
    asked: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.put(await reader.readuntil(b"\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    forwarder = Forwarder(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    scope = {"type": "http", "method": "OPTIONS", "path": target.decode(), "raw_path": target, "headers": []}
    await forwarder(scope, receive, send)
    assert (await asked.get(), sent[0]["status"]) == (b"OPTIONS / HTTP/1.1\r\n", 204)
    await forwarder.close()
    server.close()
