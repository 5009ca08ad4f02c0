"""The gate as clients meet it: through the whole data path, in front of an engine that answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson
import pytest

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue, QueuePermit
from service.admission.request import AdmissionRequest
from service.config import Settings
from tests.unit.service.admission.test_queue import State
from tests.unit.service.admission.world import policy
from tests.unit.service.inference.fakes import BASE, KEY, World, chat_body, completion, until


def small(**settings: object) -> tuple[World, AdmissionQueue, asyncio.Event]:
    """One place, a queue of two; the engine answers once the event is set."""
    gate = AdmissionQueue(policy(width=1, common=1, queue_size=2))
    world = World(gate=gate, **settings)
    answer = asyncio.Event()
    world.engine.chunks = [answer, completion("Ahoy")]
    return world, gate, answer


async def test_one_at_a_time_and_everybody_is_answered() -> None:
    world, gate, answer = small()
    asks = [asyncio.create_task(world.chat()) for _ in range(3)]
    await until(lambda: gate.snapshot().queued == 2)
    assert world.engine.in_flight == 1
    answer.set()
    assert [done.status for done in await asyncio.gather(*asks)] == [200, 200, 200]
    assert (gate.snapshot().in_flight, gate.snapshot().queued, gate.snapshot().left) == (0, 0, 3)
    assert all(record.queue_s is not None for record in world.records)


async def test_only_who_finds_others_enters_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    world, gate, answer = small()
    entered: list[str] = []
    enter = gate.enter

    async def enter_and_note(request: AdmissionRequest, deadline: float) -> QueuePermit:
        entered.append(request.project)
        return await enter(request, deadline)

    monkeypatch.setattr(gate, "enter", enter_and_note)
    first = asyncio.create_task(world.chat())
    await until(lambda: gate.snapshot().in_flight == 1)
    assert entered == []
    second = asyncio.create_task(world.chat())
    await until(lambda: gate.snapshot().queued == 1)
    assert entered == ["default"]
    answer.set()
    assert [done.status for done in await asyncio.gather(first, second)] == [200, 200]
    waits = [record.queue_s for record in world.records]
    assert waits[0] == 0.0, "it has waited, not at all"
    assert waits[1] is not None
    assert waits[1] > 0.0


async def test_over_the_bound_is_refused_at_once_with_retry_after() -> None:
    world, gate, answer = small()
    asks = [asyncio.create_task(world.chat()) for _ in range(3)]
    await until(lambda: gate.snapshot().queued == 2)
    refused = await world.chat()
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert len(world.engine.asked) == 1, "no engine has heard of it"
    answer.set()
    await asyncio.gather(*asks)


async def test_the_deadline_in_the_queue() -> None:
    world, gate, answer = small(queue_timeout_s=0.02)
    first = asyncio.create_task(world.chat())
    await until(lambda: gate.snapshot().in_flight == 1)
    late = await world.chat()
    assert (late.status, late.error["code"]) == (503, "queue_timeout")
    assert int(late.headers["retry-after"]) >= 1
    answer.set()
    assert (await first).status == 200


async def test_a_client_that_leaves_the_queue_makes_room_for_another() -> None:
    world, gate, answer = small()
    gone = asyncio.Event()

    async def leaver() -> None:
        parts = [{"type": "http.request", "body": orjson.dumps(chat_body()), "more_body": False}]
        headers = {b"authorization": f"Bearer {KEY}".encode(), b"content-type": b"application/json"}

        async def receive() -> dict[str, object]:
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            raise AssertionError("there is nobody to answer")

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": list(headers.items())}
        await world.app(scope, receive, send)

    first = asyncio.create_task(world.chat())
    await until(lambda: gate.snapshot().in_flight == 1)
    leaving = [asyncio.create_task(leaver()) for _ in range(2)]
    await until(lambda: gate.snapshot().queued == 2)
    gone.set()
    await asyncio.gather(*leaving)
    assert gate.snapshot().queued == 0
    assert {record.outcome for record in world.records} == {"left"}
    second = asyncio.create_task(world.chat())
    await until(lambda: gate.snapshot().queued == 1)
    answer.set()
    assert [(await first).status, (await second).status] == [200, 200]
    assert gate.snapshot().in_flight == 0


async def test_an_engine_that_goes_answers_all_who_wait() -> None:
    world, gate, answer = small()
    asks = [asyncio.create_task(world.chat()) for _ in range(3)]
    await until(lambda: gate.snapshot().queued == 2)
    gate.engine_changed(State("down"))
    refused = await asyncio.gather(*asks[1:])
    assert [(one.status, one.error["code"]) for one in refused] == [(503, "engine_unavailable")] * 2
    answer.set()
    assert (await asks[0]).status == 200


@pytest.mark.parametrize(
    ("settings", "width", "common", "slots"),
    [
        ({}, 64, 56, 8),
        ({"engine_max_seqs": 12}, 12, 11, 8),
        ({"admission_width": 5, "engine_slots": 3}, 64, 5, 3),
        ({"engine_device": "cuda"}, 64, 60, 8),
        ({"admission": "fifo", "queue_size": 100}, 164, 164, None),
    ],
)
def test_the_policy_of_the_settings(settings: dict[str, object], width: int, common: int, slots: int | None) -> None:
    made = Policy.from_settings(Settings(**{"engine_device": "cpu", **settings}))  # type: ignore[arg-type]
    assert (made.width, made.common, made.slots) == (width, common, slots)


async def test_first_come_first_served_keeps_nobody_at_the_gate() -> None:
    made = Policy.from_settings(Settings(engine_device="cpu", admission="fifo", engine_max_seqs=2, queue_size=3))
    gate = AdmissionQueue(made)
    world = World(gate=gate)
    answer = asyncio.Event()
    world.engine.chunks = [answer, completion("Ahoy")]
    asks = [asyncio.create_task(world.chat()) for _ in range(5)]
    await until(lambda: world.engine.in_flight == 5)
    refused = await world.chat()
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    answer.set()
    assert {done.status for done in await asyncio.gather(*asks)} == {200}


async def test_one_project_s_requests_in_flight_keep_no_other_out() -> None:
    world = World(max_in_flight=8)
    gate = asyncio.Event()
    world.engine.chunks = [gate, completion("x")]
    flood = [asyncio.create_task(world.chat()) for _ in range(12)]
    await until(lambda: sum(task.done() for task in flood) == 4)
    assert {task.result().error["code"] for task in flood if task.done()} == {"overloaded"}
    world.app.pipeline.authenticator = OtherProject()
    few = [asyncio.create_task(world.chat(model=BASE)) for _ in range(2)]
    await until(lambda: any(task.done() for task in few))
    assert sorted(task.done() for task in few) == [False, True], "a second one is not few of eight"
    gate.set()
    answers = await asyncio.gather(*flood, *few)
    assert sorted(answer.status for answer in answers) == [200] * 9 + [503] * 5


class OtherProject(Authenticator):
    """A key of another project."""

    def __init__(self) -> None:
        super().__init__(KEY)

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        return Caller("k2", "other", frozenset({Scope.INFER}))
