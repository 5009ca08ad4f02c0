"""The gateway's engines, each with its admission and its clock: made from the settings, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.base import BaseDescription
from service.admission.admission import Admission
from service.admission.remote import RemoteAdmission
from service.agents import Agent, Bases, ServedBase
from service.concurrency import in_thread
from service.config import Settings
from service.config.engines import NamedEngineSettings, engine_dirs, engine_settings
from service.engine.assemble import describe_base, engine_for
from service.engine.busy import EngineClock, EngineClocks, EngineTime
from service.engine.process import end_leftovers
from service.engine.remote import RemoteEngine
from service.engine.watched import EngineState, WatchedEngine
from service.errors import HatrackError, SettingsError
from service.objects.adapters import StoredAdapters

_LOG: Final = logging.getLogger("hatrack.engine")
ONLY = "engine"
"""The name of a gateway's only engine."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """One engine and what belongs to it."""

    agent: Agent
    base: BaseDescription
    watched: WatchedEngine
    admission: Admission | RemoteAdmission
    clock: EngineTime

    @property
    def label(self) -> str | None:
        """Its name, where it is one of several."""
        return self.watched.config.name


class Fleet:
    """All engines of a gateway.

    Args:
        parts: At least one; the first one's base is the default.
        bases: Their bases.
    """

    def __init__(self, parts: tuple[EngineParts, ...], bases: Bases) -> None:
        self.parts = parts
        self.bases = bases
        self.clocks = EngineClocks([each.clock for each in parts])

    @classmethod
    def from_settings(cls, settings: Settings, adapters: StoredAdapters | None = None) -> Fleet:
        """The engines that the settings name; nothing is started.

        Args:
            adapters: Brings adapters' files to where the engines read them; None: they are there.

        Raises:
            SettingsError: A base cannot be read, or an engine cannot be set up.
        """
        parts: list[EngineParts] = []
        descriptions: dict[str, BaseDescription] = {}
        for own in engine_settings(settings):
            name = own.base_served_name
            try:
                if name not in descriptions:
                    descriptions[name] = describe_base(own)
                parts.append(_parts(own, descriptions[name], adapters))
            except SettingsError as error:
                if not isinstance(own, NamedEngineSettings):
                    raise
                raise SettingsError(
                    f"HATRACK_ENGINES: the engine `{own.engine_name}`, with the base {own.base_source}: {error}"
                ) from error
        bases = []
        for description in descriptions.values():
            agents = [each.agent for each in parts if each.base is description]
            made_at = int((agents[0].settings.base_dir / "config.json").stat().st_mtime)
            bases.append(ServedBase(description, made_at, agents))
        return cls(tuple(parts), Bases(bases))

    @property
    def default(self) -> EngineParts:
        """The first engine."""
        return self.parts[0]

    @property
    def ready(self) -> bool:
        """Whether any engine accepts requests."""
        return any(each.watched.ready for each in self.parts)

    @property
    def state(self) -> EngineState:
        """The state of the first engine that accepts requests; while none does, the first one's."""
        return next((each.watched.state for each in self.parts if each.watched.ready), self.default.watched.state)

    def trouble_of(self, base: str) -> str | None:
        """Why no engine of the base of this served name accepts requests; None: one does, or there is no such base."""
        states = [(each.watched.ready, each.watched.state) for each in self.parts if each.base.served_name == base]
        return None if not states or any(is_ready for is_ready, _ in states) else states[0][1].reason

    def running_engines(self) -> int:
        """How many engines have a process now."""
        return sum(each.watched.state.name != "down" for each in self.parts)

    def resident_adapters(self) -> frozenset[str] | None:
        """The digests that engines have loaded; None: one that is ready has not said yet which."""
        snapshots = [(each.watched.state, each.admission.residency.snapshot()) for each in self.parts]
        if any(state.name == "ready" and not snapshot.known for state, snapshot in snapshots):
            return None
        return frozenset().union(*(snapshot.resident for _, snapshot in snapshots))

    def move(self, addresses: Mapping[str, str | None]) -> None:
        """Use engines' agents at other addresses, by the engines' names; None: it is not known where one is."""
        for each in self.parts:
            if each.agent.name in addresses and isinstance(each.watched, RemoteEngine):
                each.watched.move(addresses[each.agent.name])

    def callers_load(self) -> tuple[int, int]:
        """Callers' requests that are queued for any engine, and that are in one."""
        callers = [each.admission.queue.callers_load for each in self.parts]
        return sum(queued for queued, _ in callers), sum(in_flight for _, in_flight in callers)

    def before_spawn(self, collect: Callable[[], Awaitable[object]]) -> None:
        """Have files removed that nothing names before an engine starts, while no other could have them loaded.

        Where that fails they stay until the next start: a database that is away keeps no engine from its requests.
        """

        def hook(starting: EngineParts) -> Callable[[], Awaitable[object]]:
            async def run() -> None:
                others = [each for each in self.parts if each is not starting]
                if any(each.watched.may_hold_files for each in others):
                    return
                try:
                    await collect()
                except HatrackError as error:
                    about = {"engine": starting.agent.name, "reason": error.message}
                    _LOG.warning("files that nothing names stay until the next start of an engine", extra=about)

            return run

        for each in self.parts:
            each.watched.before_spawn = hook(each)

    @asynccontextmanager
    async def admitting(self) -> AsyncIterator[None]:
        """Run the engines' admission while this is open."""
        async with AsyncExitStack() as stack:
            for each in self.parts:
                await stack.enter_async_context(each.admission.running())
            yield

    async def end_unnamed(self) -> None:
        """End the engines that this home has left running and that its settings no longer name.

        After an entry was removed or renamed nobody else would, and they hold their memory. Only the gateway may, which
        holds the home: a front of it knows a part of its engines, and those of the others are no leftovers.
        """
        own = {each.watched.config.directory for each in self.parts}
        own |= {Path(each.agent.settings.engine_socket or "/").parent for each in self.parts}
        for directory in engine_dirs(self.default.agent.settings):
            if directory not in own and (pids := await in_thread(end_leftovers, directory)):
                about = {"engine": directory.name, "pids": pids}
                _LOG.warning("stopped an engine that the settings no longer name", extra=about)

    async def start(self) -> None:
        """Start all engines; returns before they are ready."""
        for each in self.parts:
            await each.watched.start()

    async def stop(self) -> None:
        """Stop all engines, or leave running those that are to be kept."""
        await asyncio.gather(*(each.watched.stop() for each in self.parts))


def _parts(settings: Settings, base: BaseDescription, adapters: StoredAdapters | None) -> EngineParts:
    watched = engine_for(settings, base)
    clock: EngineTime
    admission: Admission | RemoteAdmission
    if isinstance(watched, RemoteEngine):
        clock, admission = watched.clock, RemoteAdmission(settings, watched)
    else:
        clock = EngineClock()
        admission = Admission(settings, watched.client, watched.on_change, clock, adapters)
    queue = admission.queue
    agent = Agent(
        name=watched.config.name or ONLY,
        settings=settings,
        client=watched.client,
        background=admission.background_engine,
        restart=watched.restart,
        is_ready=lambda: watched.ready,
        load=lambda: queue.load,
    )
    return EngineParts(agent, base, watched, admission, clock)
