"""The base class of managed and external engines: state, client and liveness."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from service.engine.client import EngineClient
from service.engine.config import EngineConfig
from service.engine.liveness import LivenessMonitor

TICK_S: Final = 0.25
_LOG = logging.getLogger("hatrack.engine")

StateName = Literal["starting", "ready", "stalled", "down"]


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine's state, the reason, and its beginning (Unix seconds)."""

    name: StateName
    reason: str
    since: float


class WatchedEngine(ABC):
    """One engine and its state: ``starting → ready → stalled → down``, each with a reason.

    Args:
        config: Its flags, names and times.
        url: Where it listens, if not on a socket.
        socket: Where it listens, if on a socket.
        key: Its API key, if it asks for one.
    """

    def __init__(
        self, config: EngineConfig, *, url: str = "http://engine", socket: str | None = None, key: str | None = None
    ) -> None:
        self.config = config
        self.before_spawn: Callable[[], Awaitable[object]] | None = None
        """Awaited before an engine takes requests, while it uses no adapter: files can be removed safely."""
        self.state = EngineState("down", "not started", time.time())
        self.epoch = 0
        """How many engines have become ready so far."""
        self.client = EngineClient(url=url, socket=socket, key=key, available=self._unavailable_reason)
        self._probe = EngineClient(url=url, socket=socket, key=key)
        self._liveness = LivenessMonitor(
            self.client,
            self._probe,
            base_name=config.base_name,
            stall_s=config.stall_s,
            canary_s=config.canary_s,
        )
        self._named = {} if config.name is None else {"engine": config.name}
        """Which engine a line of the log is about, where there are several."""
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[EngineState], None]] = []

    @property
    def ready(self) -> bool:
        """Whether requests are accepted; False as soon as the engine is known to have ended."""
        return self._unavailable_reason() is None

    @property
    def may_hold_files(self) -> bool:
        """Whether the engine may have adapters loaded, whose files must then stay."""
        return True

    @property
    def is_placed(self) -> bool:
        """Whether it is known where the engine runs."""
        return True

    def on_change(self, listener: Callable[[EngineState], None]) -> None:
        """Register a listener for changes of state."""
        self._listeners.append(listener)

    def saw_tokens(self) -> None:
        """Record output of the engine as a sign of life."""
        self._liveness.saw_tokens()

    @abstractmethod
    async def start(self) -> None:
        """Start; returns before the engine is ready."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop; requests in flight are cut."""

    @abstractmethod
    async def restart(self, reason: str) -> None:
        """Accept no more requests until the engine is replaced, because its answers are wrong."""

    @abstractmethod
    async def _run_once(self) -> None:
        """Run one engine until it is unusable. Always raises."""

    def _unavailable_reason(self) -> str | None:
        return None if self.state.name == "ready" else self.state.reason

    def _set_state(self, name: StateName, reason: str) -> None:
        if (name, reason) == (self.state.name, self.state.reason):
            return
        self.state = EngineState(name, reason, time.time())
        _LOG.info(f"engine {name}", extra={"reason": reason, **self._named})
        for listener in self._listeners:
            listener(self.state)

    async def _watch(self, check: Callable[[], Awaitable[None]]) -> None:
        """Watch a ready engine. Always raises.

        Args:
            check: An additional check; raises EngineFailed.

        Raises:
            EngineFailed: The engine is unusable.
        """
        doubtful = False
        while True:
            await asyncio.sleep(TICK_S)
            await check()
            doubt = await self._liveness.check()
            await check()  # a restart requested meanwhile takes precedence
            if doubt is not None:
                doubtful = True
                self._set_state("stalled", doubt)
            elif doubtful and self.state.name == "stalled":
                doubtful = False
                self._set_state("ready", "the canary answers again")

    async def _shut_down(self) -> None:
        """Stop watching and cut the requests in flight."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._liveness.drop_canary()
        self._set_state("down", "the gateway stops")
        await self.client.close()
        await self._probe.close()
