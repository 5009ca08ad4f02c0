"""Two engines of one base: what waits for one that goes away is answered by the other, what was sent to it is not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from service.access.authentication import Authenticator
from service.admission.ports import Permit
from service.admission.queue import AdmissionQueue
from service.admission.request import AdmissionRequest
from service.agents import Agent, Bases, ServedBase
from service.config import Settings
from service.errors import EngineCut, EngineUnavailable, EngineUnreachable
from service.inference.dispatch import Dispatch
from service.inference.engines import Dispatches
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from service.telemetry.record import Record
from tests.support.adapters import describe_base, make_base
from tests.unit.service.admission.test_queue import State
from tests.unit.service.admission.world import policy
from tests.unit.service.inference.fakes import BASE, DIGESTS, KEY, Answer, FakeEngine, World, catalog, completion, until

TEXTS = {"a": "Ahoy", "b": "Arr"}


class Queue(AdmissionQueue):
    """Records when each request came, and its deadline; on the event loop's clock."""

    def __init__(self) -> None:
        super().__init__(policy(width=1, common=1, queue_size=8))
        self.entered: list[tuple[float, float]] = []

    def try_enter(self, request: AdmissionRequest) -> None:
        return None

    async def enter(self, request: AdmissionRequest, deadline: float) -> Permit:
        self.entered.append((asyncio.get_running_loop().time(), deadline))
        return await super().enter(request, deadline)


@dataclass
class Engine:
    """One of the two, with a queue of its own and one place; it answers once `opens` is set."""

    name: str
    settings: Settings
    state: str = "ready"
    fake: FakeEngine = field(default_factory=FakeEngine)
    opens: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.queue = Queue()
        self.fake.chunks = [self.opens, completion(TEXTS[self.name])]
        nobody: Any = None
        self.agent = Agent(*(self.name, self.settings, nobody, nobody, nobody), is_ready=lambda: self.state == "ready")
        self.dispatch = Dispatch(self.settings, self.fake, BASE, admission_queue=self.queue)

    def become(self, state: str) -> None:
        self.state = state
        self.queue.engine_changed(cast(Any, State(state)))


class Pair:
    """A gateway in front of two engines of one base."""

    def __init__(self, base: ServedBase, engines: list[Engine], settings: Settings) -> None:
        self.records: list[Record] = []
        dispatches = Dispatches(Bases([base]), {engine.name: engine.dispatch for engine in engines})
        pipeline = Pipeline(settings, Authenticator(KEY), catalog(), dispatches, account=self.records.append)
        first = base.agent_for(DIGESTS[3]).name
        self.first = next(engine for engine in engines if engine.name == first)
        self.second = next(engine for engine in engines if engine.name != first)
        self.world = World()
        self.world.app = InferenceApp(settings, pipeline)

    def ask(self, **fields: Any) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.world.chat(model="voice", **fields))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("handover"))


@pytest.fixture
def pair(checkpoint: Path) -> Pair:
    settings = Settings(engine_device="cpu", engine_context=2048, queue_timeout_s=600)
    engines = [Engine(name, settings) for name in TEXTS]
    base = ServedBase(describe_base(checkpoint, served_name=BASE), 1, [engine.agent for engine in engines])
    return Pair(base, engines, settings)


def text(answer: Answer) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_what_waits_for_an_engine_that_dies_is_answered_by_another(pair: Pair) -> None:
    asks = [pair.ask() for _ in range(3)]
    await until(lambda: pair.first.queue.snapshot().queued == 2)
    pair.second.opens.set()
    pair.first.become("down")
    waited = await asyncio.gather(*asks[1:])
    assert [(answer.status, text(answer)) for answer in waited] == [(200, TEXTS[pair.second.name])] * 2
    assert len(pair.first.fake.asked) == 1
    assert all((record.queue_s or 0) >= 0 and record.outcome == "ok" for record in pair.records)
    pair.first.opens.set()
    assert (await asks[0]).status == 200, "what it is at goes on, where it can"
    assert pair.first.queue.snapshot().queued == pair.second.queue.snapshot().queued == 0


async def test_what_was_sent_is_never_sent_again(pair: Pair) -> None:
    pair.first.fake.chunks = [EngineCut("it was killed")]
    answer = await pair.ask()
    assert (answer.status, answer.error["code"]) == (502, "engine_cut")
    pair.first.fake.status, pair.first.fake.chunks = 503, [b'{"error":{"message":"dead","type":"x","code":503}}']
    assert (await pair.ask()).error["code"] == "engine_unavailable"
    assert pair.second.fake.asked == []


@pytest.mark.parametrize("error", [EngineUnavailable("it has just exited"), EngineUnreachable("nothing listens")])
async def test_what_cannot_be_sent_goes_on_to_the_next(pair: Pair, error: EngineUnavailable) -> None:
    pair.first.fake.down = error
    pair.second.opens.set()
    answer = await pair.ask()
    assert text(answer) == TEXTS[pair.second.name]
    pair.second.fake.down = error
    assert (await pair.ask()).error["code"] == "engine_unavailable", "each is asked once"
    for engine in (pair.first, pair.second):
        assert engine.queue.snapshot().in_flight == 0


async def test_without_another_engine_it_is_told_at_once(pair: Pair) -> None:
    pair.second.become("down")
    asks = [pair.ask() for _ in range(2)]
    await until(lambda: pair.first.queue.snapshot().queued == 1)
    pair.first.become("down")
    told = (await asks[1]).error
    assert told["code"] == "engine_unavailable"
    assert told["message"] == (
        f"no engine of the base `{BASE}` takes requests now: the engine is not ready: it was killed"
    )
    pair.first.opens.set()
    assert (await asks[0]).status == 200


async def test_the_time_in_the_queue_is_not_begun_anew(pair: Pair) -> None:
    asks = [pair.ask(), pair.ask()]
    await until(lambda: pair.first.queue.snapshot().queued == 1)
    await asyncio.sleep(0.05)
    (_, _), (_, deadline) = pair.first.queue.entered
    killed = asyncio.get_running_loop().time()
    pair.first.become("down")
    await until(lambda: pair.second.queue.entered)
    ((again, later_deadline),) = pair.second.queue.entered
    assert later_deadline - deadline <= again - killed + 1e-6
    pair.first.opens.set()
    pair.second.opens.set()
    assert [answer.status for answer in await asyncio.gather(*asks)] == [200, 200]
