"""What waits in the queue is read from disk meanwhile; what does not wait, or is loaded already, is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from adapters.store import WEIGHTS_FILE
from service.admission.queue import AdmissionQueue, QueuePermit
from service.engine import prefetch
from service.engine.prefetch import CHUNK_BYTES, Prefetcher
from service.engine.residency import Residency
from service.errors import Unavailable
from tests.unit.service.admission.world import policy, request

WARM, COLD, OTHER = "a" * 64, "c" * 64, "d" * 64
SIZES = {WARM: 10, COLD: CHUNK_BYTES + 7, OTHER: 1000}


class Engine:
    """An engine that has one adapter in its memory."""

    async def report(self, *, loaded: bool = False) -> dict[str, Any]:
        return {"loaded": [WARM]}


@pytest.fixture
def prefetcher(tmp_path: Path) -> Prefetcher:
    for digest, size in SIZES.items():
        (tmp_path / digest).mkdir()
        (tmp_path / digest / WEIGHTS_FILE).write_bytes(b"x" * size)
    return Prefetcher(tmp_path)


@pytest.fixture
async def queue(prefetcher: Prefetcher) -> AdmissionQueue:
    """A queue of one place, in front of an engine that has `WARM` in its memory."""
    residency = Residency(Engine())  # type: ignore[arg-type]
    residency.engine_changed(ready=True)
    await residency.poll()
    return AdmissionQueue(policy(width=1, common=1), residency, prefetcher)


def enter(queue: AdmissionQueue, adapter: str | None, within_s: float = 60.0) -> asyncio.Task[QueuePermit]:
    deadline = asyncio.get_running_loop().time() + within_s
    return asyncio.create_task(queue.enter(request(adapter=adapter), deadline))


async def until_read(prefetcher: Prefetcher, size: int) -> None:
    task = prefetcher._task
    assert task is not None
    await task
    assert prefetcher.read_bytes == size


async def test_a_cold_adapter_is_read_while_its_request_waits(queue: AdmissionQueue, prefetcher: Prefetcher) -> None:
    running = await enter(queue, WARM)
    waiting = [enter(queue, adapter) for adapter in (COLD, COLD, WARM, None, OTHER)]
    await asyncio.sleep(0)  # they begin to wait
    await until_read(prefetcher, SIZES[COLD] + SIZES[OTHER])
    assert not any(task.done() for task in waiting)
    running.leave(1)
    for task in asyncio.as_completed(waiting):
        (await task).leave(1)
    await prefetcher.close()
    assert prefetcher.read_bytes == SIZES[COLD] + SIZES[OTHER], "each once"


async def test_what_is_admitted_at_once_is_left_to_the_engine(queue: AdmissionQueue, prefetcher: Prefetcher) -> None:
    (await enter(queue, COLD)).leave(1)
    await prefetcher.close()
    assert prefetcher.read_bytes == 0


async def test_what_nobody_waits_for_any_more_is_not_read(prefetcher: Prefetcher) -> None:
    for digest in (COLD, OTHER, OTHER):
        prefetcher.want(digest)
    prefetcher.drop(OTHER)
    prefetcher.drop(OTHER)
    await until_read(prefetcher, SIZES[COLD])
    await prefetcher.close()
    assert prefetcher.read_bytes == SIZES[COLD]


async def test_requests_that_give_up_waiting_are_forgotten(queue: AdmissionQueue, prefetcher: Prefetcher) -> None:
    running = await enter(queue, WARM)
    with pytest.raises(Unavailable):
        await enter(queue, COLD, within_s=0.01)
    left = enter(queue, OTHER)
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    assert not prefetcher._waiting
    running.leave(1)


async def test_files_that_are_missing_or_links_cost_the_others_nothing(prefetcher: Prefetcher, tmp_path: Path) -> None:
    weights = tmp_path / OTHER / WEIGHTS_FILE
    weights.unlink()
    weights.symlink_to(tmp_path / WARM / WEIGHTS_FILE)
    for digest in ("0" * 64, OTHER, COLD):
        prefetcher.want(digest)
    await until_read(prefetcher, SIZES[COLD])
    await prefetcher.close()


async def test_nothing_is_read_after_the_end(prefetcher: Prefetcher) -> None:
    await prefetcher.close()
    prefetcher.want(COLD)
    await asyncio.sleep(0.01)
    assert prefetcher.read_bytes == 0


async def test_no_more_is_read_ahead_than_the_kernel_keeps(
    prefetcher: Prefetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "AHEAD_BYTES", SIZES[COLD])
    for digest in (COLD, OTHER):
        prefetcher.want(digest)
    await until_read(prefetcher, SIZES[COLD])
    assert prefetcher._task is None
    prefetcher.drop(COLD)  # its turn has come
    await until_read(prefetcher, SIZES[COLD] + SIZES[OTHER])
    prefetcher.drop(OTHER)
    assert (prefetcher._ahead_bytes, prefetcher._ahead) == (0, {})


async def test_what_waits_long_is_not_read_again(prefetcher: Prefetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "FRESH_S", 0.0)
    prefetcher.want(COLD)
    await until_read(prefetcher, SIZES[COLD])
    prefetcher.want(COLD)
    assert prefetcher._task is None
    for _ in range(2):
        prefetcher.drop(COLD)
    prefetcher.want(COLD)
    await until_read(prefetcher, 2 * SIZES[COLD])


async def test_a_reading_ends_when_nobody_waits_any_more(prefetcher: Prefetcher) -> None:
    prefetcher.want(COLD)
    prefetcher.drop(COLD)
    assert prefetcher._read(COLD) == 0
