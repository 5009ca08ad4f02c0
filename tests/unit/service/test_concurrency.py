"""Work that is done again and again."""

from __future__ import annotations

import asyncio

import pytest

from service.concurrency import repeat


async def test_a_step_that_fails_is_logged_and_does_not_end_the_work(caplog: pytest.LogCaptureFixture) -> None:
    wake, steps = asyncio.Event(), asyncio.Queue[int]()

    async def step() -> None:
        steps.put_nowait(1)
        raise OSError("the disk is full")

    working = asyncio.create_task(repeat(step, 3600, wake))
    for _ in range(3):
        async with asyncio.timeout(60):
            await steps.get()
        wake.set()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert "a background task failed" in caplog.text
    assert "the disk is full" in caplog.text


async def test_it_goes_on_by_itself() -> None:
    steps = asyncio.Queue[int]()

    async def step() -> None:
        steps.put_nowait(1)

    working = asyncio.create_task(repeat(step, 0.001))
    for _ in range(3):
        async with asyncio.timeout(60):
            await steps.get()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
