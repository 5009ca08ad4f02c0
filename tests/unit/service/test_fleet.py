"""The engines of a gateway together: made from a file, shown in `/readyz` and `/metrics`, each request to its own."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from service import __version__
from service.app import create_app
from service.config import Settings
from service.engine.contract import TOKEN_VARIABLE
from service.engine.record import EngineRecord
from service.engine.watched import EngineState
from service.errors import EngineUnavailable, SettingsError, Unavailable
from service.fleet import EngineParts, Fleet
from service.front import create_front
from service.fronts.follower import Secrets
from service.fronts.topology import POLICY, ToldBase, ToldEngine, Topology
from service.health import health
from service.http.schema import add_routes
from service.inference.dispatch import Dispatch, FinishedRequest
from service.inference.engines import Dispatches
from service.registry.catalog import Target
from service.server.stopping import Stopping
from service.telemetry.admission import AdmissionSource
from service.telemetry.exposition import Exposition, Labelled
from service.telemetry.record import Record
from service.training.watch import TrainerWatch
from tests.support.adapters import make_base
from tests.unit.service.gateway_app import lifespan
from tests.unit.service.telemetry.support import read, value
from tests.unit.service.telemetry.test_component_sources import counted

FILE = """
[[engine]]
name = "a"
base = "{one}"
url = "unix:{home}/a.sock"
[[engine]]
name = "b-0"
base = "{other}"
url = "unix:{home}/b0.sock"
[[engine]]
name = "b-1"
base = "{other}"
url = "unix:{home}/b1.sock"
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    places = {"home": tmp_path, "one": make_base(tmp_path / "one"), "other": make_base(tmp_path / "other", seed=1)}
    (tmp_path / "engines.toml").write_text(FILE.format(**places))
    return Settings(home=tmp_path / "home", engines=tmp_path / "engines.toml", engine_device="cpu", trainer="off")


@pytest.fixture
def fleet(settings: Settings) -> Fleet:
    return Fleet.from_settings(settings)


def become(each: EngineParts, name: Any) -> None:
    each.watched.state = EngineState(name, f"it is {name}", 1.0)


def test_engines_of_one_base_are_a_group(fleet: Fleet) -> None:
    assert [each.label for each in fleet.parts] == ["a", "b-0", "b-1"]
    assert {base.name: [agent.name for agent in base.agents] for base in fleet.bases} == {
        "one": ["a"],
        "other": ["b-0", "b-1"],
    }
    assert fleet.bases.default.name == "one"
    one, other = fleet.bases
    assert one.description.fingerprint != other.description.fingerprint


def test_one_model_under_two_names_is_refused(settings: Settings, tmp_path: Path) -> None:
    make_base(tmp_path / "other")  # the same weights as `one`
    with pytest.raises(SettingsError, match="`one` and `other` are the same model under two names"):
        Fleet.from_settings(settings)


