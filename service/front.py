"""A front's app: it answers inference for a gateway, and passes everything else on to it.

It holds no database and no checkpoint. What it must know it is told (``service.fronts.follower``), what it uses of
limits it asks for (``limiter``), what was used it reports (``reporter``); engines it reaches through their agents.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__, heap
from service.access.authentication import Authenticator
from service.access.caller import Caller
from service.config import Settings
from service.config.cluster import ANNOUNCED
from service.cors import Cors
from service.data_path import make_dispatch, watch_engines
from service.engine.assemble import engine_version
from service.error_handlers import RequestIds, add_error_handlers
from service.errors import SettingsError
from service.fleet import EngineParts, Fleet
from service.fronts.follower import Follower, Secrets, View
from service.fronts.forward import Forwarder
from service.fronts.limiter import FrontLimiter
from service.fronts.link import GatewayAway, GatewayLink
from service.fronts.reporter import Reporter
from service.fronts.topology import Topology, front_fleet, limits_of
from service.fronts.wire import LEAVE_PATH
from service.inference.calls import CacheSalts
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from service.registry.catalog import Catalog
from service.server.stopping import Stopping
from service.telemetry.record import Accounts, LogAccount
from service.telemetry.routes import router as metrics_router
from service.telemetry.telemetry import Telemetry

OWN_PATHS: Final = frozenset({"/health", "/healthz", "/readyz", "/metrics"})
RETIRE_LOOK_S: Final = 0.5
SWITCH_S: Final = 10.0
"""How long a front waits for the engines of a gateway that has others now, before it asks only those, s."""
LEAVE_S: Final = 1.0
"""How long a front that ends waits for its gateway to hear of it, s."""
_LOG: Final = logging.getLogger("hatrack.front")


def create_front(settings: Settings, stopping: Stopping | None = None) -> Front:
    """Build a front. Nothing runs before its lifespan starts.

    Args:
        stopping: Whether this process was told to stop, for `/readyz`.

    Raises:
        SettingsError: It is not told its gateway, or lacks a secret.
    """
    for name, purpose in (
        ("front_gateway", "the address of the gateway, `http://host:port`"),
        ("front_key", "the secret that it shares with the gateway, which must have it, too"),
        ("agent_key", "the secret of the engines' agents"),
    ):
        if not getattr(settings, name):
            raise SettingsError(f"HATRACK_{name.upper()} must be set for a front: {purpose} (deploy/FRONTS.md)")
    return Front(settings, stopping or Stopping())


class FreshAuthenticator(Authenticator):
    """Knows the gateway's keys; while these are too old, it refuses all alike: a new one is not called unknown."""

    def __init__(self, secret: bytes, require_fresh: Callable[[], None]) -> None:
        super().__init__("", secret)
        self._require_fresh = require_fresh

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """As `Authenticator.authenticate`; also raises Unavailable."""
        self._require_fresh()
        return super().authenticate(headers)


