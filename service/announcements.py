"""Agents that announce themselves to the gateway: which of its engines each is, and where.

The gateway's settings have the engines, their names and their bases (`agent = "announced"`), and with that how many
agents there can be at most; which of them runs, and on which machine, is somebody else's to decide, such as a cluster
manager's. ``service.engine.agent_wire`` has what is said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from pydantic import ValidationError

from adapters.validation import faults, message
from service.client.addresses import is_http, is_loopback, is_unix, on_this_machine
from service.config.cluster import ANNOUNCED
from service.engine.agent_wire import (
    ANNOUNCE_EVERY_S,
    ANNOUNCE_PATH,
    ANNOUNCE_TIMEOUT_S,
    PROTOCOL,
    Announcement,
)
from service.engine.remote import RemoteEngine
from service.errors import (
    BadRequest,
    Conflict,
    EngineUnavailable,
    MethodNotAllowed,
    NotFound,
    to_hatrack_error,
)
from service.fleet import EngineParts, Fleet
from service.http.signing import Verifier
from service.inference.exchange import ClientLeft, Exchange, Receive, Scope, Send

GONE_S: Final = 2.5 * ANNOUNCE_EVERY_S
"""An agent without a session that has announced nothing for so long is gone, s: another may take its place."""
RETURN_S: Final = ANNOUNCE_TIMEOUT_S + ANNOUNCE_EVERY_S + 1
"""How long after the gateway's start an agent of its former run may take to announce itself again, s: its last one may
have hung."""
MAX_BODY: Final = 4096
_LOG: Final = logging.getLogger("hatrack.engine")


@dataclass
class _Entry:
    """One engine of the settings, and the agent that it has now."""

    name: str
    base: str
    slots: int
    engine: RemoteEngine
    instance: str | None = None
    heard_at: float = 0.0
    displaced: str | None = None
    """The agent that announced the same address before. It has ended, unless it announces itself again."""


class Announcements:
    """Gives each agent that announces itself the place of an engine, and keeps it while the agent is there.

    Args:
        fleet: The gateway's engines.
        clock: Seconds, monotonic.
    """

    def __init__(self, fleet: Fleet, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries = {each.agent.name: entry for each in fleet.parts if (entry := _entry(each)) is not None}
        self._listeners: list[Callable[[], None]] = []
        self.addresses: Mapping[str, str | None] = {}
        """Of each engine whose agent has announced itself since the start; None: another one is there now."""
        self._opened_at: float | None = None

    def __bool__(self) -> bool:
        """Whether any agent may announce itself."""
        return bool(self._entries)

    def open(self) -> None:
        """The gateway can be reached from now on: RETURN_S counts from here, as its start may have taken longer."""
        self._opened_at = self._clock()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever ``addresses`` is another."""
        self._listeners.append(listener)

    def announce(self, told: Announcement, *, is_here: bool = True) -> str:
        """Take in what an agent says; returns the name of the engine that it is.

        Args:
            is_here: It runs on this machine.

        Raises:
            BadRequest: It cannot be understood.
            NotFound, Conflict: It is none of the gateway's engines, or another agent is that one.
            EngineUnavailable: All engines of its base have agents, or may have: the gateway has just started.
        """
        if told.protocol != PROTOCOL:
            raise BadRequest(
                f"the agent uses protocol {told.protocol}, this gateway {PROTOCOL}; run the same version of Hatrack on "
                "both sides",
                code="agent_protocol",
            )
        _check_address(told.address, is_here=is_here)
        held = next((each for each in self._entries.values() if each.instance == told.instance), None)
        if told.leaving:
            if held is not None:
                self._move(held, None)
            return told.last or ""
        if any(self._is_displaced(told.instance, by=each) for each in self._entries.values()):
            raise Conflict(
                f"another agent announces the address {told.address[:100]!r}, too, and started later; give each agent "
                "its own (HATRACK_AGENT_URL)",
                code="agent_address",
            )
        entry = held or self._place(told)
        if entry is not held:
            _LOG.info("an agent has announced itself", extra={"engine": entry.name, "address": told.address})
            entry.displaced = entry.instance if entry.engine.address == told.address else None
        self._move(entry, told.address)
        entry.instance, entry.heard_at = told.instance, self._clock()
        return entry.name

    def why_unused(self, name: str) -> str | None:
        """Why the gateway sends an engine no requests; None: it does."""
        entry = self._entries.get(name)
        return None if entry is None or entry.engine.ready else entry.engine.state.reason

    def _is_displaced(self, instance: str, *, by: _Entry) -> bool:
        """Whether an engine's agent, which is still heard, has the address that this one had before."""
        return by.displaced == instance and self._clock() - by.heard_at < GONE_S

    def _place(self, told: Announcement) -> _Entry:
        """The engine that an agent becomes that is none yet."""
        free = [entry for entry in self._candidates(told) if not self._is_held(entry, told)]
        if not free:
            raise EngineUnavailable(
                f"{'the engine' if told.name else 'each engine of the base'} `{told.name or told.base}` has an agent; "
                f'add an entry with `agent = "{ANNOUNCED}"` to the file of HATRACK_ENGINES, or stop one',
                code="no_free_engine",
            )
        fitting = [entry for entry in free if entry.slots == told.slots]
        if not fitting:
            raise Conflict(
                f"the agent's engine has {told.slots} adapter slots (HATRACK_ENGINE_SLOTS); the engines that are free "
                f"for it have {', '.join(f'{entry.slots} (`{entry.name}`)' for entry in free)}",
                code="agent_slots",
            )
        unclaimed = [entry for entry in fitting if not self._may_return(entry, told)]
        if not unclaimed:
            raise EngineUnavailable(
                f"the gateway started less than {RETURN_S:g} s ago, and each free engine of the base `{told.base}` may "
                "still have an agent that has not announced itself again; retry (`hatrack agent` does so every "
                f"{ANNOUNCE_EVERY_S:g} s)"
            )
        return min(unclaimed, key=lambda each: (each.engine.address != told.address, each.name != told.last))

    def _candidates(self, told: Announcement) -> list[_Entry]:
        """The engines that an agent may become by its name and base, free or not."""
        of_base = [entry for entry in self._entries.values() if entry.base == told.base]
        if told.name is not None:
            entry = self._named(told.name)
            if entry not in of_base:
                raise Conflict(
                    f"the engine `{entry.name}` has the base `{entry.base}`; the agent serves `{told.base}` "
                    "(HATRACK_BASE_MODEL, HATRACK_BASE_NAME)",
                    code="agent_base",
                )
            return [entry]
        if not of_base:
            bases = sorted({entry.base for entry in self._entries.values()})
            raise Conflict(
                f'no engine with `agent = "{ANNOUNCED}"` has the base `{told.base}`; those that may be announced have '
                f"{', '.join(f'`{base}`' for base in bases)}",
                code="agent_base",
            )
        return of_base

    def _named(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(
                f"no engine `{name}` may be announced to this gateway; those that may are "
                f"{', '.join(f'`{each}`' for each in self._entries)} (HATRACK_ENGINES)",
                code="unknown_engine",
            )
        return entry

    def _is_held(self, entry: _Entry, told: Announcement) -> bool:
        """Whether another agent than the one that asks is this engine. At one address there is only one."""
        if entry.instance is None or entry.engine.address == told.address:
            return False
        return entry.engine.link.session is not None or self._clock() - entry.heard_at < GONE_S

    def _may_return(self, entry: _Entry, told: Announcement) -> bool:
        """Whether an engine may be that of another agent, which this gateway has not heard since its own start.

        The gateway does not store where agents are. Were the engine given away, fronts would leave its agent, and its
        streams would be cut.
        """
        if entry.name in (told.name, told.last) or entry.name in self.addresses:
            return False
        return self._opened_at is None or self._clock() - self._opened_at < RETURN_S

    def _move(self, entry: _Entry, address: str | None) -> None:
        changed: dict[str, str | None] = {}
        for each in self._entries.values():
            if each is entry:
                new = address
            elif address is not None and each.engine.address == address:
                new = None  # its port is another's now
            else:
                continue
            if new is None:
                each.instance = each.displaced = None
            if each.engine.address != new:
                each.engine.move(new)
                changed[each.name] = new
        if changed:
            self.addresses = {**self.addresses, **changed}
            for listener in self._listeners:
                listener()


def _entry(each: EngineParts) -> _Entry | None:
    if not isinstance(each.watched, RemoteEngine) or each.agent.settings.engine_agent != ANNOUNCED:
        return None
    return _Entry(each.agent.name, each.base.served_name, each.watched.config.slots, each.watched)


class AnnouncementsApp:
    """Hears the agents: a bare ASGI app beside the API, every request of which is signed.

    Args:
        verifier: Of HATRACK_AGENT_KEY.
    """

    def __init__(self, verifier: Verifier, announcements: Announcements) -> None:
        self._verifier = verifier
        self.announcements = announcements

    def handles(self, scope: Scope) -> bool:
        """True for an agent's request."""
        return bool(scope["type"] == "http" and scope["path"] == ANNOUNCE_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} is not allowed here")
            check_body = self._verifier.verify(exchange.headers, "POST", exchange.path, once=True)
            body = await exchange.read_json_body(MAX_BODY)
            check_body(body)
            name = self.announcements.announce(_read(body), is_here=_is_here(scope))
            answer = {"name": name, "unused": self.announcements.why_unused(name)}
            await exchange.answer(200, orjson.dumps(answer))
        except ClientLeft:
            return
        except Exception as error:
            await exchange.fail(to_hatrack_error(error, exchange.request_id))


def _check_address(address: str, *, is_here: bool) -> None:
    """Raise BadRequest if no agent can be at an address, or none that runs elsewhere."""
    if not (is_http(address) or is_unix(address)):
        raise BadRequest(
            f"`address` must be http://host:port, https://host:port or unix:/path; got {address[:100]!r}",
            param="address",
        )
    if not is_here and (is_unix(address) or on_this_machine(address)):
        raise BadRequest(
            f"`address` must be one that the gateway reaches, which runs on another machine; got {address[:100]!r} "
            "(`hatrack agent --host`, or HATRACK_AGENT_URL)",
            param="address",
        )


def _is_here(scope: Scope) -> bool:
    """Whether a request comes from this machine: over a Unix socket, or from the address that it was sent to."""
    client, server = scope.get("client"), scope.get("server")
    return not client or is_loopback(client[0]) or (server is not None and client[0] == server[0])


def _read(body: bytes) -> Announcement:
    try:
        return Announcement.model_validate_json(body)
    except ValidationError as error:
        fault = faults(error)[0]
        field = ".".join(map(str, fault["loc"]))
        raise BadRequest(f"`{field}`: {message(fault)}", param=field or None) from error
