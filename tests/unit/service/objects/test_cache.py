"""What stays, what goes, and who waits for whom; the transfers are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

import pytest

from service.errors import Conflict, HatrackError, StoreUnavailable
from service.objects.cache import Copies, LocalCache
from service.telemetry import metrics
from service.telemetry.component_sources import ObjectsSource
from tests.unit.service.telemetry.support import read, value

SIZE = 10


@dataclass
class Bucket:
    """A store of objects of SIZE bytes each, that brings one whenever it is allowed to."""

    allowed: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: list[str] = field(default_factory=list)
    here: set[str] = field(default_factory=set)
    failure: HatrackError | None = None
    loaded: Collection[str] | None = frozenset()

    async def fetch(self, name: str) -> int:
        self.fetched.append(name)
        await self.allowed.wait()
        if self.failure is not None:
            raise self.failure
        self.here.add(name)
        return SIZE

    def remove(self, name: str) -> None:
        self.here.discard(name)


@dataclass
class Cached:
    bucket: Bucket
    cache: LocalCache
    copies: Copies

    async def use(self, *names: str) -> None:
        for name in names:
            async with self.copies.holding(name):
                pass
            await self.cache.trim()


@pytest.fixture
async def cached() -> AsyncIterator[Cached]:
    bucket, cache = Bucket(), LocalCache(3 * SIZE)
    bucket.allowed.set()
    copies = Copies(cache, "adapter", bucket.fetch, bucket.remove, lambda: bucket.loaded)
    yield Cached(bucket, cache, copies)
    cache._threads.shutdown()


async def test_the_least_recently_used_copy_goes_first(cached: Cached) -> None:
    await cached.use("a", "b", "c", "a", "d")
    assert cached.bucket.here == {"a", "c", "d"}
    assert cached.cache.bytes == 3 * SIZE
    await cached.use("b")
    assert cached.bucket.fetched == ["a", "b", "c", "d", "b"]


async def test_what_is_held_or_loaded_stays_also_beyond_the_bound(cached: Cached) -> None:
    cached.bucket.loaded = {"b"}
    await cached.copies.hold("a")
    await cached.use("b", "c", "d", "e")
    assert cached.bucket.here == {"a", "b", "e"}
    cached.cache.max_bytes = 0
    await cached.cache.trim()
    assert cached.bucket.here == {"a", "b"}
    cached.copies.release("a")
    cached.bucket.loaded = ()
    await cached.cache.trim()
    assert cached.bucket.here == set()


async def test_nothing_goes_while_nobody_knows_what_the_engine_has_loaded(cached: Cached) -> None:
    cached.bucket.loaded = None
    await cached.use("a", "b", "c", "d")
    assert cached.bucket.here == {"a", "b", "c", "d"}


async def test_all_who_need_a_copy_wait_for_one_fetch(cached: Cached) -> None:
    cached.bucket.allowed.clear()
    waiting = [asyncio.create_task(cached.copies.hold("a")) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # it began the fetch
    await asyncio.sleep(0)
    cached.bucket.allowed.set()
    await asyncio.gather(*waiting[1:])
    assert cached.bucket.fetched == ["a"]
    assert cached.copies.is_held("a")
    for _ in waiting[1:]:
        cached.copies.release("a")
    assert not cached.copies.is_held("a")


async def test_a_fetch_holds_up_no_other_one(cached: Cached) -> None:
    cached.bucket.allowed.clear()
    cold = asyncio.create_task(cached.copies.hold("cold"))
    await asyncio.sleep(0)
    cached.copies.added("warm", SIZE)
    assert cached.copies.try_hold("warm")
    cached.bucket.allowed.set()
    await cold


async def test_a_store_that_was_just_away_is_not_asked_again_at_once(cached: Cached) -> None:
    cached.bucket.failure = StoreUnavailable("away", reason="test")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await cached.copies.hold("a")
    assert cached.bucket.fetched == ["a"]
    cached.cache._away_until = 0
    cached.bucket.failure = None
    await cached.use("a")
    assert cached.bucket.here == {"a"}


async def test_a_damaged_object_is_fetched_again_only_when_it_is_written_again(cached: Cached) -> None:
    cached.bucket.failure = Conflict("damaged")
    for _ in range(3):
        with pytest.raises(Conflict):
            await cached.copies.hold("a")
    assert cached.bucket.fetched == ["a"]
    assert cached.copies.is_failed("a")
    cached.bucket.failure = None
    async with cached.copies.writing("a"):
        cached.copies.added("a", SIZE)
    assert cached.copies.try_hold("a")
    assert not cached.copies.is_failed("a")


async def test_who_holds_a_copy_that_was_dropped_holds_no_later_one(cached: Cached) -> None:
    await cached.copies.hold("a")
    cached.copies.dropped("a")
    assert not cached.copies.try_hold("a")
    await cached.copies.hold("a")
    cached.copies.release("a")
    assert cached.copies.is_held("a")
    cached.copies.release("a")
    assert not cached.copies.is_held("a")
    assert cached.bucket.fetched == ["a", "a"]
    assert cached.cache.bytes == SIZE


async def test_two_kinds_share_the_bound(cached: Cached) -> None:
    other = Bucket()
    other.allowed.set()
    files = Copies(cached.cache, "file", other.fetch, other.remove)
    await cached.use("a", "b")
    async with files.holding("a"), files.holding("b"):
        await cached.cache.trim()
    assert (cached.bucket.here, other.here) == ({"b"}, {"a", "b"})


async def test_fetches_are_counted_by_how_they_ended(cached: Cached) -> None:
    await cached.use("a", "b", "c", "d", "d")
    cached.bucket.failure = Conflict("lost")
    with pytest.raises(Conflict):
        await cached.use("e")
    cached.bucket.failure = StoreUnavailable("away", reason="away")
    with pytest.raises(StoreUnavailable):
        await cached.use("f")
    with pytest.raises(StoreUnavailable):
        await cached.use("f")  # the store is not asked again so soon
    counts = cached.copies.counts
    assert counts.outcomes == {"fetched": 4, "failed": 1, "away": 1}
    assert (counts.bytes, counts.evicted, sum(counts.seconds.counts)) == (4 * SIZE, 1, 4)
    page = read(await ObjectsSource(cached.cache).families())
    assert value(page, "hatrack_object_fetches_total", kind="adapter", outcome="fetched") == 4
    assert value(page, "hatrack_object_cache_bytes", kind="adapter") == 3 * SIZE
    assert value(page, "hatrack_object_cache_limit_bytes") == 3 * SIZE
    assert not [*await ObjectsSource(None).families()]


async def test_every_metric_of_the_object_store_is_shown_with_a_sample(cached: Cached) -> None:
    """A gateway without one, as in integration/test_metrics.py, shows none of them."""
    await cached.use("a")
    families = {family.name: family for family in await ObjectsSource(cached.cache).families()}
    ours = {metric.name: metric.kind for metric in metrics.ALL if metric.name.startswith("hatrack_object_")}
    kinds = {name.removesuffix("_total"): kind for name, kind in ours.items()}
    assert {name: family.type for name, family in families.items()} == kinds
    assert all(family.samples for family in families.values())
