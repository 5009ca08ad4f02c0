"""What a gateway tells its fronts: all of it first, and then what changes, as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from service.access.authentication import Authenticator, KeyEntry
from service.errors import HatrackError
from service.fronts.entries import dump_adapter, dump_key
from service.fronts.topology import Topology
from service.fronts.wire import PROTOCOL, SIGN_OF_LIFE_S, Message
from service.http.peer_errors import dump_error
from service.registry.catalog import AdapterEntry, Catalog

PART: Final = 200
"""Entries in one message: a millisecond or two of the event loop."""
LOOK_S: Final = SIGN_OF_LIFE_S / 2
"""How often budgets, and the number of fronts, are looked at, s."""


@dataclass
class _Told:
    """What one front has been told so far."""

    keys: Mapping[bytes, KeyEntry] = field(default_factory=dict)
    adapters: Mapping[tuple[str, str], AdapterEntry] = field(default_factory=dict)
    admin: bytes = b""
    spent: dict[str, Any] | None = None
    fronts: int = 0


class Feed:
    """Makes a feed for each front. All of it runs on the event loop's thread.

    Args:
        topology: Of the gateway.
        exhausted: What requests of each project with a spent budget are refused with.
        fronts: How many there are now.
        salts: The key of the prefix caches' salts.
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
    ) -> None:
        self._authenticator = authenticator
        self._catalog = catalog
        self._topology = topology
        self._exhausted = exhausted
        self._fronts = fronts
        self._salts = salts
        self._wakes: set[asyncio.Event] = set()
        self.version = 0
        """Raised with each change of keys or adapters."""
        authenticator.on_change(self._changed)
        catalog.on_change(self._changed)

    def _changed(self) -> None:
        self.version += 1
        for wake in self._wakes:
            wake.set()

    async def lines(self) -> AsyncGenerator[bytes]:
        """One front's feed; it never ends."""
        told, wake = _Told(), asyncio.Event()
        self._wakes.add(wake)
        try:
            yield _line({"t": "topology", "protocol": PROTOCOL, **self._topology.model_dump(mode="json")})
            while True:
                wake.clear()
                version, changed = self.version, False
                for message in self._changes(told):
                    changed = True
                    yield _line(message)
                    await asyncio.sleep(0)
                yield _line({"t": "ready", "version": version} if changed else {"t": "alive"})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await wake.wait()
        finally:
            self._wakes.discard(wake)

    def _changes(self, told: _Told) -> Iterator[Message]:
        """What is to be told now; counts as told."""
        if self._authenticator.admin_hmac != told.admin:
            told.admin = self._authenticator.admin_hmac
            secret = self._authenticator.secret.hex()
            yield {"t": "auth", "secret": secret, "admin": told.admin.hex(), "salts": self._salts.hex()}
        # taken now: what changes while a long list is being sent is told after it
        keys, adapters = self._authenticator.entries, self._catalog.snapshot.adapters
        known_keys, known_adapters = told.keys, told.adapters
        told.keys, told.adapters = keys, adapters
        if keys is not known_keys:
            put_keys = [(digest, entry) for digest, entry in keys.items() if known_keys.get(digest) is not entry]
            dropped_keys = [digest.hex() for digest in known_keys if digest not in keys]
            yield from _parts("keys", put_keys, dropped_keys, lambda key: [key[0].hex(), dump_key(key[1])])
        if adapters is not known_adapters:
            put = [(name[0], entry) for name, entry in adapters.items() if known_adapters.get(name) is not entry]
            dropped = [list(name) for name in known_adapters if name not in adapters]
            yield from _parts("adapters", put, dropped, lambda each: [each[0], dump_adapter(each[1])])
        spent = {project: dump_error(error) for project, error in self._exhausted().items()}
        if told.spent is None or spent.keys() != told.spent.keys():
            told.spent = spent
            yield {"t": "budgets", "spent": spent}
        if self._fronts() != told.fronts:
            told.fronts = self._fronts()
            yield {"t": "fronts", "count": told.fronts}


def _parts(kind: str, put: Sequence[Any], dropped: Sequence[Any], dump: Callable[[Any], Any]) -> Iterator[Message]:
    """Messages of at most PART entries; what is dropped goes first."""
    if dropped:
        yield {"t": kind, "put": [], "drop": list(dropped)}
    for start in range(0, len(put), PART):
        yield {"t": kind, "put": [dump(each) for each in put[start : start + PART]], "drop": []}


def _line(message: Message) -> bytes:
    return orjson.dumps(message) + b"\n"
