"""Starts vLLM, watches it, and starts it again: the engine's states are `starting → ready → stalled → down`.

What counts as life is what the engine produces. A token that the data path saw is a sign; while requests are in flight
and no token was seen, the engine's own counters of tokens are looked at; while it is idle, a canary asks the base for
the log-probability of one token, which must be a number. It is restarted when it ends, when requests are in flight and
nothing has come for a set time, or when its canaries fail in a row; never because it is busy.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from service.engine.client import EngineClient
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_PROTOCOL
from service.engine.counters import tokens_made
from service.engine.process import EngineProcess, end, end_leftovers, spawn
from service.errors import HatrackError

__all__ = ["EngineState", "Supervisor", "end_leftovers"]

TICK_S: Final = 0.25
COUNTERS_S: Final = 2.0
CANARY_TIMEOUT_S: Final = 30.0
CANARIES_FAILED: Final = 3
BACK_OFF_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S: Final = 60.0
CANARY_TEXT: Final = "The canary sings"
_LOG = logging.getLogger("hatrack.engine")

StateName = Literal["starting", "ready", "stalled", "down"]


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine does now, why, and since when (seconds since the epoch)."""

    name: StateName
    reason: str
    since: float


class EngineFailed(Exception):
    """This engine process is no use any more; the message says why."""


