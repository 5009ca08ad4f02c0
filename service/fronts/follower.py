"""Follows a gateway's feed: what a front knows, and how old that is."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from service.access.authentication import Authenticator, KeyEntry
from service.access.caller import Caller
from service.errors import Unavailable
from service.fronts.entries import load_adapter, load_key
from service.fronts.link import GatewayAway, GatewayLink, GatewaySilent
from service.fronts.topology import Topology
from service.fronts.wire import PROTOCOL, Message
from service.http.peer_errors import load_error
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot

RECONNECT_S: Final = (0.1, 0.3, 1.0, 2.0)
CATCH_UP_S: Final = 2 * RECONNECT_S[-1]
"""How long an answer waits for what it says to be known, s: a gateway that has just started is found by then."""
_LOG: Final = logging.getLogger("hatrack.front")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What keys and salts are derived with."""

    keys: bytes
    salts: bytes


@dataclass
class _Known:
    """What one feed has told so far."""

    topology: Topology | None = None
    secrets: Secrets | None = None
    admin: bytes = b""
    keys: dict[bytes, KeyEntry] = field(default_factory=dict)
    adapters: dict[tuple[str, str], AdapterEntry] = field(default_factory=dict)
    keys_changed: bool = True
    adapters_changed: bool = True


@dataclass
class View:
    """The keys and adapters that the data path reads.

    ``former`` is that of the data path that still answers in place of this one's; None: this one's answers.
    """

    authenticator: Authenticator
    catalog: Catalog
    former: View | None = None

    def load_keys(self, keys: Mapping[bytes, KeyEntry], admin: bytes) -> None:
        """Answer to these keys, from the next request on, and to no others."""
        self.authenticator.load(keys)
        self.authenticator.set_admin_hmac(admin)
        if self.former is not None:
            self.former.load_keys(keys, admin)

    def load_adapters(self, snapshot: CatalogSnapshot) -> None:
        """Answer by these adapters, from the next request on."""
        self.catalog.replace(snapshot)
        if self.former is not None:
            self.former.load_adapters(snapshot)


