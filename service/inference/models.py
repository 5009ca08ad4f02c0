"""`GET /v1/models`: the base, and what a caller may ask for beside it; `type` says what for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from adapters.names import DEFAULT_ALIAS
from service.access.buckets import Bucket
from service.access.caller import Caller
from service.errors import Conflict, RateLimited
from service.registry.catalog import AdapterEntry, Catalog, ResolvedName, Servable
from service.registry.split import versions_of

OWNER = "hatrack"
CHAT, EMBEDDING = "chat", "embedding"
"""What a model is for: everything that generates, or `/v1/embeddings` alone."""
MAX_KEPT_BYTES: Final = 16 * 2**20
"""Of written lists, together; the list of 10,000 adapters has 1.4 MB."""

LIST_MS_PER_MINUTE: Final = 3000
"""How long the event loop writes lists for one key, and for one client address, ms a minute: 5% of its time."""
MAX_BUCKETS: Final = 4096


class WrittenLists:
    """The list of models as JSON, written once for all requests that see the same, until the catalog changes.

    To write one of 10,000 adapters takes 12 to 30 ms, in which the event loop serves nobody else: how much of its time
    goes to lists of one key or client address is bounded.
    """

    def __init__(self, catalog: Catalog, clock: Callable[[], float] = time.perf_counter) -> None:
        self._catalog = catalog
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        """Milliseconds of the loop that are left to a key or an address, the least recently charged first."""
        self._snapshot = catalog.snapshot
        self._written: dict[tuple[str, tuple[str, ...] | None], bytes] = {}
        """By project and globs, the least recently asked for first."""
        self._bytes = 0

    def body(self, caller: Caller, peer: str) -> bytes:
        """What `GET /v1/models` answers the caller. Raises RateLimited: too much time went to lists that it asked for.

        Args:
            peer: The client's address; empty: it has none.
        """
        if self._snapshot is not self._catalog.snapshot:
            self._snapshot, self._written, self._bytes = self._catalog.snapshot, {}, 0
        key = (caller.project, caller.adapters)
        body = self._written.pop(key, None)
        if body is None:
            body = self._write(caller, [f"key {caller.key_id}", *([f"address {peer}"] if peer else [])])
            self._bytes += len(body)
        self._written[key] = body
        while self._bytes > MAX_KEPT_BYTES and len(self._written) > 1:
            self._bytes -= len(self._written.pop(next(iter(self._written))))
        return body

    def _write(self, caller: Caller, payers: Sequence[str]) -> bytes:
        """The list, written anew. Raises RateLimited."""
        began = self._clock()
        buckets = [self._buckets.pop(payer, Bucket(LIST_MS_PER_MINUTE, began)) for payer in payers]
        self._buckets.update(zip(payers, buckets, strict=True))
        while len(self._buckets) > MAX_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        for bucket in buckets:
            bucket.fill(began)
        wait_s = max(bucket.wait_s(1) for bucket in buckets)
        if wait_s > 0:
            raise RateLimited(
                "this key, or this client address, has asked for long lists of models too often; ask for one model, or "
                f"again in {math.ceil(wait_s)} s",
                headers={"retry-after": str(math.ceil(wait_s))},
            )
        body = orjson.dumps(list_models(self._catalog, caller))
        for bucket in buckets:
            bucket.level -= 1000 * (self._clock() - began)
        return body


def list_models(catalog: Catalog, caller: Caller) -> dict[str, Any]:
    """OpenAI's list of models: the bases, then the adapters with a live version, oldest first, then the embedder."""
    cards = [_base(catalog, name) for name in catalog.bases]
    for entry in catalog.served(caller):
        live = ResolvedName(entry, DEFAULT_ALIAS, entry.aliases[DEFAULT_ALIAS])
        cards.append(_card(entry.name, entry.created_at, root=_root(live), parent=_parent(catalog, live)))
    if catalog.embedder_name is not None and catalog.is_embedder(caller, catalog.embedder_name):
        cards.append(_embedder(catalog, catalog.embedder_name))
    return {"object": "list", "data": cards}


def show_model(catalog: Catalog, caller: Caller, model: str) -> dict[str, Any]:
    """OpenAI's model object for the base, the embedder, `name`, `name@2` or `name:alias`.

    Raises:
        ModelNotFound, NoLiveVersion, Conflict: As for an inference request that asks for it. A split alias is shown as
            long as one of its versions can serve.
    """
    if model in catalog.bases:
        return _base(catalog, model)
    if catalog.is_embedder(caller, model):
        return _embedder(catalog, model)
    resolved = catalog.find(caller, model)
    entry, target = resolved.entry, resolved.target
    if isinstance(target, int):
        catalog.resolve(caller, model)  # one that cannot serve is refused here as it is there
        created = entry.created_at if model == entry.name else entry.versions[target].created_at
    else:
        _check_servable(entry, target.versions, model)
        created = entry.created_at
    return _card(model, created, root=_root(resolved), parent=_parent(catalog, resolved))


def _check_servable(entry: AdapterEntry, numbers: tuple[int, ...], model: str) -> None:
    states = [entry.versions[number].servable for number in numbers]
    if Servable.OK not in states:
        raise Conflict(
            f"no version of `{model}` can serve at the moment: {', '.join(state.value for state in states)}",
            param="model",
            code=f"version_{states[0].value}",
        )


def _root(resolved: ResolvedName) -> str:
    """The version behind a name; of a split, which has several, the alias."""
    name, target = resolved.entry.name, resolved.target
    return f"{name}@{target}" if isinstance(target, int) else f"{name}:{resolved.alias}"


def _parent(catalog: Catalog, resolved: ResolvedName) -> str | None:
    """The base of the version behind a name; of a split's first. None: it is not served now."""
    first = resolved.entry.versions[versions_of(resolved.target)[0]]
    return None if first.servable is Servable.OTHER_BASE else first.base or catalog.base_name


def _base(catalog: Catalog, name: str) -> dict[str, Any]:
    return _card(name, catalog.bases[name], root=name, parent=None)


def _embedder(catalog: Catalog, name: str) -> dict[str, Any]:
    """It has no date of its own: the base's stands for when this installation was made."""
    return _card(name, catalog.bases[catalog.base_name], root=name, parent=None, kind=EMBEDDING)


def _card(name: str, created: int, *, root: str, parent: str | None, kind: str = CHAT) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": created, "owned_by": OWNER, "root": root, "parent": parent}
    return {**card, "type": kind}
