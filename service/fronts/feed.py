"""What a gateway tells its fronts: all of it first, and then what changes, as it changes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import orjson

from service.access.authentication import Authenticator, KeyEntry
from service.errors import HatrackError
from service.fronts.entries import dump_adapter, dump_key
from service.fronts.topology import Topology
from service.fronts.wire import PROTOCOL, SIGN_OF_LIFE_S, Message
from service.http.peer_errors import dump_error
from service.registry.catalog import AdapterEntry, Catalog

PART: Final = 200
"""Entries in one message, and"""
PART_BYTES: Final = 256 * 1024
"""bytes in one, but for a single version that has more: a millisecond or two of the event loop, on either side."""
LOOK_S: Final = SIGN_OF_LIFE_S / 2
"""How often budgets, and the number of fronts, are looked at, s."""


Change: TypeAlias = tuple[Literal["put", "drop"], Any]
"""What a message has under `put` or `drop`, as JSON values."""
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Part(Generic[K, V]):
    """What one front has been told of keys, or of adapters, and what has changed since."""

    def __init__(self) -> None:
        self._told: Mapping[K, V] = {}
        self._pending: set[K] | None = None
        """Names that may be others now; None: all of them."""

    def note(self, changed: Collection[K] | None) -> None:
        """Something has changed."""
        if changed is None:
            self._pending = None
        elif self._pending is not None:
            self._pending.update(changed)

    def take(self, now: Mapping[K, V]) -> Iterator[tuple[K, V | None, V | None] | None]:
        """What is to be told to come to ``now``: names, with what was told of each and what is to be. Counts as told.

        With pauses (None) for others: a long list is looked through in pieces.
        """
        told, pending = self._told, self._pending
        self._told, self._pending = now, set()
        names: Iterable[K] = chain(told, now) if pending is None else pending
        for piece in _pieces(names):
            for name in piece:  # what a long list holds twice is told twice, and means the same
                if now.get(name) is not told.get(name):
                    yield name, told.get(name), now.get(name)
            yield None


@dataclass
class _Told:
    """What one front has been told so far."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    keys: _Part[bytes, KeyEntry] = field(default_factory=_Part)
    adapters: _Part[tuple[str, str], AdapterEntry] = field(default_factory=_Part)
    admin: bytes = b""
    spent: dict[str, Any] | None = None
    fronts: int = 0
    version: int = -1
    addresses: Mapping[str, str | None] = field(default_factory=dict)


class Feed:
    """Makes a feed for each front. All of it runs on the event loop's thread.

    Args:
        topology: Of the gateway.
        exhausted: What requests of each project with a spent budget are refused with.
        fronts: How many there are now.
        salts: The key of the prefix caches' salts.
        addresses: Of the agents that have announced themselves, by their engines; another mapping whenever it changes.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        catalog: Catalog,
        topology: Topology,
        *,
        exhausted: Callable[[], Mapping[str, HatrackError]],
        fronts: Callable[[], int],
        salts: bytes,
        addresses: Callable[[], Mapping[str, str | None]] = dict,
    ) -> None:
        self._authenticator = authenticator
        self._catalog = catalog
        self._topology = topology
        self._exhausted = exhausted
        self._fronts = fronts
        self._salts = salts
        self._addresses = addresses
        self._fed: dict[int, _Told] = {}
        self.epoch = secrets.token_hex(8)
        """Of this start of the gateway."""
        self.version = 0
        """Raised with each change of keys or adapters."""
        authenticator.on_change(self._keys_changed)
        catalog.on_change(self._adapters_changed)

    def _keys_changed(self, changed: Collection[bytes] | None) -> None:
        self.version += 1
        for told in self._fed.values():
            told.keys.note(changed)
            told.wake.set()

    def _adapters_changed(self, changed: Collection[tuple[str, str]] | None) -> None:
        self.version += 1
        for told in self._fed.values():
            told.adapters.note(changed)
            told.wake.set()

    def agents_changed(self) -> None:
        """An agent is at another address."""
        for told in self._fed.values():
            told.wake.set()

    async def lines(self) -> AsyncGenerator[bytes]:
        """One front's feed; it never ends."""
        told = _Told()
        self._fed[id(told)] = told
        try:
            yield _line({"t": "topology", "protocol": PROTOCOL, **self._topology.model_dump(mode="json")})
            while True:
                told.wake.clear()
                version, changed = self.version, False
                for message in self._changes(told):
                    if message is not None:
                        changed = True
                        yield _line(message)
                    await asyncio.sleep(0)
                if changed or version != told.version:  # also a version that changes nothing: somebody may wait for it
                    told.version = version
                    yield _line({"t": "ready", "epoch": self.epoch, "version": version})
                else:
                    yield _line({"t": "alive"})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await told.wake.wait()
        finally:
            del self._fed[id(told)]

    def _changes(self, told: _Told) -> Iterator[Message | None]:
        """What is to be told now, with pauses (None) for others; counts as told.

        What changes while a long list is being sent is told after it.
        """
        if self._authenticator.admin_hmac != told.admin:
            told.admin = self._authenticator.admin_hmac
            secret = self._authenticator.secret.hex()
            yield {"t": "auth", "secret": secret, "admin": told.admin.hex(), "salts": self._salts.hex()}
        yield from _messages("keys", _key_changes(told.keys.take(self._authenticator.entries)))
        yield from _messages("adapters", _adapter_changes(told.adapters.take(self._catalog.snapshot.adapters)))
        spent = {project: dump_error(error) for project, error in self._exhausted().items()}
        if told.spent is None or spent.keys() != told.spent.keys():
            told.spent = spent
            yield {"t": "budgets", "spent": spent}
        addresses = self._addresses()
        if addresses != told.addresses:
            told.addresses = addresses
            yield {"t": "agents", "addresses": addresses}
        if self._fronts() != told.fronts:
            told.fronts = self._fronts()
            yield {"t": "fronts", "count": told.fronts}


def _pieces(names: Iterable[K]) -> Iterator[list[K]]:
    """Lists of at most PART names."""
    rest = iter(names)
    while piece := list(islice(rest, PART)):
        yield piece


def _key_changes(changes: Iterable[tuple[bytes, KeyEntry | None, KeyEntry | None] | None]) -> Iterator[Change | None]:
    for change in changes:
        if change is None:
            yield None
            continue
        digest, _, entry = change
        yield ("drop", digest.hex()) if entry is None else ("put", [digest.hex(), dump_key(entry)])


def _adapter_changes(
    changes: Iterable[tuple[tuple[str, str], AdapterEntry | None, AdapterEntry | None] | None],
) -> Iterator[Change | None]:
    for change in changes:
        if change is None:
            yield None
            continue
        (project, name), former, entry = change
        if entry is None:
            yield "drop", [project, name]
            continue
        for part in dump_adapter(entry, former, PART_BYTES):
            yield "put", [project, part]


def _messages(kind: str, changes: Iterable[Change | None]) -> Iterator[Message | None]:
    """Messages of at most PART entries and about PART_BYTES, and pauses."""
    lists: dict[str, list[orjson.Fragment]] = {"put": [], "drop": []}
    count = size = 0
    for change in changes:
        if change is None:
            yield None
            continue
        where, value = change
        dumped = orjson.dumps(value)
        if count == PART or (count and size + len(dumped) > PART_BYTES):
            yield {"t": kind, **lists}
            lists = {"put": [], "drop": []}
            count = size = 0
        lists[where].append(orjson.Fragment(dumped))
        count += 1
        size += len(dumped)
    if count:
        yield {"t": kind, **lists}


def _line(message: Message) -> bytes:
    return orjson.dumps(message) + b"\n"
