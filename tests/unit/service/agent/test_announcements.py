"""Agents that announce themselves: real ones, and a real gateway that finds them, loses them and finds them again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.agent.process import AgentProcess
from service.app import create_app
from service.config import Settings
from service.config.engines import engine_settings
from service.engine.agent_wire import ANNOUNCE_PATH, ANNOUNCE_PURPOSE, PROTOCOL
from service.engine.assemble import check_engine
from service.front import Front, create_front
from service.http.signing import sign, signing_key
from tests.support.adapters import make_base
from tests.unit.service.agent.support import StreamingEngine, announced_settings, until
from tests.unit.service.fronts.support import FRONT_KEY, serving
from tests.unit.service.gateway_app import ADMIN_KEY, AGENT_KEY, BASE, agent_on, engine_report, lifespan

NEVER_S = 1e9
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("announced-base"))


@pytest.fixture(autouse=True)
def _no_former_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents without a name are taken as soon as the gateway runs, as if its start was long ago."""
    monkeypatch.setattr("service.announcements.RETURN_S", 0.0)


@dataclass
class Site:
    """A gateway whose engines are announced, listening on a socket."""

    home: Path
    base_dir: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        self.common = {"home": self.home, "engine_device": "cpu", "agent_key": AGENT_KEY, "trainer": "off"}
        self.settings = announced_settings(self.home, self.base_dir, front_key=FRONT_KEY)

    @property
    def socket(self) -> Path:
        return self.home / "g.sock"

    async def open(self) -> None:
        app = create_app(self.settings)
        await self.stack.enter_async_context(lifespan(app))
        self.http = await self.stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://gateway",
                headers={"authorization": f"Bearer {ADMIN_KEY}"},
                timeout=120,
            )
        )
        await self.stack.enter_async_context(serving(app, self.settings, self.socket))

    @asynccontextmanager
    async def agent(
        self, place: str, name: str | None = None, **more: Any
    ) -> AsyncIterator[tuple[AgentProcess, StreamingEngine]]:
        """An agent that listens at a place of its own, over an engine of its own."""
        settings = Settings(
            **self.common
            | {"base_model": str(self.base_dir), "base_name": BASE, "agent_announce": f"unix:{self.socket}"}
            | {"engine_url": f"unix:{self.home / f'engine-{place}.sock'}"}
            | more
        )
        engine = StreamingEngine(engine_report(settings) | {"boot": place})
        async with (
            engine.on(self.home / f"engine-{place}.sock"),
            agent_on(settings, self.home / f"{place}.sock", name) as agent,
        ):
            yield agent, engine

    async def front(self) -> tuple[Front, httpx.AsyncClient]:
        """A front of the gateway, until the test ends."""
        given = {"front_gateway": f"unix:{self.socket}", "front_key": FRONT_KEY, "agent_key": AGENT_KEY}
        front = create_front(Settings(**{"home": self.home / "front", "engine_device": "cpu", **given}))
        await self.stack.enter_async_context(lifespan(front))
        transport, headers = httpx.ASGITransport(app=front), {"authorization": f"Bearer {ADMIN_KEY}"}
        http = httpx.AsyncClient(transport=transport, base_url="http://front", headers=headers, timeout=120)
        return front, await self.stack.enter_async_context(http)

    async def engines(self) -> dict[str, dict[str, Any]]:
        """Each engine as the gateway has it."""
        return {each["name"]: each for each in (await self.http.get("/readyz")).json()["engines"]}

    async def until_ready(self, *names: str) -> None:
        async with asyncio.timeout(120):
            while {name for name, each in (await self.engines()).items() if each["state"] == "ready"} != set(names):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
async def site(tmp_path: Path, base_dir: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path, base_dir)
    async with made.stack:
        await made.open()
        yield made