@dataclass(frozen=True, slots=True)
class _Path:
    """The data path of one topology; without engines in reach there is none.

    ``app`` is what a request enters: with CORS where the gateway has it.
    """

    app: ASGIApp
    inference: InferenceApp | None
    fleet: Fleet | None
    telemetry: Telemetry
    forwarder: Forwarder
    view: View
    secrets: Secrets
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered, by an engine or by the gateway."""
        answered = 0 if self.inference is None else self.inference.pipeline.in_flight
        return bool(answered or self.forwarder.in_flight)


class Front:
    """The ASGI app."""

    def __init__(self, settings: Settings, stopping: Stopping) -> None:
        assert settings.front_key is not None  # noqa: S101  `create_front` has checked it
        self._settings, self._stopping = settings, stopping
        name = f"{socket.gethostname()}:{settings.port}"
        self.link = GatewayLink(settings.front_gateway, settings.front_key.get_secret_value(), name)
        age = settings.front_max_age_s
        self.follower = Follower(self.link, age, self._make, self._cut_forwarded, self._move_agents)
        self._addresses: dict[str, str | None] = {}
        """Where agents that announce themselves are, by their engines. What a gateway that has just started does not
        know yet stays: its agents are where they were."""
        self.limiter = FrontLimiter(self.link, lambda: self.follower.fronts)
        self.reporter = Reporter(self.link)
        self._forwarder = self._make_forwarder()
        self._path: _Path | None = None
        self._coming: _Path | None = None
        """Of what the gateway has now, until its engines are found: the former path answers meanwhile."""
        self._switching: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self._retired: set[asyncio.Task[None]] = set()
        self._api = self._make_api()
        self._own = RequestIds(self._api)

    # the app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        # until the gateway has told its origins, all is passed on to it, and its answers say which pages may read them
        app: ASGIApp = self._route if self._path is None else self._path.app
        await app(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OWN_PATHS):
            await self._own(scope, receive, send)
            return
        path = self._path
        inference = None if path is None else path.inference
        if inference is None or not inference.handles(scope) or scope["method"] == "OPTIONS":
            await self._forwarder(scope, receive, send)
        else:
            await inference(scope, receive, send)

    def _make_api(self) -> FastAPI:
        """Health and metrics, which are the front's own."""
        api = FastAPI(title="Hatrack front", version=__version__, lifespan=self._lifespan, openapi_url=None)

        @api.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "ok", "version": __version__}

        @api.get("/health")
        @api.get("/readyz")
        async def readyz() -> JSONResponse:
            ready, shown = self.readiness()
            return JSONResponse(shown, 200 if ready else 503, {} if ready else {"retry-after": "5"})

        api.include_router(metrics_router)
        add_error_handlers(api)
        api.state.authenticator = Authenticator("", None)  # until the gateway has told its keys, nobody has one
        api.state.telemetry = Telemetry(self._settings, Catalog("", 0), engine_version())
        return api

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests are answered, and what `/readyz` shows."""
        path, follower = self._path, self.follower
        fleet = None if path is None else path.fleet
        answers = follower.fresh and (fleet is None or fleet.ready)
        ready = answers and not self._stopping.began
        state = None if fleet is None else fleet.state
        reason = follower.trouble if not follower.fresh else None if state is None else state.reason
        shown: dict[str, Any] = {
            "status": "ready" if ready else "stopping" if self._stopping.began else "down",
            "front_of": self._settings.front_gateway,
            "gateway": {"state": "heard" if follower.trouble is None else "away", "reason": follower.trouble},
            "version": follower.version,
            "engine": {
                "state": "ready" if answers else "down",
                "reason": reason or "the gateway answers for all",
            },
            "unreported_rows": self.reporter.pending_rows,
        }
        if fleet is not None:
            shown["engines"] = [_shown(each) for each in fleet.parts]
        return ready, shown

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        async with self._stack as stack:
            stack.push_async_callback(self.link.close)
            stack.push_async_callback(self._leave)
            stack.push_async_callback(self._forwarder.close)
            stack.push_async_callback(self._close_path)
            stack.push_async_callback(self.limiter.close)
            stack.push_async_callback(self.reporter.close)
            tasks = [
                asyncio.create_task(work(), name=name)
                for work, name in (
                    (self.reporter.run, "front-report"),
                    (self.limiter.run, "front-limits"),
                    (self.follower.run, "front-feed"),
                )
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self) -> None:
        """Tell the gateway that this front has ended, and is not lost."""
        with suppress(GatewayAway):
            await self.link.post(LEAVE_PATH, {}, timeout_s=LEAVE_S)

    # the data path of what the gateway tells

    async def _make(self, topology: Topology, secrets: Secrets) -> View:
        """Make the data path for a topology; it answers once its engines are found, or at once where no other does.

        The former one answers until then, to the same keys and by the same adapters: what is revoked or rolled back
        meanwhile is so in both.
        """
        await self._drop_coming()
        former = self._path
        path = self._build(topology, secrets)
        try:
            await path.running.enter_async_context(path.telemetry.running())
            if path.fleet is not None:
                await path.fleet.start()
        except BaseException:
            await _close(path)
            raise
        if former is not None and former.secrets == secrets:
            self._coming, path.view.former = path, former.view
            self._switching = asyncio.create_task(self._switch_when_found(path), name="front-switch")
        else:
            self._switch(path)
        return path.view

    async def _switch_when_found(self, path: _Path) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SWITCH_S):
                while path.fleet is not None and not _is_found(path.fleet):  # noqa: ASYNC110 (seldom)
                    await asyncio.sleep(RETIRE_LOOK_S / 10)
        self._switch(path)

    def _switch(self, path: _Path) -> None:
        """Answer by this path from now on, and let the former one's requests end."""
        old, self._path, self._coming = self._path, path, None
        path.view.former = None
        self._api.state.authenticator = SimpleNamespace(
            # metrics are shown by the last keys that are known, also where they are too old for requests
            authenticate=partial(Authenticator.authenticate, path.view.authenticator)
        )
        self._api.state.telemetry = path.telemetry
        if old is not None:
            _LOG.warning("the gateway's engines or bases have changed")
            retiring = asyncio.create_task(self._retire(old), name="front-retire")
            self._retired.add(retiring)
            retiring.add_done_callback(self._forget)
        heap.freeze()

    async def _drop_coming(self) -> None:
        """Close a path that has not answered yet: the gateway has others again, or this front ends."""
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)
            self._switching = None
        coming, self._coming = self._coming, None
        if coming is not None:
            await _close(coming)

    def _build(self, topology: Topology, secrets: Secrets) -> _Path:
        default, *others = topology.bases
        catalog = Catalog(
            default.name, default.created_at, topology.embedder, {base.name: base.created_at for base in others}
        )
        view = View(FreshAuthenticator(secrets.keys, self.follower.require_fresh), catalog)
        settings = self._settings.model_copy(update={**topology.policy, "base_name": default.name})
        origins = tuple(topology.policy.get("cors_origins", ()))
        app: ASGIApp = Cors(self._route, origins) if origins else self._route
        telemetry = Telemetry(settings, catalog, engine_version())
        forwarder = self._make_forwarder(*(base.name for base in topology.local_bases))
        fleet = front_fleet(self._settings, topology)
        if fleet is None:
            return _Path(app, None, None, telemetry, forwarder, view, secrets)
        fleet.move(self._announced(fleet))
        limits = limits_of(topology)
        pipeline = Pipeline(
            settings,
            view.authenticator,
            catalog,
            make_dispatch(
                fleet, embedder_name=topology.embedder, suspect=self.reporter.suspect, salts=CacheSalts(secrets.salts)
            ),
            account=Accounts(LogAccount(), self.reporter, *telemetry.accounts),
            limiter=self.limiter,
            tracer=telemetry.tracer,
            prompt_limit=limits[default.name].prompt_limit,
            limits=limits,
            check_budget=self.follower.check,
            elsewhere=forwarder,
        )
        telemetry.in_flight = lambda: pipeline.in_flight
        widest = max((base.settings for base in fleet.bases), key=lambda each: each.context or sys.maxsize)
        inference = InferenceApp(widest, pipeline, self.reporter)
        watch_engines(telemetry, fleet, settings)
        return _Path(app, inference, fleet, telemetry, forwarder, view, secrets)

    def _move_agents(self, addresses: Mapping[str, str | None]) -> None:
        # at one address there is one agent, which may have been another engine of a gateway that has started anew
        taken = {address for address in addresses.values() if address is not None}
        self._addresses = {name: None if at in taken else at for name, at in self._addresses.items()} | dict(addresses)
        for path in (self._path, self._coming):
            if path is not None and path.fleet is not None:
                path.fleet.move(self._announced(path.fleet))

    def _announced(self, fleet: Fleet) -> dict[str, str | None]:
        """The addresses of the agents that announce themselves; those of the others the topology has."""
        announced = {each.agent.name for each in fleet.parts if each.agent.settings.engine_agent == ANNOUNCED}
        return {name: address for name, address in self._addresses.items() if name in announced}

    async def _retire(self, path: _Path) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_s):
                    while path.is_busy:  # noqa: ASYNC110 (seldom)
                        await asyncio.sleep(RETIRE_LOOK_S)
        finally:
            await _close(path)

    def _forget(self, retired: asyncio.Task[None]) -> None:
        """Free a former path, which was frozen and is in cycles: all its adapters and keys with it."""
        self._retired.discard(retired)
        heap.thaw()
        heap.freeze()

    def _make_forwarder(self, *local_bases: str) -> Forwarder:
        address, require_answers = self._settings.front_gateway, self.follower.require_answers
        catch_up = self.follower.catch_up
        return Forwarder(address, local_bases, require_answers=require_answers, catch_up=catch_up)

    async def _cut_forwarded(self) -> None:
        """End what waits for a gateway that says nothing any more."""
        await self._forwarder.close()
        if self._path is not None:
            await self._path.forwarder.close()

    async def _close_path(self) -> None:
        await self._drop_coming()
        for task in self._retired:
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        if self._path is not None:
            await _close(self._path)


def _is_found(fleet: Fleet) -> bool:
    """Whether all of its engines are ready whose agents' addresses are known."""
    return all(each.watched.ready for each in fleet.parts if each.watched.is_placed)


async def _close(path: _Path) -> None:
    if path.fleet is not None:
        await path.fleet.stop()
    await path.forwarder.close()
    await path.running.aclose()


def _shown(each: EngineParts) -> dict[str, str]:
    state = each.watched.state
    return {"name": each.agent.name, "base": each.base.served_name, "state": state.name, "reason": state.reason}
