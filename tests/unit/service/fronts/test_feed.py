"""How much a feed tells at a time, and when a front acts on it."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import aiohttp
import orjson
import pytest

from service.access.authentication import Authenticator
from service.fronts import feed as feed_module
from service.fronts import link as link_module
from service.fronts.entries import dump_key
from service.fronts.follower import Follower, Secrets, View, _Known
from service.fronts.link import GatewayAway, GatewayLink, _lines
from service.fronts.topology import Topology
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot, Servable, VersionEntry, VersionSettings
from tests.unit.service.fronts.support import FRONT_KEY, Cluster
from tests.unit.service.fronts.test_entries import PLAIN, KeyEntry, adapter, parts, version

PROMPT = "x" * 30_000


async def test_no_adapter_is_too_large_for_a_feed(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions without weights cost their tenant nothing: all fronts must be able to take in as many as he likes."""
    monkeypatch.setattr(feed_module, "PART_BYTES", 40_000)
    monkeypatch.setattr(link_module, "MAX_LINE", 200_000)
    written, line = [], feed_module._line

    def measured(message: Any) -> bytes:
        written.append(line(message))
        return written[-1]

    monkeypatch.setattr(feed_module, "_line", measured)
    front, feed = await made.front(), made.gateway.app._peers[0].feed  # type: ignore[attr-defined]
    catalog, name = feed._catalog, ("default", "voice")
    versions = {number: settings_version(number) for number in range(1, 41)}

    async def replace(entry: AdapterEntry) -> None:
        written.clear()
        catalog.replace(CatalogSnapshot(MappingProxyType({name: entry})), changed={name})
        await front.front.follower.catch_up(feed.epoch, feed.version)
        path = front.front._path
        assert path is not None
        assert path.view.catalog.snapshot == catalog.snapshot

    await replace(AdapterEntry("voice", 1, MappingProxyType(versions), MappingProxyType({"live": 40})))
    assert len(written) > 20
    assert max(map(len, written)) < 80_000, "a part, and no more than one version beyond it"
    more = {**versions, 41: settings_version(41)}
    await replace(AdapterEntry("voice", 1, MappingProxyType(more), MappingProxyType({"live": 41})))
    assert sum(map(len, written)) < 80_000, "the other versions are not told again"
    again = await made.front()
    assert (await again.chat("voice")).status_code == 200


def settings_version(number: int) -> VersionEntry:
    return VersionEntry(number, None, VersionSettings(system_prompt=PROMPT), Servable.OK, 1, flow=f"f{number}")


async def test_parts_of_one_change_take_effect_together() -> None:
    view = View(Authenticator("", b"k"), Catalog("base", 1))

    async def make(_topology: Topology, _secrets: Secrets) -> View:
        return view

    async def cut() -> None:
        """Nothing is waited for."""

    follower = Follower(GatewayLink("http://127.0.0.1:1", FRONT_KEY, "front"), 60, make, cut)
    topology = Topology(version="1", policy={}, embedder=None, bases=(), engines=())
    known, ready = _Known(topology, Secrets(b"k", b"s")), {"t": "ready", "epoch": "e", "version": 1}
    former = adapter(version(1), live=1)
    for part in parts(former, None):
        await follower._hear(known, {"t": "adapters", "put": [["default", part]], "drop": []})
    await follower._hear(known, ready)
    now = adapter(version(1, "another"), version(2), live=2)
    await follower._hear(known, {"t": "keys", "put": [[b"h".hex(), dump_key(KeyEntry(PLAIN))]], "drop": []})
    for part in parts(now, former, 1):
        await follower._hear(known, {"t": "adapters", "put": [["default", part]], "drop": []})
        assert view.catalog.snapshot.adapters["default", "voice"] == former
        assert not view.authenticator.entries
    await follower._hear(known, ready)
    assert view.catalog.snapshot.adapters["default", "voice"] == now
    assert list(view.authenticator.entries) == [b"h"]


async def lines_of(*chunks: bytes) -> list[bytes]:
    left = [*chunks, b""]

    async def readany() -> bytes:
        return left.pop(0)

    answer = cast(aiohttp.ClientResponse, SimpleNamespace(content=SimpleNamespace(readany=readany)))
    return [line async for line in _lines(answer)]


async def test_lines_come_in_any_pieces() -> None:
    text = b"".join(orjson.dumps({"n": number}) + b"\n" for number in range(9))
    for size in (1, 5, 8, 9, 20, len(text)):
        cut = [text[start : start + size] for start in range(0, len(text), size)]
        assert await lines_of(*cut) == text.splitlines(), size
    assert await lines_of(text + b"half") == text.splitlines(), "what has not ended is none"


async def test_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_LINE", 100)
    assert await lines_of(b"x" * 100 + b"\n", b"x" * 60, b"x" * 40 + b"\n") == [b"x" * 100] * 2
    with pytest.raises(GatewayAway, match="has no lines"):
        await lines_of(b"x" * 60, b"x" * 41)
