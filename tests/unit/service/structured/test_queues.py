"""What one project may have waiting, in the engine and owed, and the trial process that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import BadRequest, RateLimited
from service.structured import checker, process, projects
from service.structured.checker import StructuredOutputs
from service.structured.process import Trial, TrialProcess
from service.structured.spec import Spec
from tests.unit.service.inference.fakes import until
from tests.unit.service.structured.test_checker import HONEST, PATIENCE_S, counted, passes, regex, running


async def test_who_waits_for_a_turn_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them stands in the gateway, before the gate that bounds what others may wait for."""
    monkeypatch.setattr(checker, "REQUESTS_WAITING_PER_PROJECT", 3)
    outputs, counting = counted(Trial("ok", token_ms=3.9))
    counting.free.set()
    inside, leave = [], asyncio.Event()

    async def decode() -> None:
        async with outputs.admitted(regex("a"), "p"):
            inside.append(1)
            await leave.wait()

    await passes(outputs, regex("a"), "other")  # known from here on
    async with running(*(decode() for _ in range(4))) as tasks:
        await until(lambda: inside and outputs._projects._projects["p"]._requests == 3)
        with pytest.raises(RateLimited) as caught:
            await passes(outputs, regex("a"), "p")
        assert caught.value.code == "too_many_grammars"
        await passes(outputs, regex("a"), "other")
        leave.set()
        await asyncio.gather(*tasks)
    await passes(outputs, regex("a"), "p")


async def test_who_shares_a_trial_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "REQUESTS_WAITING_PER_PROJECT", 2)
    outputs, counting = counted(Trial("ok"))
    async with running(passes(outputs, regex("a")), passes(outputs, regex("a"))):
        await until(lambda: counting.asked)
        with pytest.raises(RateLimited):
            await passes(outputs, regex("a"))


async def test_who_leaves_early_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    outputs, counting = counted(Trial("ok"), compile_s=1000.0)
    for pattern in ("a", "b", "c"):
        async with running(passes(outputs, regex(pattern), "greedy")) as (task,):
            await until(lambda pattern=pattern: pattern in counting.asked)
            now[0] += 300.0
            task.cancel()
        await until(lambda: counting.cancelled == len(counting.asked))
        assert list(outputs._projects._projects) == ["greedy"], "what it took is forgotten"
        # its share has paid for a tenth of the time that has really passed since
        assert outputs._projects._projects["greedy"].owed_s() > 200.0 * len(counting.asked)
    assert outputs.counts.cpu_s == 900.0
    monkeypatch.setattr(projects, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 10_000.0))
    counting.free.set()
    await passes(outputs, regex("d"), "greedy")
    assert not len(outputs._projects), "it is all paid for"


async def test_who_has_paid_is_forgotten_by_and_by() -> None:
    outputs, counting = counted(Trial("ok", cpu_s=0.001))
    counting.free.set()
    await passes(outputs, regex("a"))
    await until(lambda: not len(outputs._projects))


@pytest.mark.parametrize(
    ("token_ms", "more", "field"),
    [
        (3.9, {"n": 8}, "n"),
        (0.1, {"n": 8, "prompt": ["x"] * 256}, None),  # the engine decodes 64 at once
        (0.5, {"n": 8, "prompt": ["x"] * 256}, "n"),
        (0.5, {"prompt": [[1, 2]] * 256}, "prompt"),
        (0.1, {"n": 8}, None),
        (2.0, {"n": 8}, None),
        (4.0, {"prompt": [1] * 256}, None),
    ],
)
async def test_one_request_is_bounded_too(token_ms: float, more: dict[str, Any], field: str | None) -> None:
    outputs, counting = counted(Trial("ok", token_ms=token_ms))
    counting.free.set()
    if field is None:
        await passes(outputs, regex("a") | more)
        return
    with pytest.raises(BadRequest, match=f"`{field}`") as caught:
        await passes(outputs, regex("a") | more)
    assert caught.value.param == field
    assert caught.value.code == "grammar_too_complex"


async def test_what_was_not_tried_is_taken_to_be_dear() -> None:
    outputs = StructuredOutputs(compile_s=2.0, token_ms=4.0, wait_s=PATIENCE_S)
    inside, leave = [], asyncio.Event()

    async def decode() -> None:
        async with outputs.admitted(HONEST[0], "p"):
            inside.append(1)
            await leave.wait()

    async with running(*(decode() for _ in range(4))) as tasks:
        await until(lambda: len(inside) == 2 and outputs._projects._projects["p"]._requests == 2)
        leave.set()
        await asyncio.gather(*tasks)
    await passes(outputs, HONEST[0] | {"n": 8})


async def test_a_process_that_hangs_is_replaced_although_nobody_waits_any_more(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests give up long before: the age of the oldest unanswered job counts."""
    monkeypatch.setattr(process, "SILENCE_FACTOR", 0.5)
    hanging = TrialProcess(base_dir, cpu_s=1.0)
    try:
        await hanging.start()
        first = hanging.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await hanging.run(Spec("regex", "a", "f"), [])
        assert hanging.pid == first or asyncio.get_running_loop().time() - began > 0.5, "not before its time"
        await until(lambda: hanging.pid is None)
        monkeypatch.setattr(process, "SILENCE_FACTOR", 240.0)  # the next one does not hang, however slow it is
        assert (await hanging.run(Spec("regex", "a", "f"), [])).outcome == "ok"
        assert not hanging._sent_at
        assert hanging._watch is None
    finally:
        await hanging.close()
