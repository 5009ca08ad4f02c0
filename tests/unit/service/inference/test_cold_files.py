"""An adapter's files that are in the object store alone: how long requests wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue, QueuePermit
from service.admission.request import AdmissionRequest
from service.config import Settings
from service.objects.cache import Copies, LocalCache
from tests.unit.service.inference.fakes import DIGESTS, World, completion, until

PATIENCE_S = 120


@dataclass
class Bucket:
    """Its objects come when they are allowed to."""

    allowed: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: list[str] = field(default_factory=list)

    async def fetch(self, name: str) -> int:
        self.fetched.append(name)
        await self.allowed.wait()
        return 10


@pytest.fixture
async def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
async def copies(bucket: Bucket) -> AsyncIterator[Copies]:
    cache = LocalCache(1000)
    yield Copies(cache, "adapter", bucket.fetch, lambda _: None)
    cache._threads.shutdown()


async def test_whoever_waits_for_files_waits_no_longer_than_in_the_queue(bucket: Bucket, copies: Copies) -> None:
    world = World(copies=copies, queue_timeout_s=0.05)
    world.engine.chunks = [completion("Ahoy")]
    async with asyncio.timeout(PATIENCE_S):
        late = await asyncio.gather(world.chat(), world.chat())
    assert {(each.status, each.error["code"]) for each in late} == {(503, "queue_timeout")}
    assert all("did not come from the object store in time" in each.error["message"] for each in late)
    assert all(int(each.headers["retry-after"]) >= 1 for each in late)
    assert world.engine.asked == []
    bucket.allowed.set()  # nobody waits for it any more
    await until(lambda: copies.is_here(DIGESTS[3]))
    assert not copies.is_held(DIGESTS[3])
    assert (await world.chat()).status == 200
    assert bucket.fetched == [DIGESTS[3]], "one fetch for all, which went on"


class RecordingQueue(AdmissionQueue):
    """Remembers how long a request would have waited in it."""

    patience_s = 0.0

    def try_enter(self, request: AdmissionRequest) -> None:
        return None

    async def enter(self, request: AdmissionRequest, deadline: float) -> QueuePermit:
        self.patience_s = deadline - asyncio.get_running_loop().time()
        return await super().enter(request, deadline)


async def test_the_wait_for_files_counts_as_one_in_the_queue(bucket: Bucket, copies: Copies) -> None:
    queue = RecordingQueue(Policy.from_settings(Settings(engine_device="cpu")))
    world = World(copies=copies, gate=queue, queue_timeout_s=PATIENCE_S)
    world.engine.chunks = [completion("Ahoy")]
    asked = asyncio.create_task(world.chat())
    await until(lambda: bool(bucket.fetched))
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(0.05)
    waited_s = asyncio.get_running_loop().time() - began
    bucket.allowed.set()
    assert (await asked).status == 200
    (record,) = world.records
    assert record.fetch_s >= waited_s
    assert queue.patience_s <= PATIENCE_S - record.fetch_s
