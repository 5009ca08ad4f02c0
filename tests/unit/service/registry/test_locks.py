from __future__ import annotations

import asyncio
import threading

import pytest

from service.concurrency import Locks, in_thread


async def test_one_key_excludes_itself_and_leaves_nothing_behind() -> None:
    locks, inside, most = Locks(), 0, 0

    async def enter() -> None:
        nonlocal inside, most
        async with locks.hold("a"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter() for _ in range(20)))
    assert most == 1
    assert len(locks) == 0


async def test_other_keys_do_not_wait() -> None:
    locks = Locks()
    async with locks.hold("a"), asyncio.timeout(60), locks.hold("b"):
        assert len(locks) == 2


async def test_a_waiter_that_is_cancelled_is_forgotten() -> None:
    locks = Locks()

    async def enter() -> None:
        async with locks.hold("a"):
            raise AssertionError("entered")

    async with locks.hold("a"):
        waiter = asyncio.create_task(enter())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert len(locks) == 0


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(60)
        done.set()

    task = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
