"""An engine behind an agent, which runs it, watches it and keeps its queue: the side of those who use it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import orjson

from adapters.base import Fingerprint
from service.client.addresses import is_unix
from service.config import Settings
from service.config.cluster import ANNOUNCED
from service.engine.agent_link import AgentLink, SessionEnded
from service.engine.agent_wire import ENGINE_PATH, ERROR_HEADER, PURPOSE, SESSION_HEADER
from service.engine.client import EngineClient, EngineResponse
from service.engine.compatibility import IncompatibleEngine, check_compatibility
from service.engine.config import EngineConfig
from service.engine.identity import ensure_store_id
from service.engine.liveness import EngineFailed
from service.engine.watched import WatchedEngine
from service.errors import EngineUnavailable, SettingsError, Unauthenticated
from service.http.peer_errors import load_error
from service.http.signing import sign, signing_key

RECONNECT_S: Final = (0.1, 0.5, 1.0, 2.0)
LOOK_S: Final = 5.0
"""How long the check before the start waits for an agent's word, s."""
NOWHERE: Final = "http://nowhere.invalid"
"""In the place of an address that is not known; nothing is asked there."""
UNANNOUNCED: Final = "no agent has announced itself (`hatrack agent` with HATRACK_AGENT_ANNOUNCE)"
_LOG = logging.getLogger("hatrack.engine")

CheckReport = Callable[[Mapping[str, Any], str | None], None]
"""Called with the report of the engine's plugin, and the agent's object store or None; raises IncompatibleEngine."""


def split_address(address: str) -> tuple[str, str | None]:
    """The base URL of an address of the settings, and the path of its Unix socket, if it is one."""
    return ("http://agent", address.removeprefix("unix:")) if is_unix(address) else (address, None)


