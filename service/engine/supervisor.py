"""Runs an engine of our own: adopts one that is running, or starts vLLM; watches it, and starts it again.

It is restarted when it ends, when requests are in flight and nothing has come for a set time, or when its canaries fail
in a row; never because it is busy.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Final

from adapters.base import Fingerprint
from service.engine.adopt import NotAdopted, adopt
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_PROTOCOL
from service.engine.liveness import CANARY_TIMEOUT_S, EngineFailed
from service.engine.process import EngineProcess, end_leftovers, first_error, spawn
from service.engine.watched import TICK_S, EngineState, WatchedEngine
from service.errors import HatrackError

__all__ = ["EngineState", "Supervisor", "end_leftovers"]

BACK_OFF_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S: Final = 60.0
"""An engine that was ready for so long and then fails is started again at once."""
FIRST_ANSWER_S: Final = 180.0
"""How long a new engine may take for its first answer: it warms up, perhaps beside others on the same cores."""
_LOG = logging.getLogger("hatrack.engine")


class Supervisor(WatchedEngine):
    """Keeps one engine running as long as the gateway does, or longer.

    Args:
        config: What it is started with.
        base: The identity of the base model; without it a running engine is never adopted.
        keep: Whether a sound engine is left running by ``stop``.
    """

    def __init__(self, config: EngineConfig, base: Fingerprint | None = None, *, keep: bool = False) -> None:
        super().__init__(config, socket=str(config.socket))
        self._base = base
        self._keep = keep
        self._restart = asyncio.Event()
        self._restart_reason = ""
        self._adoption_tried = False
        self._adopted = False
        self._ready_at = math.inf
        """When the present engine was ready; an engine that takes minutes to start and then fails was never stable."""
        self._engine: EngineProcess | None = None

    @property
    def may_hold_files(self) -> bool:
        """Whether the engine may have adapters loaded, as one that is being started has not."""
        return not self._adoption_tried or self.state.name in ("ready", "stalled") or self._adopted

    async def start(self) -> None:
        """Adopt the engine on record if possible, else end it and start a new one. Returns before it is ready."""
        self.config.keep_request.unlink(missing_ok=True)  # it was meant for a gateway that is gone
        self._set_state("starting", "starting the engine")
        self._task = asyncio.create_task(self._run(), name="engine-supervisor")

    async def stop(self) -> None:
        """End the engine and all of its processes, or leave it running if that was requested.

        Only a sound engine is left: nobody would adopt another.
        """
        requested = self._keep or self.config.keep_request.exists()
        keep = requested and (self.ready or not self._adoption_tried)
        await self._shut_down()
        self.config.keep_request.unlink(missing_ok=True)
        if keep:
            if self._engine is not None:
                _LOG.info("leaving the engine running", extra={"pid": self._engine.pid, **self._named})
                self._engine.release()
                self._engine = None
            return
        await self._end_engine()
        await asyncio.to_thread(end_leftovers, self.config.directory)  # where a restart was cut off half-way

    async def restart(self, reason: str) -> None:
        """Replace the engine by a new one; until that is ready, requests are answered with 503."""
        self._set_state("stalled", reason)
        self._restart_reason = reason
        self._restart.set()

    def _unavailable_reason(self) -> str | None:
        if self.state.name != "ready":
            return self.state.reason
        if self._engine is None or not self._engine.alive:
            return "the engine has just exited"
        return None

    async def _run(self) -> None:
        failures = 0
        while True:
            self._ready_at = math.inf
            try:
                await self._run_once()
            except EngineFailed as error:
                reason = str(error)
            except OSError as error:
                reason = f"the engine cannot be started: {error}"
            except Exception as error:  # whatever it is, an engine that nobody watches would be worse
                _LOG.exception("watching the engine failed")
                reason = f"watching the engine failed: {type(error).__name__}"
            _LOG.error("restarting the engine", extra={"reason": reason, **self._named})
            self._set_state("down", reason)
            await self.client.close()  # what is in flight ends now, not at some timeout
            await self._end_engine()
            failures = 1 if time.monotonic() - self._ready_at > STABLE_S else failures + 1
            await asyncio.sleep(BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1])
            self._set_state("starting", f"restarting the engine: {reason}")

    async def _run_once(self) -> None:
        """One engine, from its start or its adoption to the moment that it is no use. Always raises."""
        self._restart.clear()
        self._engine = None if self._adoption_tried else await self._adopt()
        self._adopted = self._engine is not None
        reason = "adopted the running engine, which matches the settings"
        if self._engine is None:
            await self._end_previous()
            if self.before_spawn is not None:
                await self.before_spawn()
            # on this thread: a start that outlived its cancellation would leave an engine that nobody knows of
            self._engine = spawn(self.config, self._base)
            await self._wait_until_ready(self._engine)
            reason = "the engine answers"
        self.epoch += 1
        self._ready_at = time.monotonic()
        self._liveness.reset(self._engine)
        self._set_state("ready", reason)
        engine = self._engine

        async def check() -> None:
            self._check_alive(engine)

        await self._watch(check)

    async def _adopt(self) -> EngineProcess | None:
        """The engine that is running, where it is as good as a new one; else None."""
        engine = None
        try:
            engine = await adopt(self.config, self._base, self._probe, self._liveness)
        except NotAdopted as error:
            _LOG.warning("the running engine cannot be adopted", extra={"reason": str(error), **self._named})
            self._set_state("starting", f"stopping the previous engine: {error}")
        except Exception:  # a new engine is always as good
            _LOG.exception("looking for a running engine failed")
        self._adoption_tried = True
        return engine

    async def _end_previous(self) -> None:
        await self._probe.close()  # its connections may lead to the former engine
        pids = await asyncio.to_thread(end_leftovers, self.config.directory)
        if pids:
            _LOG.warning("stopped leftover processes of a previous engine", extra={"pids": pids, **self._named})
            self._set_state("starting", "starting the engine")

    async def _wait_until_ready(self, engine: EngineProcess) -> None:
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
            raise EngineFailed(
                f"the engine's plugin uses protocol {report.get('protocol')}, this gateway {PLUGIN_PROTOCOL}"
            )
        patience_s = min(FIRST_ANSWER_S, deadline - time.monotonic())
        if not await self._liveness.canary(max(CANARY_TIMEOUT_S, patience_s)):
            raise EngineFailed("the engine's first response is missing or not finite")

    def _check_alive(self, engine: EngineProcess) -> None:
        if self._restart.is_set():
            raise EngineFailed(self._restart_reason)
        if not engine.alive:
            code = engine.exit_code
            how = "" if code is None else f" with exit code {code}"
            error = first_error(self.config.log, engine.log_start)
            raise EngineFailed(f"the engine exited{how}{': ' + error if error else ''}; see {self.config.log.name}")

    async def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.end)
            self.config.record.unlink(missing_ok=True)
