"""The agent as a process: whom it lets in, what a frozen or ended one costs, and what its settings must say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from service.agent import app as agent_app
from service.agent.process import agent_settings
from service.config import Settings, load_settings
from service.engine.agent_wire import ENGINE_PATH, PROTOCOL, SESSION_HEADER, SESSION_PATH, dump_frame
from service.engine.assemble import check_engine, describe_base
from service.engine.remote import RemoteClock, RemoteEngine
from service.errors import EngineCut, EngineUnavailable, SettingsError
from service.http.signing import sign, signing_key
from tests.support.adapters import make_base
from tests.unit.service.agent.support import Site, site, until
from tests.unit.service.gateway_app import AGENT_KEY, engine_report

STREAM = b'{"model": "tiny", "stream": true}'
HEADERS = {"content-type": "application/json"}
ENGINES = '[[engine]]\nname = "a"\nbase = "{base}"\nagent = "http://10.0.0.5:8002"\nslots = 3\n'


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("agent-base"))


@pytest.fixture
async def made(tmp_path: Path, base_dir: Path) -> AsyncIterator[Site]:
    async with site(tmp_path / "home", base_dir) as one:
        yield one


def http_to(made: Site) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(made.socket)), base_url="http://agent")


async def test_nobody_enters_without_the_secret(made: Site) -> None:
    wrong = signing_key("another-secret-of-16", "agent")
    async with made.agent(), http_to(made) as http:
        path = ENGINE_PATH + "/v1/chat/completions"
        for headers in ({}, sign(wrong, "POST", path, b"{}", bound="x") | {SESSION_HEADER: "x"}):
            refused = await http.post(path, headers=headers, content=b"{}")
            assert refused.status_code == 401, refused.text
            assert (await http.get(ENGINE_PATH + "/metrics", headers=headers)).status_code == 401
        assert (await http.get(SESSION_PATH)).status_code == 401
        assert (await http.get("/healthz")).json()["status"] == "ok"
        assert made.engine.asked == [] or all(body["model"] == "tiny" for _, body in made.engine.asked)


async def test_a_signed_request_without_a_session_sends_nothing(made: Site) -> None:
    key = signing_key(AGENT_KEY, "agent")
    async with made.agent(), http_to(made) as http:
        path = ENGINE_PATH + "/v1/chat/completions"
        headers = sign(key, "POST", path, STREAM, bound="gone") | {SESSION_HEADER: "gone"}
        answer = await http.post(path, headers=headers, content=STREAM)
        assert (answer.status_code, answer.json()["kind"]) == (503, "EngineUnavailable")
        assert made.engine.streams == 0


async def test_a_gateway_with_another_secret_is_told_why(made: Site) -> None:
    async with made.agent():
        user = await made.user(agent_key="another-secret-of-16")
        await until(lambda: user.engine.state.name == "down")
        assert "HATRACK_AGENT_KEY" in user.engine.state.reason
        assert "same shared secret" in user.engine.state.reason


async def test_a_proxy_that_speaks_http_1_0_gets_a_stream_without_chunks(made: Site) -> None:
    path = f"{ENGINE_PATH}/v1/completions"
    made.engine.ends.set()
    async with made.agent():
        user = await (await made.user()).until_ready()
        headers = HEADERS | user.engine.client._signed("POST", "/v1/completions", STREAM)
        reader, writer = await asyncio.open_unix_connection(str(made.socket))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {path} HTTP/1.0\r\nhost: x\r\n{lines}content-length: {len(STREAM)}\r\n\r\n"
        writer.write(head.encode() + STREAM)
        first, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        in_chunks = await user.engine.client.send("/v1/completions", STREAM, dict(HEADERS))
        assert (first[:12], body) == (b"HTTP/1.0 200", await in_chunks.read())
        in_chunks.close()
    assert body.startswith(b"data: {")


async def test_its_health_says_what_it_runs_to_anyone(made: Site) -> None:
    async with made.agent() as agent, http_to(made) as http:
        await until(lambda: agent.watched.ready)
        await (await made.user()).until_ready()
        shown = (await http.get("/readyz")).json()
        assert (shown["status"], shown["base"], shown["sessions"], shown["queued"]) == ("ready", "tiny", 1, 0)


async def test_an_agent_that_returns_is_used_again(made: Site) -> None:
    async with made.agent():
        user = await (await made.user()).until_ready()
        permit = await user.enter()
    await until(lambda: not user.engine.ready)
    with pytest.raises(EngineUnavailable, match="agent"):
        await user.enter()
    async with made.agent() as agent:
        await user.until_ready()
        permit.leave(3)  # of the former: it is nobody's turn here
        (await user.enter()).leave(3)
        await until(lambda: agent.admission.queue.scheduler.counts.left == 1)


async def test_an_agent_that_stops_lets_its_requests_end(made: Site) -> None:
    async with made.agent() as agent:
        user = await (await made.user()).until_ready()
        response = await user.engine.client.send("/v1/chat/completions", STREAM, dict(HEADERS))
        stopping = asyncio.ensure_future(agent.server.drain(1000))
        await until(lambda: not user.engine.ready)
        assert "its agent stops" in user.engine.state.reason
        assert not stopping.done()
        made.engine.ends.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        response.close()
        await stopping


async def test_who_is_in_a_hurry_does_not_wait_for_requests(made: Site) -> None:
    """As with a second Ctrl-C."""
    async with made.agent() as agent:
        agent._drain_s, hurry = 1e6, asyncio.Event()
        user = await (await made.user()).until_ready()
        response = await user.engine.client.send("/v1/chat/completions", STREAM, dict(HEADERS))
        stopping = asyncio.ensure_future(agent._drain(hurry))
        await until(lambda: not user.engine.ready)
        assert not stopping.done()
        hurry.set()
        await asyncio.wait_for(stopping, 60)
        made.engine.ends.set()
        await response.read()
        response.close()
        agent._drain_s = 0


async def test_an_engine_that_was_too_busy_to_report_is_used_once_it_does(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_app, "REPORT_AGAIN_S", 0.05)
    async with made.agent() as agent:
        await until(lambda: agent.watched.ready)
        reports, times = agent.watched.client.report, 0

        async def busy_at_first(**options: Any) -> dict[str, Any]:
            nonlocal times
            times += 1
            if times < 3:
                raise EngineUnavailable("the engine does not answer")
            return await reports(**options)

        monkeypatch.setattr(agent.watched.client, "report", busy_at_first)
        await (await made.user()).until_ready()
        assert times == 3


class FrozenAgent:
    """Greets, says that its engine is ready, and then says and answers nothing, as a stopped process."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report
        self._thaws = asyncio.Event()

    async def start(self, socket: Path) -> web.AppRunner:
        app = web.Application()
        app.router.add_get(SESSION_PATH, self._session)
        app.router.add_post(ENGINE_PATH + "/{path:.*}", self._forward)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        return runner

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        session = web.WebSocketResponse()
        await session.prepare(request)
        state = {"name": "ready", "reason": "it answers", "since": 1.0, "report": self._report}
        hello = {"protocol": PROTOCOL, "session": "s", "version": "0", "store_url": None}
        await session.send_bytes(dump_frame([["hello", hello], ["state", state]]))
        await self._thaws.wait()
        return session

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if request.path.endswith("/completions"):
            await answer.prepare(request)
            await answer.write(b"data: {}\n\n")
        await self._thaws.wait()
        return answer


