"""What the engine has loaded, as far as the gateway knows."""

from __future__ import annotations

import asyncio
from typing import Any

from service.engine.residency import Residency
from service.errors import EngineUnavailable
from tests.unit.service.inference.fakes import until


class Engine:
    def __init__(self, *loaded: str) -> None:
        self.loaded = list(loaded)
        self.asked = 0
        self.down = False
        self.hold: asyncio.Event | None = None

    async def report(self, *, loaded: bool = False) -> dict[str, Any]:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.down:
            raise EngineUnavailable("no engine")
        return {"loaded": list(self.loaded)} if loaded else {}


async def test_nothing_is_cold_before_the_engine_was_asked() -> None:
    residency = Residency(Engine("a"))
    assert not residency.is_cold("b")
    await residency.poll()
    assert residency.is_cold("b")
    assert not residency.is_cold("a")
    assert residency.snapshot().resident == {"a"}


async def test_what_was_loaded_for_a_request_counts_until_the_next_look() -> None:
    residency = Residency(Engine())
    await residency.poll()
    residency.loaded("b", 0.25)
    residency.loaded("c", 0.5)
    now = residency.snapshot()
    assert (now.cold_loads, now.cold_load_s, now.last_cold_load_s) == (2, 0.75, 0.5)
    assert not residency.is_cold("b")
    await residency.poll()
    assert residency.is_cold("b"), "the engine has dropped it since"


async def test_an_engine_that_does_not_answer_leaves_the_view_as_it_is() -> None:
    engine = Engine("a")
    residency = Residency(engine)
    await residency.poll()
    engine.down = True
    await residency.poll()
    assert residency.snapshot().resident == {"a"}
    assert (residency.snapshot().looks, residency.snapshot().look_errors) == (2, 1)


async def test_a_new_engine_has_nothing_that_is_known() -> None:
    engine = Engine("a")
    residency = Residency(engine)
    residency.engine_changed(ready=True)
    await residency.poll()
    residency.engine_changed(ready=False)
    assert not residency.snapshot().known
    assert residency.snapshot().resident == frozenset()


async def test_the_answer_of_a_former_engine_does_not_count() -> None:
    engine = Engine("a")
    engine.hold = asyncio.Event()
    residency = Residency(engine)
    poll = asyncio.create_task(residency.poll())
    await asyncio.sleep(0)
    residency.engine_changed(ready=True)
    engine.hold.set()
    await poll
    assert not residency.snapshot().known


async def test_it_looks_by_itself_only_where_something_has_happened() -> None:
    engine = Engine("a")
    happened = 0
    residency = Residency(engine, activity=lambda: happened, poll_s=0.001)
    run = asyncio.create_task(residency.run())
    await asyncio.sleep(0.02)
    assert engine.asked == 0, "there is no engine yet"
    residency.engine_changed(ready=True)
    await until(lambda: engine.asked)
    await asyncio.sleep(0.02)
    assert engine.asked == 1
    happened = 1
    await until(lambda: engine.asked > 1)
    await asyncio.sleep(0.02)
    assert engine.asked == 2
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