class Supervisor:
    """Keeps one engine running as long as the gateway does.

    Args:
        config: What it is started with.
        before_spawn: Awaited before each start, while no engine runs: the moment to remove files that it may have had.
    """

    def __init__(self, config: EngineConfig, *, before_spawn: Callable[[], Awaitable[object]] | None = None) -> None:
        self.config = config
        self.before_spawn = before_spawn
        self.state = EngineState("down", "not started", time.time())
        self.epoch = 0
        self.client = EngineClient(socket=str(config.socket), available=self._why_not)
        self._probe = EngineClient(socket=str(config.socket))
        self._restart = asyncio.Event()
        self._restart_reason = ""
        self._last_sign = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._engine: EngineProcess | None = None
        self._listeners: list[Callable[[EngineState], None]] = []

    @property
    def ready(self) -> bool:
        """Whether requests are taken now; false from the moment that the engine's process has ended."""
        return self._why_not() is None

    def on_change(self, listener: Callable[[EngineState], None]) -> None:
        """Have ``listener`` called with each new state."""
        self._listeners.append(listener)

    def saw_tokens(self) -> None:
        """The engine gave something: it lives."""
        self._last_sign = time.monotonic()

    async def start(self) -> None:
        """End what a crash left, and begin; returns before the engine is ready."""
        left = await asyncio.to_thread(end_leftovers, self.config.directory)
        if left:
            _LOG.warning("ended what was left of a former engine", extra={"pids": left})
        self._become("starting", "the engine is being started")
        self._task = asyncio.create_task(self._run(), name="engine-supervisor")

    async def stop(self) -> None:
        """End the engine and everything that belongs to it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._become("down", "the gateway stops")
        await self.client.close()
        await self._probe.close()
        await self._end_engine()
        await asyncio.to_thread(end_leftovers, self.config.directory)  # where a restart was cut off half-way

    async def restart(self, reason: str) -> None:
        """Have the engine replaced by a new one; from now on requests answer 503 until that is ready."""
        self._become("stalled", reason)
        self._restart_reason = reason
        self._restart.set()

    def _why_not(self) -> str | None:
        if self.state.name != "ready":
            return self.state.reason
        if self._engine is None or self._engine.exit_code is not None:
            return "the engine has just ended"
        return None

    def _become(self, name: StateName, reason: str) -> None:
        self.state = EngineState(name, reason, time.time())
        _LOG.info(f"engine {name}", extra={"reason": reason})
        for listener in self._listeners:
            listener(self.state)

    async def _run(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._live_once()
            except EngineFailed as error:
                reason = str(error)
            except OSError as error:
                reason = f"the engine cannot be started: {error}"
            except Exception as error:  # whatever it is, an engine that nobody watches would be worse
                _LOG.exception("watching the engine failed")
                reason = f"watching the engine failed: {type(error).__name__}"
            _LOG.error("the engine is restarted", extra={"reason": reason})
            self._become("down", reason)
            await self.client.close()  # what is in flight ends now, not at some timeout
            await self._end_engine()
            failures = 1 if time.monotonic() - started > STABLE_S else failures + 1
            await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1])
            self._become("starting", f"the engine is being restarted: {reason}")

    async def _live_once(self) -> None:
        """One engine process, from its start to the moment that it is no use. Always raises."""
        self._restart.clear()
        if self.before_spawn is not None:
            await self.before_spawn()
        # on this thread: a start that outlived its cancellation would leave an engine that nobody knows of
        self._engine = spawn(self.config)
        await self._come_up(self._engine)
        self.epoch += 1
        self.saw_tokens()
        self._become("ready", "the engine answers")
        await self._watch(self._engine)

    async def _come_up(self, engine: EngineProcess) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        while True:
            self._check_alive(engine)
            if time.monotonic() > deadline:
                raise EngineFailed(f"the engine was not ready after {self.config.start_timeout_s:g} s")
            try:
                report = await self._probe.report()
                break
            except HatrackError:
                await asyncio.sleep(TICK_S)
        if report.get("protocol") != PLUGIN_PROTOCOL:
            raise EngineFailed(f"the engine's plugin speaks protocol {report.get('protocol')}, not {PLUGIN_PROTOCOL}")
        if not await self._canary():
            raise EngineFailed("the engine's first answer is not finite or did not come")

    def _check_alive(self, engine: EngineProcess) -> None:
        if self._restart.is_set():
            raise EngineFailed(self._restart_reason)
        if engine.exit_code is not None:
            raise EngineFailed(f"the engine ended with exit code {engine.exit_code}; see {self.config.log.name}")

    async def _watch(self, engine: EngineProcess) -> None:
        busy_since: float | None = None
        looked, made, failed = 0.0, -1.0, 0
        while True:
            await asyncio.sleep(TICK_S)
            self._check_alive(engine)
            now = time.monotonic()
            if self.client.in_flight:
                busy_since = busy_since or now
                if now - max(looked, self._last_sign) > COUNTERS_S:
                    looked, before = now, made
                    made = await self._tokens()
                    if made > before >= 0:
                        self.saw_tokens()
                silent_s = time.monotonic() - max(self._last_sign, busy_since)
                if silent_s > self.config.stall_s:
                    raise EngineFailed(f"requests are in flight and no token came for {silent_s:.0f} s")
                continue
            busy_since = None
            if now - self._last_sign < self.config.canary_s * (1 if failed == 0 else 0.2):
                continue
            failed = 0 if await self._canary() else failed + 1
            if failed >= CANARIES_FAILED:
                raise EngineFailed(f"{failed} canaries in a row had no finite answer")
            if failed and self.state.name == "ready":
                self._become("stalled", "the canary had no finite answer")
            elif not failed and self.state.name == "stalled" and not self._restart.is_set():
                self._become("ready", "the canary answers again")
            if failed:
                await asyncio.sleep(TICK_S)

    async def _canary(self) -> bool:
        """Ask the base for the log-probabilities of a few tokens: True where they are numbers."""
        try:
            rows = await self._probe.logprobs(self.config.base_name, [CANARY_TEXT], timeout_s=CANARY_TIMEOUT_S)
        except HatrackError as error:
            _LOG.warning("the canary failed", extra={"reason": error.message})
            return False
        if not all(math.isfinite(value) for row in rows for value in row):
            return False
        self.saw_tokens()
        return True

    async def _tokens(self) -> float:
        try:
            return tokens_made(await self._probe.get_text("/metrics"))
        except HatrackError:
            return -1.0

    async def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(end, engine.token)
            await asyncio.to_thread(engine.process.wait, 10)
            self.config.record.unlink(missing_ok=True)