async def test_nobody_waits_longer_for_a_frozen_agent_than_its_silence_may_last(made: Site) -> None:
    silence_s = 2.0
    runner = await FrozenAgent(engine_report(made.agent_settings)).start(made.socket)
    try:
        user = await (await made.user(agent_timeout_s=silence_s)).until_ready()
        streaming = await user.engine.client.send("/v1/completions", STREAM, dict(HEADERS))
        chunks = streaming.chunks()
        await anext(chunks)
        waits = {
            "its stream": asyncio.ensure_future(anext(chunks)),
            "a first byte": asyncio.ensure_future(user.engine.client.send("/v1/other", STREAM, dict(HEADERS))),
            "a turn": asyncio.ensure_future(user.enter()),
        }
        _, pending = await asyncio.wait(waits.values(), timeout=60)
        assert not pending, {name for name, wait in waits.items() if wait in pending}
        errors = {name: type(wait.exception()) for name, wait in waits.items()}
        assert errors == {"its stream": EngineCut, "a first byte": EngineCut, "a turn": EngineUnavailable}
        assert f"nothing for {silence_s:g} s (HATRACK_AGENT_TIMEOUT_S)" in user.engine.state.reason
        streaming.close()
        assert user.engine.client.in_flight == 0
    finally:
        await runner.cleanup()


async def test_the_start_ends_where_the_agents_engine_is_another(made: Site, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=1)
    async with made.agent() as agent:
        await until(lambda: agent.watched.ready)
        await check_engine(Settings(**made.own | {"engine_agent": f"unix:{made.socket}"}))
        wrong = Settings(**made.own | {"engine_agent": f"unix:{made.socket}", "base_model": str(other)})
        with pytest.raises(SettingsError, match="weights"):
            await check_engine(wrong)
        elsewhere = {"home": tmp_path / "elsewhere", "engine_agent": f"unix:{made.socket}"}
        with pytest.raises(SettingsError, match="must use the same directory"):
            await check_engine(Settings(**made.own | elsewhere))


