"""The agent's composition: the engine, the gate before it and the server, from the settings to a clean stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import uvloop

from adapters.store import Store
from service import heap
from service.admission.admission import Admission
from service.agent.announcer import Announcer
from service.agent.app import AgentServer, listening
from service.agent.gate import Gate
from service.config import MIB, Settings
from service.config.engines import NAME, NamedEngineSettings, named_engine
from service.engine.agent_wire import PURPOSE
from service.engine.assemble import describe_base, engine_for
from service.engine.busy import EngineClock
from service.errors import SettingsError
from service.http.signing import Verifier, signing_key
from service.objects.adapters import StoredAdapters
from service.objects.content import objects_for

DEFAULT_NAME: Final = "engine"
_LOG: Final = logging.getLogger("hatrack.agent")


class AgentSettings(NamedEngineSettings):
    """The settings of an agent's engine; its folder is none of those that a gateway of the same home looks into."""

    @property
    def engine_dir(self) -> Path:
        """Its socket, log and record."""
        return self.home / "agents" / (self.engine_name or DEFAULT_NAME)

    @property
    def store_dir(self) -> Path:
        """Where its engine reads adapters: the home's own; over an object store a cache that nobody else manages.

        An engine that somebody else runs has the home's in any case, which no gateway may have for a cache then.
        """
        has_cache = self.store_url is not None and not self.engine_url
        return self.engine_dir / "adapters" if has_cache else self.home / "adapters"


def agent_settings(settings: Settings, name: str | None) -> AgentSettings:
    """The settings of one engine for the agent that runs it.

    Args:
        name: Its name in the file that HATRACK_ENGINES names, if there is one; else what its folder is called.

    Raises:
        SettingsError: There is no such entry, no shared secret, or the name is not allowed.
    """
    if settings.agent_key is None:
        raise SettingsError(
            "HATRACK_AGENT_KEY must be set: the secret that this agent shares with its gateway and fronts, at least 16 "
            "characters"
        )
    if name is not None and NAME.fullmatch(name) is None:
        raise SettingsError(f"--name must be 1 to 32 characters of a-z, 0-9 and '-', not {name[:80]!r}")
    own = named_engine(settings, name)
    return AgentSettings(**own.model_dump() | {"engine_agent": "", "engines": None, "engine_name": name})


class AgentProcess:
    """One agent. Nothing runs before :meth:`run`.

    Args:
        settings: Its engine's.
        announce_as: The engine that it is to be in the settings of the gateway at HATRACK_AGENT_ANNOUNCE; None: any
            free one of its base.

    Raises:
        SettingsError: The base, the engine or the object store cannot be used.
    """

    def __init__(self, settings: AgentSettings, announce_as: str | None = None) -> None:
        assert settings.agent_key is not None  # noqa: S101  `agent_settings` has checked it
        secret = settings.agent_key.get_secret_value()
        objects = objects_for(settings)
        store = Store(settings.store_dir)
        self._objects = objects
        self.adapters = (
            StoredAdapters(store)
            if objects is None
            else StoredAdapters(store, objects.store, objects.cache, self._resident)
        )
        self.watched = engine_for(settings, describe_base(settings))
        self.clock = EngineClock()
        self.admission = Admission(settings, self.watched.client, self.watched.on_change, self.clock, self.adapters)
        self.gate = Gate(self.admission, self.clock, self.adapters, self._restart)
        self.announcer: Announcer | None = None
        if settings.agent_announce:
            base, slots = settings.base_served_name, settings.engine_slots
            self.announcer = Announcer(settings.agent_announce, secret, name=announce_as, base=base, slots=slots)
        self._url = settings.agent_url
        self._drain_s = settings.drain_s
        self.server = AgentServer(
            self.watched,
            self.gate,
            Verifier(signing_key(secret, PURPOSE)),
            announcer=self.announcer,
            silence_s=settings.agent_timeout_s,
            max_body=int(settings.max_body_mib * MIB) * 2,  # what a gateway adds to the largest body it takes
            store_url=settings.store_url,
        )
        self._restarting: asyncio.Task[None] | None = None

    def _resident(self) -> frozenset[str] | None:
        """The digests whose files the engine may read again; None: it has not said yet which."""
        snapshot = self.admission.residency.snapshot()
        return snapshot.resident if snapshot.known or self.watched.state.name != "ready" else None

    def _restart(self, reason: str) -> None:
        self._restarting = asyncio.get_running_loop().create_task(self.watched.restart(reason), name="engine-restart")

    def serve(self, *, host: str, port: int, uds: str | None, started: Callable[[str], None]) -> None:
        """As `run`, on an event loop of its own: uvloop's, on which a streamed chunk takes less CPU time."""
        uvloop.run(self.run(host=host, port=port, uds=uds, started=started))

    async def run(
        self,
        *,
        host: str,
        port: int,
        uds: str | None,
        started: Callable[[str], None],
        stop: asyncio.Event | None = None,
    ) -> None:
        """Serve until SIGTERM or SIGINT, or until ``stop`` is set; then requests in the engine may go on for
        HATRACK_DRAIN_S, until a further SIGINT.

        Args:
            started: Called with the address once it listens; the engine may still be starting.

        Raises:
            OSError: It cannot listen there.
        """
        has_signals = stop is None
        stop = stop or _stop_signals(signal.SIGTERM, signal.SIGINT)
        async with AsyncExitStack() as stack:
            if self._objects is not None:
                await stack.enter_async_context(self._objects.running())
            await self.adapters.open()
            await stack.enter_async_context(self.admission.running())
            address = await stack.enter_async_context(listening(self.server, host=host, port=port, uds=uds, stop_s=1.0))
            stack.push_async_callback(self.watched.stop)
            await self.watched.start()
            if self.announcer is not None:
                await stack.enter_async_context(self.announcer.running(self._url or address))
            started(address)
            heap.freeze()
            await stop.wait()
            _LOG.info("stopping")
            await self._drain(_stop_signals(signal.SIGINT) if has_signals else asyncio.Event())

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Let requests in the engine go on for a while, or until somebody is in a hurry."""
        draining = asyncio.create_task(self.server.drain(self._drain_s), name="agent-drain")
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurried):
            task.cancel()
        await asyncio.gather(draining, hurried, return_exceptions=True)


def _stop_signals(*numbers: signal.Signals) -> asyncio.Event:
    """Set by any of these signals from now on, in place of what was set before."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    return stop