async def test_an_agent_is_found_by_what_it_announces(site: Site) -> None:
    assert "no agent has announced itself" in (await site.engines())["a"]["reason"]
    refused = await site.http.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    async with site.agent("one") as (agent, engine):
        await site.until_ready("a")
        assert agent.announcer is not None
        await until(lambda: agent.announcer.shown() == {"engine": "a", "trouble": None, "unused": None})
        assert (await site.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert len(engine.asked) >= 1
    await site.until_ready()


async def test_one_that_the_gateway_cannot_use_is_told_why(site: Site) -> None:
    async with site.agent("one", engine_max_rank=8) as (agent, _):
        announcer = agent.announcer
        assert announcer is not None
        await until(lambda: "incompatible" in str(announcer.unused))
        assert announcer.shown()["engine"] == "a", "it has the place, until it leaves"
        assert (await site.engines())["a"]["state"] == "down"


async def test_one_that_moves_is_found_again_under_its_name(site: Site) -> None:
    async with site.agent("one", "b"):
        await site.until_ready("b")
    async with site.agent("two", "b") as (_, engine):
        await site.until_ready("b")
        assert str(site.home / "two.sock") in (await site.engines())["b"]["reason"]
        assert (await site.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert len(engine.asked) >= 1


async def test_one_engine_is_one_agent_until_that_is_gone(site: Site) -> None:
    async with AsyncExitStack() as others:
        async with site.agent("one"):
            await site.until_ready("a")
            await others.enter_async_context(site.agent("two"))
            await site.until_ready("a", "b")
            third, _ = await others.enter_async_context(site.agent("three"))
            announcer = third.announcer
            assert announcer is not None
            await until(lambda: "each engine of the base `tiny` has an agent" in str(announcer.trouble))
        await site.until_ready("a", "b")  # the third has taken the place of the first
        await until(lambda: announcer.engine == "a")


async def test_an_agent_that_stops_keeps_its_place_until_its_streams_have_ended(site: Site) -> None:
    async with AsyncExitStack() as later:
        async with site.agent("one", "a") as (agent, engine):
            await site.until_ready("a")
            body = {**CHAT, "stream": True}
            stream = asyncio.ensure_future(site.http.post("/v1/chat/completions", json=body))
            await until(lambda: engine.streams == 1)
            drains = asyncio.ensure_future(agent.server.drain(1000))
            next_one, _ = await later.enter_async_context(site.agent("two", "a"))
            announcer = next_one.announcer
            assert announcer is not None
            await until(lambda: "the engine `a` has an agent" in str(announcer.trouble))
            engine.ends.set()
            assert "[DONE]" in (await stream).text
            await drains
        await until(lambda: announcer.engine == "a")
        await site.until_ready("a")


async def test_a_gateway_that_returns_gives_each_agent_its_former_name(tmp_path: Path, base_dir: Path) -> None:
    first = Site(tmp_path, base_dir)
    async with AsyncExitStack() as agents:
        async with first.stack:
            await first.open()
            await agents.enter_async_context(first.agent("one", "b"))
            await first.until_ready("b")
            other, _ = await agents.enter_async_context(first.agent("two"))
            await first.until_ready("a", "b")
        second = Site(tmp_path, base_dir)
        async with second.stack:
            await second.open()
            await second.until_ready("a", "b")
            assert str(tmp_path / "one.sock") in (await second.engines())["b"]["reason"]
            assert other.announcer is not None
            assert other.announcer.engine == "a"


@pytest.mark.slow
async def test_an_unknown_agent_takes_no_engine_of_a_gateway_that_returns(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Site(tmp_path, base_dir), Site(tmp_path, base_dir)
    async with AsyncExitStack() as stack, AsyncExitStack() as agents:
        front, http = await Site(tmp_path, base_dir, stack).front()
        async with first.stack:
            await first.open()
            _, engine = await agents.enter_async_context(first.agent("one"))
            await until(lambda: ready_at(front) == ["a"])
        stream = asyncio.ensure_future(http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
        await until(lambda: engine.streams == 1)
        monkeypatch.setattr("service.announcements.RETURN_S", NEVER_S)
        former = front.follower._epoch
        async with second.stack:
            await second.open()
            replacement = await announced(second, address=f"unix:{tmp_path / 'two.sock'}")
            assert (replacement.status_code, replacement.json()["error"]["code"]) == (503, "engine_unavailable")
            await second.until_ready("a")  # by the agent that it was
            await until(lambda: front.follower._epoch != former)  # it has heard where the agents are
            engine.ends.set()
            assert "[DONE]" in (await stream).text, "nobody moved `a` meanwhile"


async def test_fronts_learn_where_an_agent_is_and_when_it_has_moved(site: Site) -> None:
    front, http = await site.front()
    async with site.agent("one", "b"):
        await until(lambda: front.readiness()[0])
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
    await until(lambda: not front.readiness()[0])
    async with site.agent("two", "b") as (_, engine):
        await until(lambda: front.readiness()[0])
        engine.asked.clear()
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert [path for path, body in engine.asked if "messages" in body] == ["/v1/chat/completions"]


async def test_one_agent_is_one_engine_at_a_front_also_after_both_have_started_anew(
    tmp_path: Path, base_dir: Path
) -> None:
    """Without a name it becomes another engine; what the front knew of the former one is not told again."""
    first, second = Site(tmp_path, base_dir), Site(tmp_path, base_dir)
    async with AsyncExitStack() as stack, AsyncExitStack() as agents:
        front, _ = await Site(tmp_path, base_dir, stack).front()
        async with first.stack:
            await first.open()
            await agents.enter_async_context(first.agent("one", "b"))
            await until(lambda: ready_at(front) == ["b"])
        await agents.aclose()  # when nobody hears that it leaves
        async with second.stack:
            await second.open()
            async with second.agent("one"):
                await second.until_ready("a")
                await until(lambda: "a" in ready_at(front))
                assert front._path is not None
                assert front._path.fleet is not None
                placed = [each.agent.name for each in front._path.fleet.parts if each.watched.is_placed]
                assert placed == ["a"], "nothing is at the address of `b`, which is that of `a` now"


def ready_at(front: Front) -> list[str]:
    """The engines that a front uses."""
    return [each["name"] for each in front.readiness()[1].get("engines", []) if each["state"] == "ready"]


async def announced(site: Site, secret: str = AGENT_KEY, **fields: Any) -> httpx.Response:
    """Announce what the test makes up."""
    told = {"protocol": PROTOCOL, "instance": "0" * 32, "base": BASE, "address": "http://10.0.0.9:8002", "slots": 8}
    body = httpx.Request("POST", "http://x", json=told | fields).content
    headers = {
        "content-type": "application/json",
        **sign(signing_key(secret, ANNOUNCE_PURPOSE), "POST", ANNOUNCE_PATH, body),
    }
    return await site.http.post(ANNOUNCE_PATH, content=body, headers=headers)


@pytest.mark.parametrize(
    ("fields", "status", "code", "text"),
    [
        ({"secret": "another-secret-of-16"}, 401, "invalid_api_key", "same shared secret"),
        (
            {"name": "c"},
            404,
            "unknown_engine",
            "no engine `c` may be announced to this gateway; those that may are `a`, `b`",
        ),
        ({"base": "other"}, 409, "agent_base", 'no engine with `agent = "announced"` has the base `other`'),
        (
            {"base": "other", "name": "a"},
            409,
            "agent_base",
            "the engine `a` has the base `tiny`; the agent serves `other`",
        ),
        (
            {"slots": 3},
            409,
            "agent_slots",
            "has 3 adapter slots (HATRACK_ENGINE_SLOTS); the engines that are free for it have 8 (`a`), 8 (`b`)",
        ),
        ({"protocol": 99}, 400, "agent_protocol", "protocol 99"),
        ({"address": "10.0.0.9:8002"}, 400, "invalid_value", "`address` must be http://host:port"),
        ({"address": "http://[10.0.0.9:8002"}, 400, "invalid_value", "`address` must be http://host:port"),
        ({"address": "unix:/tmp/a\0b"}, 400, "invalid_value", "`address` must be http://host:port"),
        ({"instance": "x"}, 400, "invalid_value", "`instance`"),
        ({"more": 1}, 400, "invalid_value", "`more`"),
    ],
)
async def test_what_is_not_the_settings_is_refused(
    site: Site, fields: dict[str, Any], status: int, code: str, text: str
) -> None:
    refused = await announced(site, **fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (status, code), error
    assert text in error["message"]
    assert all("no agent has announced itself" in each["reason"] for each in (await site.engines()).values())


async def test_an_announcement_counts_once_and_is_signed_as_it_is(site: Site) -> None:
    assert (await site.http.post(ANNOUNCE_PATH, json={})).status_code == 401
    assert (await site.http.get(ANNOUNCE_PATH)).status_code == 405
    taken = await announced(site)
    assert taken.json() == {
        "name": "a",
        "unused": "no agent has announced itself (`hatrack agent` with HATRACK_AGENT_ANNOUNCE)",
    }
    again = await site.http.post(ANNOUNCE_PATH, content=taken.request.content, headers=dict(taken.request.headers))
    assert (again.status_code, again.json()["error"]["message"]) == (401, "the request's signature was used before")
    other_body = sign(signing_key(AGENT_KEY, ANNOUNCE_PURPOSE), "POST", ANNOUNCE_PATH, b"{}")
    changed = await site.http.post(
        ANNOUNCE_PATH, content=taken.request.content, headers={"content-type": "application/json", **other_body}
    )
    assert "not the one that was signed" in changed.json()["error"]["message"]


async def test_a_gateway_does_not_look_for_an_agent_before_it_is_announced(tmp_path: Path, base_dir: Path) -> None:
    began = time.monotonic()
    for each in engine_settings(Site(tmp_path, base_dir).settings):
        await check_engine(each)
    assert time.monotonic() - began < 60