async def test_an_agent_that_is_not_there_yet_is_waited_for(made: Site) -> None:
    await check_engine(Settings(**made.own | {"engine_agent": f"unix:{made.socket}"}))
    user = await made.user()
    await until(lambda: user.engine.state.name == "down")
    assert user.engine.state.reason == f"the agent at unix:{made.socket} cannot be reached"
    async with made.agent():
        await user.until_ready()


def test_over_one_object_store_the_folders_may_differ(made: Site, tmp_path: Path) -> None:
    store = {"store_url": f"file://{tmp_path / 'bucket'}", "home": tmp_path / "elsewhere"}
    settings = Settings(**made.own | store | {"engine_agent": f"unix:{made.socket}"})
    engine = RemoteEngine.from_settings(settings, describe_base(settings).fingerprint)
    report = engine_report(made.agent_settings)
    engine._check(report, settings.store_url)
    with pytest.raises(Exception, match="HATRACK_STORE_URL"):
        engine._check(report, None)


# settings


def test_an_agent_needs_its_secret(base_dir: Path) -> None:
    with pytest.raises(SettingsError, match="HATRACK_AGENT_KEY must be set"):
        agent_settings(Settings(base_model=str(base_dir)), None)
    with pytest.raises(SettingsError, match="HATRACK_AGENT_KEY, the shared secret"):
        load_settings(engine_agent="http://10.0.0.5:8002")
    with pytest.raises(SettingsError, match="both set"):
        load_settings(engine_agent="http://h:1", engine_url="http://h:2", agent_key=AGENT_KEY)


def test_its_folder_is_no_gateways(base_dir: Path, tmp_path: Path) -> None:
    settings = Settings(base_model=str(base_dir), home=tmp_path, agent_key=AGENT_KEY)
    assert agent_settings(settings, None).engine_dir == tmp_path / "agents" / "engine"
    assert agent_settings(settings, "b").engine_dir == tmp_path / "agents" / "b"
    bucket = f"file://{tmp_path / 'bucket'}"
    over_a_bucket = Settings(base_model=str(base_dir), home=tmp_path, agent_key=AGENT_KEY, store_url=bucket)
    assert agent_settings(over_a_bucket, "b").store_dir == tmp_path / "agents" / "b" / "adapters"
    assert agent_settings(settings, "b").store_dir == tmp_path / "adapters"
    with pytest.raises(SettingsError, match="--name must be 1 to 32"):
        agent_settings(settings, "../x")


def test_an_entry_of_the_engines_file_is_one_agents(base_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "engines.toml").write_text(ENGINES.format(base=base_dir))
    settings = Settings(engines=tmp_path / "engines.toml", home=tmp_path, agent_key=AGENT_KEY)
    own = agent_settings(settings, "a")
    assert (own.engine_slots, own.engine_agent, own.base_dir) == (3, "", base_dir)
    with pytest.raises(SettingsError, match="one of its engines, a; got none"):
        agent_settings(settings, None)


# the engine's time, as told


class Now:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_shares_add_up_to_what_the_agent_measured() -> None:
    now = Now()
    clock = RemoteClock(now)
    clock.hear(100.0, 40.0, 0)
    entered = clock.enter()
    now.s = 1.0  # alone, as far as is known: a whole second
    assert clock.leave(entered) == pytest.approx(1.0)
    entered = clock.enter()
    clock.hear(100.5, 41.0, 4)  # there were two all the time, and now there are four
    now.s = 3.0
    assert clock.leave(entered) == pytest.approx(0.0), "the half second that was reckoned too much, and 2 s / 4"
    now.s = 5.0
    clock.hear(101.5, 45.0, 0)
    assert clock.busy_s == pytest.approx(5.0)
    entered = clock.enter()
    clock.leave(entered)
    assert entered == pytest.approx(1.5), "no error stays"


def test_another_agents_totals_begin_where_the_last_ended() -> None:
    now = Now()
    clock = RemoteClock(now)
    clock.hear(100.0, 40.0, 1)
    clock.hear(107.0, 42.0, 1)
    clock.end_session()
    clock.hear(3.0, 1.0, 0)
    assert clock.busy_s == pytest.approx(2.0)
    clock.hear(4.0, 2.0, 0)
    assert (clock.enter(), clock.busy_s) == (pytest.approx(8.0), pytest.approx(3.0))
