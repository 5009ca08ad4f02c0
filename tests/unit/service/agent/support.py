"""A real agent over an engine that streams when the test says so, and its users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from service.admission.remote import RemoteAdmission
from service.admission.request import AdmissionRequest
from service.agent.process import AgentProcess
from service.config import Settings
from service.engine.assemble import describe_base
from service.engine.remote import RemoteEngine
from tests.unit.service.gateway_app import ADMIN_KEY, AGENT_KEY, BASE, InferenceEngine, agent_on, engine_report

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
PATIENCE_S = 120.0


@dataclass
class StreamingEngine(InferenceEngine):
    """Streams one event at once, and the rest when ``ends`` is set."""

    ends: asyncio.Event = field(default_factory=asyncio.Event)
    streams: int = 0
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def on(self, socket: Path) -> AsyncIterator[None]:
        self.cancels_handlers = True
        async with super().on(socket):
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:  # type: ignore[override]
        body = await request.json()
        if not body.get("stream"):
            return await super()._answer(request)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        self.streams += 1
        try:
            await answer.write(EVENT)
            await self.ends.wait()
            await answer.write(EVENT + DONE)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.set()
            raise
        return answer


@dataclass
class User:
    """One gateway or front of the agent, without the rest of it."""

    engine: RemoteEngine
    admission: RemoteAdmission

    async def until_ready(self) -> User:
        await until(lambda: self.engine.ready)
        return self

    async def enter(self, *, key: str = "key", wait_s: float = PATIENCE_S, adapter: str | None = None) -> Any:
        request = AdmissionRequest("default", key, adapter, tokens=10, prompt=5)
        return await self.admission.queue.enter(request, asyncio.get_running_loop().time() + wait_s)


class Site:
    """A home with an engine; agents and users are made in it."""

    def __init__(self, home: Path, base_dir: Path, **more: Any) -> None:
        self.socket = home / "a.sock"
        self.own = {"home": home, "base_model": str(base_dir), "base_name": BASE, "engine_device": "cpu"}
        self.own |= {"agent_key": AGENT_KEY, "trainer": "off", **more}
        self.agent_settings = Settings(**self.own, engine_url=f"unix:{home / 'e.sock'}", engine_agent="")
        self.engine = StreamingEngine(engine_report(self.agent_settings))
        self.stack = AsyncExitStack()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[AgentProcess]:
        async with agent_on(self.agent_settings, self.socket) as agent:
            yield agent

    async def user(self, **more: Any) -> User:
        """A user that looks for the agent until the test ends."""
        settings = Settings(**self.own | {"engine_agent": f"unix:{self.socket}"} | more)
        engine = RemoteEngine.from_settings(settings, describe_base(settings).fingerprint)
        user = User(engine, RemoteAdmission(settings, engine))
        await engine.start()
        self.stack.push_async_callback(engine.stop)
        return user


@asynccontextmanager
async def site(home: Path, base_dir: Path, **more: Any) -> AsyncIterator[Site]:
    """A home whose engine answers."""
    home.mkdir(parents=True, exist_ok=True)
    made = Site(home, base_dir, **more)
    async with made.stack, made.engine.on(home / "e.sock"):
        yield made


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 (a state of another task)
            await asyncio.sleep(0.01)


def announced_settings(home: Path, base_dir: Path, *, slots: tuple[int, int] = (8, 8), **more: Any) -> Settings:
    """The settings of a gateway with engines `a` and `b` of one base, whose agents announce themselves."""
    entry = f'base = "{base_dir}"\nbase_name = "{BASE}"\nagent = "announced"\n'
    entries = (f'[[engine]]\nname = "{name}"\n{entry}slots = {own}\n' for name, own in zip("ab", slots, strict=True))
    (home / "engines.toml").write_text("".join(entries))
    return Settings(
        home=home,
        engine_device="cpu",
        agent_key=AGENT_KEY,
        trainer="off",
        engines=home / "engines.toml",
        admin_key=ADMIN_KEY,
        knowledge=False,
        **more,
    )
