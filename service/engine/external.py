"""An engine that somebody else runs: looked at, used, and never started, ended or restarted by us.

It must be one of `hatrack engine`'s (or one started with the same plugin, flags and environment) over the same adapter
store. It is checked when the gateway starts and again whenever it was away or has become another process. While it is
no use, requests answer 503 and it is asked again until it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from adapters.base import Fingerprint
from service.config import Settings
from service.engine.client import ENGINE_KEY_REFUSED, EngineClient
from service.engine.compatibility import ENGINE_COMMAND, IncompatibleEngine, check_compatibility
from service.engine.config import EngineConfig
from service.engine.identity import ensure_store_id
from service.engine.liveness import EngineFailed
from service.engine.watched import EngineState, StateName, WatchedEngine
from service.errors import BadGateway, EngineUnreachable, HatrackError, SettingsError

__all__ = ["EngineState", "ExternalEngine"]

RECHECK_S: Final = 2.0
MAX_UNREACHED: Final = 2
"""So many looks in a row that find nothing listening, and it counts as down."""

_LOG = logging.getLogger("hatrack.engine")


class ExternalEngine(WatchedEngine):
    """Uses the engine at a URL.

    Files of deleted adapters stay in the store as long as the engine may have had them; they are removed when one is
    found that was not asked for any adapter yet, which is after its restart.

    Args:
        config: The engine as our settings have it.
        base: The identity of the base model.
        name: Its address, for people.
        url: Its base URL, if it is reached by TCP.
        socket: The path of its Unix socket, if that is where it listens.
        key: Its API key, if it asks for one.
    """

    def __init__(
        self,
        config: EngineConfig,
        base: Fingerprint,
        *,
        name: str,
        url: str = "http://engine",
        socket: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(config, url=url, socket=socket, key=key)
        self.name = name
        self._base = base
        self._boot: object = None
        self._rejected: tuple[object, str] | None = None
        """The start of the engine whose answers were no use, and why."""

    @classmethod
    def from_settings(cls, settings: Settings, base: Fingerprint) -> ExternalEngine:
        """The engine at HATRACK_ENGINE_URL."""
        key = settings.engine_key.get_secret_value() if settings.engine_key else None
        url = settings.engine_url if settings.engine_socket is None else "http://engine"
        config = EngineConfig.from_settings(settings)
        return cls(config, base, name=settings.engine_url, url=url, socket=settings.engine_socket, key=key)

    async def check(self) -> None:
        """Check the engine once, before the gateway starts. If it is not there yet, it is waited for later.

        Raises:
            SettingsError: What answers at its URL is no engine for this gateway, or the store cannot be written.
        """
        try:
            await self._inspect()
        except IncompatibleEngine as error:
            raise SettingsError(f"the engine at {self.name} (HATRACK_ENGINE_URL) is incompatible: {error}") from error
        except OSError as error:
            raise SettingsError(f"the adapter store {self.config.store} cannot be written: {error}") from error
        except HatrackError as error:
            _LOG.warning("the engine is not reachable yet; waiting for it", extra={"reason": error.message})
        finally:
            await self._probe.close()

    async def start(self) -> None:
        """Start looking for the engine; returns before it is ready."""
        self._set_state("starting", f"looking for the engine at {self.name}")
        self._task = asyncio.create_task(self._run(), name="engine-watch")

    async def stop(self) -> None:
        """Stop using the engine, which keeps running."""
        await self._shut_down()

    async def restart(self, reason: str) -> None:
        """Send no more requests until its operator has restarted it; the gateway cannot."""
        self._rejected = (self._boot, reason)
        self._set_state("stalled", self._restart_request(reason))

    def _restart_request(self, reason: str) -> str:
        return f"{reason}; the operator of the engine at {self.name} must restart it"

    async def _run(self) -> None:
        while True:
            name: StateName = "stalled"
            try:
                await self._run_once()
            except (EngineFailed, HatrackError) as error:
                reason = str(error)
                name = "down" if isinstance(error, EngineUnreachable) else "stalled"
            except IncompatibleEngine as error:
                name, reason = "down", f"the engine at {self.name} is incompatible: {error}"
            except OSError as error:
                reason = f"the adapter store cannot be written: {error}"
            except Exception as error:  # whatever it is, an engine that nobody watches would be worse
                _LOG.exception("watching the engine failed")
                reason = f"watching the engine failed: {type(error).__name__}"
            self._set_state(name, reason)
            await self.client.close()  # what is in flight ends now, not at some timeout
            await asyncio.sleep(RECHECK_S)

    async def _run_once(self) -> None:
        """The engine from the moment that it is found well to the moment that it is no use. Always raises."""
        report = await self._inspect()
        boot = report.get("boot")
        if self._rejected is not None:
            if self._rejected[0] == boot:
                raise EngineFailed(self._restart_request(self._rejected[1]))
            self._rejected = None
        if not await self._liveness.canary():
            raise EngineFailed(f"the canary request to the engine at {self.name} failed or was not finite")
        if report.get("asked") == 0 and self.before_spawn is not None:
            await self.before_spawn()
        if boot != self._boot:
            self.epoch += 1
            self._boot = boot
        self._liveness.reset()
        self._set_state("ready", f"the engine at {self.name} answers")
        await self._watch(_BootMonitor(self._probe, self.name, boot, self._raise_if_rejected).check)

    async def _inspect(self) -> dict[str, Any]:
        """Ask the engine what it is; returns its plugin's report.

        Raises:
            IncompatibleEngine: What answers there is not an engine for this gateway.
            EngineUnreachable: Nothing listens there.
            EngineUnavailable: It does not answer in time.
            OSError: The store cannot be written.
        """
        store_id = await asyncio.to_thread(ensure_store_id, self.config.store)
        try:
            report = await self._probe.report()
            await self._probe.get_text("/v1/models")  # unlike the report, this asks for the key
        except EngineUnreachable:
            raise EngineUnreachable(f"the engine at {self.name} cannot be reached") from None
        except BadGateway as error:
            if error.code == ENGINE_KEY_REFUSED:
                raise IncompatibleEngine(
                    "it rejects the key in HATRACK_ENGINE_KEY, or requires one that is not set"
                ) from error
            raise IncompatibleEngine(
                f"Hatrack's plugin does not respond ({error.message}): start the engine with {ENGINE_COMMAND}"
            ) from error
        check_compatibility(report, self.config, self._base, store_id)
        return report

    def _raise_if_rejected(self) -> None:
        if self._rejected is not None:
            raise EngineFailed(self._restart_request(self._rejected[1]))


class _BootMonitor:
    """Asks now and then whether the same engine still listens."""

    def __init__(self, probe: EngineClient, name: str, boot: object, also_check: Callable[[], None]) -> None:
        self._probe = probe
        self._name = name
        self._boot = boot
        self._also_check = also_check
        self._checked_at = time.monotonic()
        self._unreached = 0

    async def check(self) -> None:
        """Raises EngineFailed, EngineUnreachable. One that is too busy to answer is judged by its tokens, not here."""
        self._also_check()
        if time.monotonic() - self._checked_at < RECHECK_S:
            return
        try:
            boot = (await self._probe.report()).get("boot")
        except EngineUnreachable:
            self._unreached += 1
            if self._unreached >= MAX_UNREACHED:
                raise EngineUnreachable(f"the engine at {self._name} cannot be reached") from None
        except HatrackError:
            pass
        else:
            self._unreached = 0
            if boot != self._boot:
                raise EngineFailed(f"the engine at {self._name} has been restarted")
        self._checked_at = time.monotonic()
