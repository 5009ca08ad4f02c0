"""A gateway that listens, with an agent before its engine, and fronts of it, all in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from service.config import Settings
from service.engine.assemble import describe_base
from service.front import Front, create_front
from service.server.serve import uvicorn_config
from service.server.stopping import Stopping
from tests.support.adapters import make_adapter
from tests.unit.service.agent.support import until
from tests.unit.service.gateway_app import ADMIN_KEY, AGENT_KEY, BASE, GatewayApp, lifespan, running

FRONT_KEY = "a-secret-of-gateway-and-front"


@asynccontextmanager
async def serving(app: ASGIApp, settings: Settings, socket: Path) -> AsyncIterator[uvicorn.Server]:
    """Serve an app, which runs already, on a Unix socket; when this ends, as if its process had been killed."""
    server = uvicorn.Server(uvicorn_config(app, settings, uds=str(socket), lifespan="off", timeout_graceful_shutdown=0))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        yield server
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await server.shutdown()
        socket.unlink(missing_ok=True)


@dataclass
class FrontApp:
    """A front that runs; ``http`` shows the admin key where a request brings no other."""

    front: Front
    http: httpx.AsyncClient
    stopping: Stopping

    async def chat(self, model: str = BASE, key: str | None = None, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)


@dataclass
class Cluster:
    """A gateway, and what it takes to start fronts of it."""

    gateway: GatewayApp
    home: Path
    stack: AsyncExitStack
    listening: AsyncExitStack = field(default_factory=AsyncExitStack)
    server: uvicorn.Server | None = None

    @property
    def socket(self) -> Path:
        return self.home / "g.sock"

    async def listen(self) -> None:
        """The gateway can be reached by its fronts."""
        served = serving(self.gateway.app, self.gateway.settings, self.socket)
        self.server = await self.listening.enter_async_context(served)

    async def vanish(self) -> None:
        """It cannot be reached any more."""
        await self.listening.aclose()

    async def push(self, name: str, seed: int = 0, **fields: str) -> None:
        """A version of an adapter, proven by the engine."""
        files = make_adapter(self.home / f"{name}-{seed}", describe_base(self.gateway.settings), seed=seed)
        pushed = await self.gateway.http.post(
            "/v1/adapters",
            data={"name": name, **fields},
            files={
                "config": ("adapter_config.json", files.config_path.read_bytes()),
                "weights": ("adapter_model.safetensors", files.weights_path.read_bytes()),
            },
        )
        assert pushed.status_code == 201, pushed.text

    async def usage(self, **query: str) -> dict[str, int]:
        """What the gateway has of usage, added up."""
        rows = (await self.gateway.http.get("/v1/usage", params=query)).json()["data"]
        return {name: sum(row[name] for row in rows) for name in ("requests", "errors", "prompt_tokens")}

    async def front(self, *, wait: bool = True, **more: Any) -> FrontApp:
        """A front that runs until the test ends."""
        given = {"front_gateway": f"unix:{self.socket}", "front_key": FRONT_KEY, "agent_key": AGENT_KEY}
        settings = Settings(**{"home": self.home / "front", "engine_device": "cpu", **given, **more})
        front = create_front(settings, stopping := Stopping())
        await self.stack.enter_async_context(lifespan(front))
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=front),
            base_url="http://front",
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
            timeout=120,
        )
        await self.stack.enter_async_context(http)
        if wait:
            await until(lambda: front.readiness()[0])
        return FrontApp(front, http, stopping)


@asynccontextmanager
async def cluster(home: Path, base_dir: Path, **more: Any) -> AsyncIterator[Cluster]:
    """A gateway that may have fronts."""
    through_agent = more.pop("through_agent", True)
    async with (
        running(home, base_dir, through_agent=through_agent, front_key=FRONT_KEY, **more) as gateway,
        AsyncExitStack() as stack,
    ):
        made = Cluster(gateway, home, stack)
        await made.listen()
        stack.push_async_callback(made.vanish)
        yield made


async def eventually(check: Any) -> None:
    """Until an awaited check is true."""
    async with asyncio.timeout(120):
        while not await check():  # noqa: ASYNC110 (a state over HTTP)
            await asyncio.sleep(0.02)


def caller_at(front: FrontApp, key: str) -> Any:
    """Whom a front takes a key for; raises as for a request."""
    view = front.front.follower._view
    assert view is not None
    return view.authenticator.authenticate({"x-api-key": key})


async def new_key(made: Cluster) -> tuple[str, str]:
    """A key, and its id."""
    created = (await made.gateway.http.post("/v1/keys", json={"name": "k", "scopes": ["infer"]})).json()
    return created["key"], created["id"]
