"""What a session must not cost others: users that come, go, stand still or repeat what they heard, and busy engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from service.agent import app as agent_app
from service.agent.gate import Session
from service.engine.agent_link import AgentLink, SessionEnded
from service.engine.agent_wire import ENGINE_PATH, SESSION_HEADER, SESSION_PATH, Message, dump_frame, load_frame
from service.errors import BadGateway, EngineUnavailable
from service.http.signing import sign, signing_key
from service.inference.prompt import RENDER_PATH
from service.inference.routes import build_routes
from tests.support.adapters import make_base
from tests.unit.service.agent.support import Site, site, until
from tests.unit.service.gateway_app import AGENT_KEY

KEY = signing_key(AGENT_KEY, "agent")
PATH = ENGINE_PATH + "/v1/chat/completions"
HEADERS = {"content-type": "application/json"}
STREAM = b'{"model": "tiny", "stream": true}'
BODY = b'{"model": "tiny"}'


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("agent-base"))


@pytest.fixture
async def made(tmp_path: Path, base_dir: Path) -> AsyncIterator[Site]:
    async with site(tmp_path / "home", base_dir) as one:
        yield one


# an engine that is too busy to report


async def test_a_busy_engine_is_taken_from_nobody_because_another_user_comes(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_app, "REPORT_AGAIN_S", 0.05)
    async with made.agent() as agent:
        first = await (await made.user()).until_ready()
        states: list[str] = []
        first.engine.on_change(lambda state: states.append(state.name))
        reports, times, is_busy = agent.watched.client.report, 0, True

        async def busy(**options: Any) -> dict[str, Any]:
            nonlocal times
            times += 1
            if is_busy:
                raise EngineUnavailable("the engine does not answer")
            return await reports(**options)

        monkeypatch.setattr(agent.watched.client, "report", busy)
        second = await made.user()
        await until(lambda: times >= 4)
        assert not second.engine.ready
        (await first.enter()).leave(1)  # over the same session: what was told before has been heard
        assert states == []
        is_busy = False
        await second.until_ready()
        assert states == []


async def test_a_user_that_leaves_while_the_engine_reports_leaves_nothing_behind(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with made.agent() as agent:
        await until(lambda: agent.watched.ready)
        ends = asyncio.Event()

        async def hangs(**_: Any) -> dict[str, Any]:
            await ends.wait()
            raise EngineUnavailable("the engine does not answer")

        monkeypatch.setattr(agent.watched.client, "report", hangs)
        try:
            user = await made.user()
            await until(lambda: len(agent.gate.sessions) == 1)
            await user.engine.stop()
            await until(lambda: not agent.gate.sessions)
            assert agent.server._outboxes == {}
        finally:
            ends.set()


# what answers at an agent's address


async def test_no_redirect_leads_anywhere_else(tmp_path: Path) -> None:
    asked: list[str] = []

    async def redirects(request: web.Request) -> web.Response:
        asked.append(request.path)
        raise web.HTTPFound("/latest/meta-data/")

    app, socket = web.Application(), tmp_path / "a.sock"
    app.router.add_get("/{path:.*}", redirects)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        link = AgentLink(name="here", url="http://agent", socket=str(socket), key=KEY, silence_s=60)
        with pytest.raises(SessionEnded, match=r"what answers at here is no agent \(status 302\)"):
            await link.run()
    finally:
        await runner.cleanup()
    assert asked == [SESSION_PATH]


# turns


async def test_what_is_refused_here_gets_no_turn_at_the_agent(tmp_path: Path, base_dir: Path) -> None:
    one_place = {"engine_max_seqs": 1, "admission_width": 1}
    async with site(tmp_path / "home", base_dir, **one_place) as made, made.agent() as agent:
        user = await (await made.user()).until_ready()
        permit = await user.enter()
        waiting = asyncio.ensure_future(user.enter())
        await until(lambda: agent.admission.queue.scheduler.queued == 1)
        user.engine._set_state("stalled", "as after a restart that it asked for; the agent's queue may be open yet")
        with pytest.raises(EngineUnavailable):
            await waiting
        permit.leave(1)
        await until(lambda: agent.admission.queue.load == 0)


def asked() -> dict[str, Any]:
    named = {"queue": "model", "project": "default", "key": "key", "adapter": None, "flow": None}
    return named | {"tokens": 10, "prompt": 5, "background": False, "wait_s": 100.0}


async def test_a_request_that_is_withdrawn_as_it_comes_leaves_nothing_behind(made: Site) -> None:
    async with made.agent() as agent:
        await until(lambda: agent.watched.ready)
        told: list[Message] = []
        session = Session(agent.gate, told.append, "here")
        for number in range(3):
            session.hear(["enter", number, asked()])
            session.hear(["withdraw", number])  # in the same frame: its turn has not begun
        await until(lambda: session.open == (0, 0))
        assert agent.admission.queue.load == 0


async def test_a_number_names_one_request(made: Site) -> None:
    async with made.agent() as agent:
        await until(lambda: agent.watched.ready)
        session = Session(agent.gate, lambda _: None, "here")
        session.hear(["enter", 1, asked()])
        with pytest.raises(BadGateway, match="there already"):
            session.hear(["enter", 1, asked()])
        session.close()


# signatures


async def test_a_handshake_that_was_listened_to_opens_no_session_elsewhere(made: Site) -> None:
    """With an agent of the same secret, which knows nothing of the nonces that others have seen."""
    heard = sign(KEY, "GET", SESSION_PATH)
    async with made.agent() as agent, aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(made.socket))) as http:
        await until(lambda: agent.watched.ready)
        async with asyncio.timeout(60), http.ws_connect("http://agent" + SESSION_PATH, headers=heard) as socket:
            assert load_frame((await socket.receive()).data)[0][0] == "hello"
            await socket.send_bytes(dump_frame([["restart", "says a stranger"], ["enter", 1, asked()]]))
            while (frame := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                assert "admitted" not in {kind for kind, *_ in load_frame(frame.data)}
        assert (agent.gate.sessions, agent.watched.state.name) == ({}, "ready")


@pytest.mark.parametrize("proof", [[], ["x"], [sign(KEY, "GET", SESSION_PATH)["x-hatrack-signature"]]])
async def test_another_proof_than_of_this_session_is_none(made: Site, proof: list[str]) -> None:
    async with made.agent() as agent, aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(made.socket))) as http:
        headers = sign(KEY, "GET", SESSION_PATH)
        async with asyncio.timeout(60), http.ws_connect("http://agent" + SESSION_PATH, headers=headers) as socket:
            await socket.receive()
            await socket.send_bytes(dump_frame([["ping"], ["proof", *proof]]))
            assert (await socket.receive()).type is not aiohttp.WSMsgType.BINARY
        assert agent.gate.sessions == {}


async def test_a_request_that_was_listened_to_is_not_sent_again(made: Site) -> None:
    async with made.agent(), httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(made.socket))) as http:
        user = await (await made.user()).until_ready()
        session = user.engine.link.session
        assert session is not None
        headers = HEADERS | sign(KEY, "POST", PATH, BODY, bound=session) | {SESSION_HEADER: session}
        before = len(made.engine.asked)
        statuses = [(await http.post("http://agent" + PATH, content=BODY, headers=headers)).status_code for _ in "ab"]
        assert (statuses, len(made.engine.asked) - before) == ([200, 401], 1)


async def test_a_caller_is_not_told_that_a_gateways_signature_is_wrong(made: Site) -> None:
    async with made.agent() as agent:
        user = await (await made.user()).until_ready()
        agent.server._verifier._wall = lambda: time.time() + 100  # its clock was set while the session was open
        with pytest.raises(EngineUnavailable, match="refuses this gateway's signature"):
            await user.engine.client.send("/v1/chat/completions", BODY, dict(HEADERS))


# what may be sent


async def test_nobody_administers_the_engine_through_its_agent(made: Site) -> None:
    async with made.agent():
        user = await (await made.user()).until_ready()
        for path in ("/reset_prefix_cache", "/v1/load_lora_adapter", "/v1/chat/completions/../../pause"):
            before = len(made.engine.asked)
            response = await user.engine.client.send(path, BODY, dict(HEADERS))
            response.close()
            assert (response.status, len(made.engine.asked)) == (404, before), path


def test_every_route_of_the_gateway_may_be_sent(made: Site) -> None:
    sent = {route.engine_path for route in build_routes(made.agent_settings).values()} - {RENDER_PATH}
    assert sent == agent_app.POSTS


async def test_a_body_that_stops_coming_ends_with_its_session(made: Site) -> None:
    async with made.agent() as agent:
        user = await (await made.user()).until_ready()
        session = user.engine.link.session
        assert session is not None
        headers = sign(KEY, "POST", PATH, BODY, bound=session) | {SESSION_HEADER: session, "content-length": "17"}
        head = "".join(f"{name}: {value}\r\n" for name, value in (HEADERS | headers).items())
        reader, writer = await asyncio.open_unix_connection(str(made.socket))
        writer.write(f"POST {PATH} HTTP/1.1\r\nhost: agent\r\n{head}\r\n".encode() + BODY[:5])
        await until(lambda: bool(agent.gate.sessions[session].requests))
        agent.gate.sessions[session].close()
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()