def test_a_base_that_cannot_be_read_is_told_with_its_engine(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "other" / "config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"HATRACK_ENGINES: the engine `b-0`, with the base .*other: "):
        Fleet.from_settings(settings)


@pytest.fixture
def leftover(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is on record as the engine `renamed`."""
    token = secrets.token_hex(16)
    former = settings.home / "engines" / "renamed"
    former.mkdir(parents=True)
    EngineRecord(token).write(former / "engine.json")
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
        env={TOKEN_VARIABLE: token},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert left.stdout is not None
        left.stdout.readline()  # until it runs
        yield left
    finally:
        left.kill()
        left.communicate()


async def test_an_engine_that_is_no_longer_named_is_ended(
    fleet: Fleet, settings: Settings, leftover: subprocess.Popen[bytes]
) -> None:
    await fleet.end_unnamed()
    assert leftover.wait(60) == -signal.SIGTERM
    assert not (settings.home / "engines" / "renamed" / "engine.json").exists()


async def test_a_gateway_ends_them_when_it_starts(settings: Settings, leftover: subprocess.Popen[bytes]) -> None:
    async with lifespan(create_app(settings)):
        assert leftover.wait(60) == -signal.SIGTERM


async def test_a_front_leaves_the_engines_running_that_its_gateway_has_itself(
    settings: Settings, fleet: Fleet, leftover: subprocess.Popen[bytes]
) -> None:
    """Gateway and front on one machine, with one home: `renamed` is not of the front's fleet, and lives."""
    default = fleet.bases.default
    own = {"prompt_tokens": 64, "token_chars": 4, "fingerprint": default.description.fingerprint}
    base = ToldBase(name=default.name, created_at=1, context=64, **own)
    agent = {"agent": "http://127.0.0.1:1", "slots": 4, "max_rank": 64, "resident": 8}
    topology = Topology(
        version=__version__,
        policy={name: getattr(settings, name) for name in POLICY},
        embedder=None,
        bases=(base,),
        engines=(ToldEngine(name="a", label="a", base=base.name, **agent),),
    )
    secret = {"front_key": "f" * 20, "agent_key": "k" * 20}
    front = create_front(
        Settings(home=settings.home, engine_device="cpu", front_gateway="http://127.0.0.1:1", **secret)
    )
    await front._make(topology, Secrets(b"k", b"s"))
    try:
        assert (settings.home / "engines" / "renamed" / "engine.json").exists()
        assert leftover.poll() is None
    finally:
        await front._close_path()


async def ready(fleet: Fleet, stopping: Stopping | None = None) -> httpx.Response:
    app = FastAPI()
    watch = cast(TrainerWatch, type("Watch", (), {"state": "off"})())
    add_routes(app, health(fleet, watch, stopping=stopping))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        return await http.get("/readyz")


async def test_one_engine_that_is_ready_is_enough_and_all_are_shown(fleet: Fleet) -> None:
    for each in fleet.parts:
        become(each, "starting")
    answer = await ready(fleet)
    assert (answer.status_code, answer.json()["status"]) == (503, "starting")
    become(fleet.parts[2], "ready")
    answer = await ready(fleet)
    assert (answer.status_code, answer.json()["status"], answer.json()["base"]) == (200, "ready", "one")
    shown = [(engine["name"], engine["base"], engine["state"]) for engine in answer.json()["engines"]]
    assert shown == [("a", "one", "starting"), ("b-0", "other", "starting"), ("b-1", "other", "ready")]
    assert (fleet.ready, fleet.running_engines()) == (True, 3)
    become(fleet.parts[0], "down")
    assert fleet.running_engines() == 2


async def test_a_gateway_that_will_stop_is_not_ready_while_its_engines_are(fleet: Fleet) -> None:
    for each in fleet.parts:
        become(each, "ready")
    stopping = Stopping()
    assert (await ready(fleet, stopping)).status_code == 200
    stopping.began = True
    answer = await ready(fleet, stopping)
    assert (answer.status_code, answer.json()["status"]) == (503, "stopping")
    assert {engine["state"] for engine in answer.json()["engines"]} == {"ready"}


async def test_files_are_removed_only_while_no_engine_may_have_them_loaded(fleet: Fleet) -> None:
    collected = []

    async def collect() -> None:
        collected.append(True)

    fleet.before_spawn(collect)
    starting = fleet.parts[0].watched
    assert starting.before_spawn is not None
    await starting.before_spawn()
    assert collected == [], "somebody else's engines may hold any adapter"


async def test_an_engine_starts_though_nothing_can_be_collected(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    async def collect() -> None:
        asked.append(True)
        raise Unavailable("the database is away")

    fleet.parts = fleet.parts[:1]  # no other could have files loaded
    fleet.before_spawn(collect)
    starting = fleet.parts[0].watched
    assert starting.before_spawn is not None
    await starting.before_spawn()
    assert asked
    assert [vars(each)["reason"] for each in caplog.records] == ["the database is away"]


async def test_each_engines_metrics_have_its_name_and_each_metric_stands_once(fleet: Fleet) -> None:
    account = counted()
    sources = {str(each.label): AdmissionSource(each.admission.queue, 7, account) for each in fleet.parts}
    samples = read(await Labelled("engine", sources).families())
    assert {value(samples, "hatrack_admission_queue_limit", engine=name) for name in ("a", "b-0", "b-1")} == {7}
    text = (await Exposition([Labelled("engine", sources)]).text()).decode()
    assert text.count("# TYPE hatrack_admission_queue_limit gauge") == 1


class Recorder:
    """In place of an engine's dispatch: it would ask an engine."""

    def __init__(self) -> None:
        self.answered: list[str] = []

    async def answer(self, request: FinishedRequest) -> None:
        self.answered.append(request.target.label)


async def test_a_request_goes_to_the_engine_of_its_base_and_its_adapter(fleet: Fleet) -> None:
    recorders = {each.agent.name: Recorder() for each in fleet.parts}
    dispatches = Dispatches(fleet.bases, cast(dict[str, Dispatch], recorders))
    become(fleet.parts[1], "ready")
    become(fleet.parts[2], "ready")
    nothing: Any = None
    targets = [Target(f"v{number}", "d", digest=f"{number:064x}", base="other") for number in range(40)]
    for target in [Target("one", "one", base="one"), Target("old", "old"), *targets, *targets]:
        await dispatches.answer(FinishedRequest(nothing, nothing, nothing, target, Record("r", "/"), {}, 0.0))
    assert recorders["a"].answered == ["one", "old"], "no base named: the default"
    halves = [recorders[name].answered for name in ("b-0", "b-1")]
    assert not set(halves[0]) & set(halves[1]), "an adapter keeps to one engine"
    assert min(map(len, halves)) > 10


class Failing(Recorder):
    """An engine that is found to be away, before or after the request was sent to it."""

    def __init__(self, sent: int | None = None) -> None:
        super().__init__()
        self._sent = sent

    async def answer(self, request: FinishedRequest) -> None:
        await super().answer(request)
        request.record.fallback_tokens = self._sent
        raise EngineUnavailable("the engine is not ready: it has just died")


@pytest.mark.parametrize(("sent", "asked"), [(None, 2), (3, 1)])
async def test_only_what_was_not_sent_goes_to_another_engine_of_the_base(
    fleet: Fleet, sent: int | None, asked: int
) -> None:
    recorders: dict[str, Recorder] = {"a": Recorder(), "b-0": Failing(sent), "b-1": Failing(sent)}
    dispatches = Dispatches(fleet.bases, cast(dict[str, Dispatch], recorders))
    for each in fleet.parts:
        become(each, "ready")
    nothing: Any = None
    target, record = Target("v", "d", digest="7" * 64, base="other"), Record("r", "/v1/chat/completions")
    with pytest.raises(EngineUnavailable):
        await dispatches.answer(FinishedRequest(nothing, nothing, nothing, target, record, {}, 0.0))
    assert [len(recorders[name].answered) for name in ("a", "b-0", "b-1")].count(0) == 3 - asked
    recorders["b-0"], recorders["b-1"] = Failing(sent), Recorder()
    if asked == 2:
        for digest in ("7" * 64, "8" * 64, "9" * 64):
            own = Target("v", "d", digest=digest, base="other")
            await dispatches.answer(FinishedRequest(nothing, nothing, nothing, own, record, {}, 0.0))
        assert len(recorders["b-1"].answered) == 3


async def test_a_base_is_away_when_none_of_its_engines_is_ready(fleet: Fleet) -> None:
    for each in fleet.parts:
        become(each, "down")
    become(fleet.parts[0], "ready")
    assert (fleet.trouble_of("one"), fleet.trouble_of("other")) == (None, "it is down")
    become(fleet.parts[2], "ready")
    assert (fleet.trouble_of("other"), fleet.trouble_of("absent")) == (None, None)