class RemoteEngine(WatchedEngine):
    """Uses the engine of an agent.

    It is ready while there is a session and the agent says so. When the session ends, whatever was sent to the engine
    ends with it.

    Args:
        config: The engine as our settings have it.
        address: The agent's, as in HATRACK_ENGINE_AGENT; None: it is not known yet (``move``).
        secret: HATRACK_AGENT_KEY.
        silence_s: HATRACK_AGENT_TIMEOUT_S.
        check: Whether the engine is the one that is wanted.
    """

    def __init__(
        self, config: EngineConfig, *, address: str | None, secret: str, silence_s: float, check: CheckReport
    ) -> None:
        super().__init__(config)
        self.address = address
        """Where the agent is; None: that is not known."""
        self._moved = asyncio.Event()
        url, socket = split_address(address or NOWHERE)
        key = signing_key(secret, PURPOSE)
        self.link = AgentLink(name=self.name, url=url, socket=socket, key=key, silence_s=silence_s)
        self.client = self._remote = RemoteClient(self.link, url, socket, self._unavailable_reason)
        self.clock = RemoteClock()
        self._check = check
        self._boot: object = None
        self._store_url: str | None = None
        self._incompatible = ""
        self._told = asyncio.Event()
        """The agent has said how its engine is."""
        self.link.on("hello", self._greet)
        self.link.on("state", self._hear)
        self.link.on("clock", self.clock.hear)

    @classmethod
    def from_settings(cls, settings: Settings, base: Fingerprint) -> RemoteEngine:
        """The engine at HATRACK_ENGINE_AGENT; it must use the same adapter store, by folder or by URL."""
        config = EngineConfig.from_settings(settings)
        key = settings.agent_key
        assert key is not None  # noqa: S101  the settings were checked

        def check(report: Mapping[str, Any], store_url: str | None) -> None:
            if settings.store_url != store_url:
                raise IncompatibleEngine(
                    f"its agent has HATRACK_STORE_URL={store_url or '(unset)'}, this gateway "
                    f"{settings.store_url or '(unset)'}"
                )
            own = ensure_store_id(config.store)
            # over one object store each has a cache of its own
            check_compatibility(report, config, base, own if store_url is None else str(report.get("store_id")))

        secret, silence_s = key.get_secret_value(), settings.agent_timeout_s
        address = None if settings.engine_agent == ANNOUNCED else settings.engine_agent
        return cls(config, address=address, secret=secret, silence_s=silence_s, check=check)

    @property
    def name(self) -> str:
        """Where the agent is, for people."""
        return self.address or "an address that it has not announced"

    @property
    def is_placed(self) -> bool:
        """Whether the agent's address is known."""
        return self.address is not None

    def move(self, address: str | None) -> None:
        """The agent is at another address from now on; None: at none. A session at the former one ends."""
        if address != self.address:
            self.address = address
            self._moved.set()

    async def check(self) -> None:
        """Look at the agent once, before the gateway starts; one that is not there yet is waited for later.

        Raises:
            SettingsError: It answers, and refuses us or has another engine than this gateway needs.
        """
        session = asyncio.create_task(self.link.run())
        told = asyncio.create_task(self._told.wait())
        try:
            await asyncio.wait((session, told), timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if session.done():
                await session
        except SessionEnded as error:
            if not error.unreached:
                raise SettingsError(f"{error} (HATRACK_ENGINE_AGENT)") from error
            _LOG.warning("the agent is not reachable yet; waiting for it", extra={"reason": str(error)})
        finally:
            session.cancel()
            told.cancel()
            await asyncio.gather(session, told, return_exceptions=True)
        if self._incompatible:
            raise SettingsError(f"HATRACK_ENGINE_AGENT: {self._incompatible}")

    async def start(self) -> None:
        """Start looking for the agent; returns before its engine is ready."""
        if self.is_placed:
            self._set_state("starting", f"looking for the agent at {self.name}")
        else:
            self._set_state("down", UNANNOUNCED)
        self._task = asyncio.create_task(self._run(), name="agent-session")

    async def stop(self) -> None:
        """Stop using the engine, which keeps running."""
        await self._shut_down()

    async def restart(self, reason: str) -> None:
        """Have the agent replace the engine; until that is ready, requests are answered with 503."""
        self._set_state("stalled", reason)
        self.link.send("restart", reason)

    async def _run(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._run_once()
            except EngineFailed as error:
                reason = str(error)
            except Exception as error:  # whatever it is, an engine that nobody watches would be worse
                _LOG.exception("the session with an agent failed")
                reason = f"the session with the agent at {self.name} failed: {type(error).__name__}"
            self._set_state("down", reason)
            await self.client.close()  # what is in flight ends now, not at some timeout
            self.clock.end_session()
            failures = 0 if time.monotonic() - began > RECONNECT_S[-1] else failures + 1
            patience_s = RECONNECT_S[min(failures, len(RECONNECT_S) - 1)] if self.is_placed else None
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._moved.wait()

    async def _run_once(self) -> None:
        """One session with the agent. Always raises."""
        self._moved.clear()
        if self.address is None:
            raise EngineFailed(UNANNOUNCED)
        url, socket = split_address(self.address)
        self.link.move(self.address, url, socket)
        await self._remote.move(url, socket)
        session, moved = asyncio.create_task(self.link.run()), asyncio.create_task(self._moved.wait())
        try:
            await asyncio.wait((session, moved), return_when=asyncio.FIRST_COMPLETED)
            if not session.done():
                raise EngineFailed(f"its agent is no longer at {self.link.name}")
            await session
        except SessionEnded as error:
            raise EngineFailed(str(error)) from None
        finally:
            session.cancel()
            moved.cancel()
            await asyncio.gather(session, moved, return_exceptions=True)

    def _greet(self, hello: dict[str, Any]) -> None:
        self._store_url = hello.get("store_url")

    async def _hear(self, told: dict[str, Any]) -> None:
        """The agent tells the engine's state."""
        name, reason, report = told["name"], f"{told['reason']} (agent at {self.name})", told.get("report")
        if name == "ready" and report is not None:
            await self._accept(report, reason)
        elif name != "ready":
            self._set_state(name, reason)  # what has to end, the agent ends
        elif self.state.name != "ready":
            self._set_state("starting", reason)
        # else it answers, and is only too busy to report again: that another user asked takes it from nobody
        self._told.set()

    async def _accept(self, report: dict[str, Any], reason: str) -> None:
        try:
            await asyncio.to_thread(self._check, report, self._store_url)
        except IncompatibleEngine as error:
            self._incompatible = f"the engine of the agent at {self.name} is incompatible: {error}"
            self._set_state("down", self._incompatible)
            return
        except OSError as error:
            self._set_state("down", f"the adapter store cannot be written: {error}")
            return
        self._incompatible = ""
        if report.get("boot") != self._boot:
            if report.get("asked") == 0 and self.before_spawn is not None:
                await self.before_spawn()
            self._boot = report.get("boot")
            self.epoch += 1
        self._set_state("ready", reason)


class RemoteClient(EngineClient):
    """A client for an engine behind an agent: its requests are signed, and belong to the session.

    Args:
        link: The session.
        url: The agent's base URL.
        socket: The path of its Unix socket, if that is where it listens.
        available: As for any engine.
    """

    def __init__(self, link: AgentLink, url: str, socket: str | None, available: Callable[[], str | None]) -> None:
        super().__init__(url=_engine_url(url), socket=socket, available=available)
        self._link, self._place = link, (url, socket)

    async def move(self, url: str, socket: str | None) -> None:
        """The agent is there from now on; arguments as of the class. Requests in flight end."""
        if (url, socket) != self._place:
            self._place = (url, socket)
            await self._move(_engine_url(url), socket)

    async def send(self, path: str, body: bytes, headers: dict[str, str]) -> EngineResponse:
        """As `EngineClient.send`; also raises what the agent says."""
        response = await super().send(path, body, headers | self._signed("POST", path, body))
        if ERROR_HEADER in response.headers:
            try:
                error = load_error(await _json(response))
            finally:
                response.close()
            if isinstance(error, Unauthenticated):  # that is about this process's secret or clock, not a caller's key
                _LOG.warning("the agent refuses requests", extra={"agent": self._link.name, "reason": error.message})
                raise EngineUnavailable("the engine is not ready: its agent refuses this gateway's signature")
            raise error
        return response

    def _get_headers(self, path: str) -> dict[str, str]:
        return self._signed("GET", path)

    def _signed(self, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        session = self._link.session
        if session is None:
            raise EngineUnavailable(f"the engine is not ready: there is no session with the agent at {self._link.name}")
        signature = sign(self._link.key, method, ENGINE_PATH + path, body, bound=session)
        return {SESSION_HEADER: session, **signature}


def _engine_url(url: str) -> str:
    return url.rstrip("/") + ENGINE_PATH


async def _json(response: EngineResponse) -> Any:
    try:
        return orjson.loads(await response.read())
    except orjson.JSONDecodeError:
        return None


class RemoteClock:
    """The engine's time as its agent measures it; an ``EngineClock`` for whoever uses it.

    The agent says several times a second what one request's share has been so far, and how many are open; between two
    such words it is reckoned on, and never goes back. So the shares of all gateways' and fronts' requests add up to the
    engine's busy time, nearly.
    """

    __slots__ = ("_at", "_busy_s", "_clock", "_open", "_own_open", "_shown_s", "_told_s", "_zero", "own_s")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._at = clock()
        self._open = self._own_open = 0
        self._told_s = self._busy_s = 0.0
        self._shown_s = 0.0
        """The largest share that was reckoned so far."""
        self._zero: tuple[float, float] | None = None
        """What is subtracted from the share and the busy time that the agent tells; None: it has told nothing yet."""
        self.own_s = 0.0

    @property
    def open(self) -> int:
        """Requests in the engine now: of all its users as last told, and at least our own."""
        return max(self._open, self._own_open)

    @property
    def busy_s(self) -> float:
        """Seconds in which any user's request was in the engine, since this process began to be told."""
        return self._busy_s

    def hear(self, share_s: float, busy_s: float, opened: int) -> None:
        """What the agent tells: its totals, and the requests that are open."""
        if self._zero is None:
            self._zero = (share_s - self._reckoned(), busy_s - self._busy_s)
        self._told_s, self._busy_s = share_s - self._zero[0], busy_s - self._zero[1]
        self._at, self._open = self._clock(), opened

    def end_session(self) -> None:
        """The next session's totals may be another process's."""
        self._told_s = self._reckoned()
        self._at, self._open, self._zero = self._clock(), 0, None

    def enter(self) -> float:
        """As `EngineClock.enter`."""
        share_s = self._reckoned()
        self._own_open += 1
        return share_s

    def leave(self, entered: float) -> float:
        """As `EngineClock.leave`."""
        share_s = self._reckoned()
        self._own_open -= 1
        return share_s - entered

    @contextmanager
    def own(self) -> Iterator[None]:
        """As `EngineClock.own`."""
        entered = self.enter()
        try:
            yield
        finally:
            self.own_s += self.leave(entered)

    def _reckoned(self) -> float:
        passed, opened = self._clock() - self._at, self.open
        self._shown_s = max(self._shown_s, self._told_s + (passed / opened if opened else 0.0))
        return self._shown_s