class Follower:
    """Keeps a front's view of its gateway up to date.

    Args:
        link: To the gateway.
        max_age_s: HATRACK_FRONT_MAX_AGE_S.
        make_view: Called with the topology and the secrets, at first and whenever they are others; returns the view
            that is kept up to date from then on.
        cut: Called when the gateway falls silent: whoever waits for its answer would wait for ever.
        move_agents: Called with the addresses of agents that announce themselves, by their engines, whenever they are
            others.
    """

    def __init__(
        self,
        link: GatewayLink,
        max_age_s: float,
        make_view: Callable[[Topology, Secrets], Awaitable[View]],
        cut: Callable[[], Awaitable[None]],
        move_agents: Callable[[Mapping[str, str | None]], None] = lambda _: None,
    ) -> None:
        self._link = link
        self._max_age_s = max_age_s
        self._make_view = make_view
        self._cut = cut
        self._is_silent = False
        self._move_agents = move_agents
        self._made: tuple[Topology, Secrets] | None = None
        self._view: View | None = None
        self._spent: dict[str, Any] = {}
        """What requests of projects with a spent budget are refused with, as JSON."""
        self._spent_at = 0.0
        self._heard_at = -math.inf
        self.fronts = 1
        """How many fronts the gateway has."""
        self.trouble: str | None = "not connected to the gateway yet"
        """Why nothing is heard now; None: the feed is read."""
        self.version = 0
        """Of what is known; the gateway's count."""
        self._epoch = ""
        """Of the gateway's start that counts so."""
        self._former_epoch = ""
        """Of the start before it, of which nothing more is told."""
        self._told = asyncio.Event()
        """Another one for each version."""

    @property
    def age_s(self) -> float:
        """Seconds since the gateway was heard; infinite until all was told once."""
        return math.inf if self._view is None else time.monotonic() - self._heard_at

    @property
    def fresh(self) -> bool:
        """Whether what is known may still be acted on."""
        return self.age_s <= self._max_age_s

    def require_fresh(self) -> None:
        """Raise Unavailable if what is known is too old."""
        if not self.fresh:
            since = "yet" if self._view is None else f"for {self.age_s:.0f} s (HATRACK_FRONT_MAX_AGE_S)"
            raise Unavailable(
                f"this front has not heard from its gateway {since}: {self.trouble}", code="gateway_unavailable"
            )

    def require_answers(self) -> None:
        """Raise GatewayAway if the gateway has fallen silent: a request that is passed on would wait in vain."""
        if self._is_silent:
            raise GatewayAway(f"the gateway does not answer: {self.trouble}")

    async def catch_up(self, epoch: str, version: int) -> None:
        """Wait until what is known is of this version, at most CATCH_UP_S; not where nothing is told any more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                while epoch != self._former_epoch and (self._epoch != epoch or self.version < version):
                    if self.trouble is not None and self.age_s > CATCH_UP_S:
                        return
                    await self._told.wait()

    def check(self, caller: Caller) -> None:
        """Refuse what the gateway would refuse before it looks at a request: a spent budget.

        Raises:
            Unavailable: What is known is too old.
            QuotaSpent: As the gateway says.
        """
        self.require_fresh()
        if self._spent and not caller.background:
            refusal = self._spent.get(caller.project)
            if refusal is not None:  # each time a new one: an exception keeps the frames through which it was raised
                error = load_error(refusal)
                if (left := error.headers.get("retry-after", "")).isdecimal():
                    error.headers["retry-after"] = str(max(1, int(left) - int(time.monotonic() - self._spent_at)))
                raise error

    async def run(self) -> None:
        """Follow the feed, again and again, until cancelled."""
        failures = 0
        while True:
            try:
                await self._follow()
            except GatewayAway as error:
                trouble = error.message
                self._is_silent = isinstance(error, GatewaySilent)
            except (KeyError, TypeError, ValueError, ValidationError) as error:
                trouble = f"the gateway's feed cannot be read: {type(error).__name__}: {_fault(error)[:200]}"
            except Exception as error:
                _LOG.exception("following the gateway failed")
                trouble = f"following the gateway failed: {type(error).__name__}"
            failures = 0 if self.trouble is None else failures + 1
            if trouble != self.trouble:
                _LOG.warning("the gateway is not heard", extra={"reason": trouble, "gateway": self._link.address})
            self.trouble = trouble
            if self._is_silent:
                await self._cut()
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])

    async def _follow(self) -> None:
        """One feed. Always raises."""
        known = _Known()
        async with aclosing(self._link.feed()) as feed:
            async for message in feed:
                await self._hear(known, message)
        raise GatewayAway("the gateway has ended the feed")

    async def _hear(self, known: _Known, message: Message) -> None:
        kind = message["t"]
        self._is_silent = False
        if kind in ("ready", "alive"):
            if kind == "ready":
                await self._take_over(known)
                if self._epoch != message["epoch"]:
                    self._former_epoch, self._epoch = self._epoch, message["epoch"]
                self.version = message["version"]
                self._told.set()
                self._told = asyncio.Event()
            self._heard_at = time.monotonic()
        elif kind == "topology":
            _require_protocol(message.pop("protocol"))
            known.topology = Topology.model_validate({name: value for name, value in message.items() if name != "t"})
        elif kind == "auth":
            known.secrets = Secrets(bytes.fromhex(message["secret"]), bytes.fromhex(message["salts"]))
            known.admin, known.keys_changed = bytes.fromhex(message["admin"]), True
        elif kind == "keys":
            for digest in message["drop"]:
                known.keys.pop(bytes.fromhex(digest), None)
            known.keys.update((bytes.fromhex(digest), load_key(key)) for digest, key in message["put"])
            known.keys_changed = True
            await asyncio.sleep(0)  # many of these come at once, and requests go on
        elif kind == "adapters":
            for project, name in message["drop"]:
                known.adapters.pop((project, name), None)
            for project, dumped in message["put"]:
                name = dumped["name"]
                known.adapters[project, name] = load_adapter(dumped, known.adapters.get((project, name)))
            known.adapters_changed = True
            await asyncio.sleep(0)
        elif kind == "budgets":
            self._spent, self._spent_at = dict(message["spent"]), time.monotonic()
        elif kind == "agents":
            self._move_agents({str(name): address for name, address in message["addresses"].items()})
        elif kind == "fronts":
            self.fronts = max(1, int(message["count"]))

    async def _take_over(self, known: _Known) -> None:
        """Act on what was told from now on: between two requests, all of it at once."""
        if known.topology is None or known.secrets is None:
            raise GatewayAway("the gateway's feed lacks its topology or its keys")
        wanted = (known.topology, known.secrets)
        if self._view is None or self._made != wanted:
            self._made = None  # if making it fails, what was made before may be gone
            self._view, self._made = await self._make_view(*wanted), wanted
            known.keys_changed = known.adapters_changed = True
        if known.keys_changed:
            self._view.load_keys(dict(known.keys), known.admin)
        if known.adapters_changed:
            self._view.load_adapters(CatalogSnapshot(MappingProxyType(dict(known.adapters))))
        known.keys_changed = known.adapters_changed = False
        if self.trouble is not None:
            _LOG.info("the gateway is heard", extra={"gateway": self._link.address, "adapters": len(known.adapters)})
            self.trouble = None


def _fault(error: Exception) -> str:
    """What is wrong, without the values: they may be a system prompt, and anyone may read `/readyz`."""
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)


def _require_protocol(protocol: Any) -> None:
    if protocol != PROTOCOL:
        raise GatewayAway(
            f"the gateway uses protocol {protocol!r}, this front {PROTOCOL}; run the same version of Hatrack on both "
            "sides"
        )
