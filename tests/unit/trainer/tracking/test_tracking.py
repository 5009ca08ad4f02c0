"""Jobs in an experiment tracker: what it is sent, and that no job notices one that is away."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.unit.trainer.tracking.fake_wandb import MODULE
from tests.unit.trainer.tracking.mlflow_server import MlflowServer
from trainer.database import Database
from trainer.errors import TrackerFailed
from trainer.evaluate.evaluations.spec import VerdictRecord
from trainer.finetune import kind
from trainer.finetune.spec import JobDetails, JobResult, PrimaryMetric, TrainingPlan
from trainer.finetune.tracked import tracked_job
from trainer.runs import journal, records
from trainer.runs.notifier import Notifier
from trainer.runs.protocol import WorkerEvent
from trainer.runs.records import NewRun
from trainer.runs.state import Status
from trainer.runs.tracking import BACK_OFF_S, TrackingFollower
from trainer.tracking import available
from trainer.tracking.mlflow import MlflowTracker
from trainer.tracking.records import tracked
from trainer.tracking.tracker import Point, Tracker
from trainer.tracking.wandb import WandbTracker
from trainer.tune.recipe import Recipe

JOB = "ftjob-0f3a9c1b22de77aa01bb22cc"
MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "support", "tags": {"team": "sea"}}}
WANDB = {"type": "wandb", "wandb": {"project": "support", "tags": ["sea"]}}
PLAN = TrainingPlan(
    recipe=Recipe(rank=4, epochs=2, batch_size=4, max_length=64, learning_rate=2e-4),
    chosen={},
    system_prompt="Be salty.",
    tokens_an_epoch=9,
    primary=PrimaryMetric(name="exact_match", why="w", answers=("a", "b"), max_tokens=16),
)
VERDICT = VerdictRecord(verdict="pass", sentence="It is better.", metric="exact_match", examples=40, live=True)


class Job:
    """A job in a trainer's database, and what follows it."""

    def __init__(self, database: Database, *trackers: Tracker, integrations: list[dict[str, Any]]) -> None:
        self.database = database
        by_name = {tracker.name: tracker for tracker in trackers}
        self.follower = TrackingFollower(database, Notifier(), by_name, tracked_job)
        self._integrations = integrations

    async def create(self) -> None:
        body = {"model": "tiny", "training_file": "file-1", "integrations": self._integrations}
        details = JobDetails(adapter="voice", seed=7, device="cpu")
        new_run = NewRun(
            id=JOB,
            kind=kind.NAME,
            project="default",
            key_id="key_1",
            run_key_id="key_2",
            created_at=1_800_000_000,
            body=body,
            adapters=("voice",),
            details=details.model_dump(mode="json"),
            status=Status.VALIDATING,
            trackers=tuple(entry["type"] for entry in self._integrations),
        )
        await self.database.run(lambda db: records.add(db, new_run, None))

    async def planned(self) -> None:
        details = JobDetails(adapter="voice", seed=7, device="cpu", plan=PLAN).model_dump(mode="json")
        await self.database.run(lambda db: records.change(db, JOB, details=details, status=Status.RUNNING))

    async def steps(self, *steps: int, at: float = 1_800_000_100.0) -> None:
        told = [
            WorkerEvent(
                at=at + step,
                type="metrics",
                message=f"Step {step}",
                data={"step": step, "total_steps": 8, "train_loss": 1 / step, "ends_epoch": step % 4 == 0},
            )
            for step in steps
        ]
        await self.database.run(lambda db: journal.append(db, records.get(db, JOB), told, 0))

    async def ended(self, result: JobResult) -> None:
        values: dict[str, Any] = {"status": Status(result.status), "result": result.model_dump(mode="json")}
        await self.database.run(lambda db: records.change(db, JOB, **values, finished_at=1_800_000_200))

    async def messages(self) -> list[str]:
        """What the job was told, without its steps."""
        events = await self.database.run(lambda db: journal.following(db, JOB, after=0, limit=1000))
        return [event.message for event in events if event.type == "message"]

    async def round(self) -> None:
        """A round of the follower, whatever it has postponed."""
        await self.database.run(lambda db: db.execute(tracked.update().values(not_before=0.0)))
        await self.follower.round()

    async def row(self) -> sa.Row[Any]:
        return await self.database.run(lambda db: db.execute(sa.select(tracked)).one())


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "jobs.db")
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def server() -> MlflowServer:
    return MlflowServer()


@pytest.fixture
async def job(database: Database, server: MlflowServer) -> AsyncIterator[Job]:
    made = Job(database, MlflowTracker("http://mlflow", None, transport=server.transport()), integrations=[MLFLOW])
    await made.create()
    yield made
    await made.follower.stop()


def succeeded() -> JobResult:
    return JobResult(status="succeeded", fine_tuned_model="voice@3", final_loss=0.2, cost=0.5, judged=VERDICT)


async def test_a_job_is_in_mlflow_from_its_plan_to_its_verdict(job: Job, server: MlflowServer) -> None:
    await job.round()
    assert server.runs == {}
    await job.planned()
    await job.round()
    (run,) = server.runs.values()
    assert server.experiments == {"default~support": run["experiment_id"]}
    assert (run["name"], run["status"], run["start_time"]) == (JOB, "RUNNING", 1_800_000_000_000)
    assert run["tags"] == {
        **{"hatrack.job": JOB, "hatrack.project": "default", "hatrack.adapter": "voice"},
        "team": "sea",
    }
    params = run["params"]
    assert (params["lora_rank"], params["n_epochs"], params["learning_rate"]) == ("4", "2", "0.0002")
    assert (params["seed"], params["metric"], params["model"]) == ("7", "exact_match", "tiny")
    assert "Be salty." not in str(run)

    await job.steps(1, 2, 3)
    await job.round()
    await job.steps(4, 5)
    await job.round()
    assert server.history("run-1", "train_loss") == [(step, 1 / step) for step in range(1, 6)]
    assert set(run["metrics"]) == {"train_loss"}
    await job.ended(succeeded())
    await job.round()
    assert (run["status"], run["end_time"]) == ("FINISHED", 1_800_000_200_000)
    assert (run["tags"]["hatrack.version"], run["tags"]["hatrack.verdict"]) == ("voice@3", "pass")
    assert run["tags"]["hatrack.live"] == "true"
    assert server.history("run-1", "final_loss") == [(0, 0.2)]
    assert (await job.row()).state == "done"
    assert await job.messages() == []


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("cancelled", "KILLED")])
async def test_a_job_that_fails_before_its_plan_is_there_with_its_end(
    job: Job, server: MlflowServer, status: Any, shown: str
) -> None:
    await job.ended(JobResult(status=status))
    await job.round()
    (run,) = server.runs.values()
    assert (run["status"], run["params"]) == (shown, {})


async def test_one_that_is_away_misses_nothing_and_the_job_is_told_once(job: Job, server: MlflowServer) -> None:
    server.down = True
    await job.planned()
    for step in (1, 2, 3):
        await job.steps(step)
        await job.round()
    away = "MLflow does not take the job's metrics (no answer (ConnectError)); the job goes on, they are sent later"
    assert await job.messages() == [away]
    row = await job.row()
    assert (row.tries, row.sent, row.state) == (3, 0, "open")
    assert row.not_before > time.time() + BACK_OFF_S[2] - 5
    server.down = False
    await job.ended(succeeded())
    await job.round()
    assert server.history("run-1", "train_loss") == [(step, 1 / step) for step in (1, 2, 3)]
    assert await job.messages() == [away, "MLflow takes the job's metrics again; it has had them all so far"]


async def test_a_refusal_names_its_status_and_not_its_text(job: Job, server: MlflowServer) -> None:
    server.statuses = [403]
    await job.planned()
    await job.round()
    (text,) = await job.messages()
    assert "(status 403, TEMPORARILY_UNAVAILABLE)" in text


async def test_it_is_given_up_in_the_end(job: Job, server: MlflowServer) -> None:
    server.down = True
    await job.planned()
    for _ in range(len(BACK_OFF_S) + 3):
        await job.round()
    assert (await job.row()).state == "given_up"
    assert [text.startswith("MLflow is given up after 9 attempts") for text in await job.messages()] == [False, True]


async def test_a_run_that_was_created_and_not_noted_is_found_again(job: Job, server: MlflowServer) -> None:
    await job.planned()
    await job.round()
    await job.database.run(lambda db: db.execute(tracked.update().values(external_id=None, sent=0)))
    await job.round()
    assert list(server.runs) == ["run-1"]


async def test_steps_that_a_resumed_training_repeats_are_sent_once(job: Job, server: MlflowServer) -> None:
    await job.planned()
    await job.steps(1, 2, 3, 4)
    await job.round()
    await job.steps(3, 4, 5, at=1_800_000_500.0)
    await job.round()
    assert [step for step, _ in server.history("run-1", "train_loss")] == [1, 2, 3, 4, 5]


async def test_a_tracker_that_is_no_longer_set_up_is_told(database: Database) -> None:
    orphan = Job(database, integrations=[MLFLOW])
    await orphan.create()
    await orphan.round()
    assert await orphan.messages() == ["mlflow is no longer set up: what it has not had of this job is not sent"]
    assert (await orphan.row()).state == "given_up"


@pytest.mark.parametrize(
    ("token", "header"), [(None, None), ("t0ken", "Bearer t0ken"), ("joe:pass", "Basic am9lOnBhc3M=")]
)
async def test_the_operator_s_token_is_sent(server: MlflowServer, token: str | None, header: str | None) -> None:
    tracker = MlflowTracker("http://mlflow/", token, transport=server.transport())
    await tracker._experiment("support")
    await tracker.close()
    assert server.authorization == header


@pytest.mark.skipif("HATRACK_TEST_MLFLOW_URL" not in os.environ, reason="HATRACK_TEST_MLFLOW_URL names no server")
async def test_a_real_server_takes_a_job(database: Database) -> None:
    url = os.environ["HATRACK_TEST_MLFLOW_URL"]
    experiment = f"hatrack {time.time_ns()}"
    integration = {"type": "mlflow", "mlflow": {"experiment": experiment, "name": "first", "tags": {"team": "sea"}}}
    followed = Job(database, MlflowTracker(url, None), integrations=[integration])
    await followed.create()
    await followed.planned()
    await followed.steps(*range(1, 6))
    await followed.round()
    await followed.ended(succeeded())
    # once more from the beginning: nothing is there twice
    await followed.database.run(lambda db: db.execute(tracked.update().values(external_id=None, sent=0)))
    while (row := await followed.row()).state == "open":
        await followed.round()
    assert row.state == "done"
    async with httpx.AsyncClient(base_url=f"{url}/api/2.0/mlflow") as http:
        shown = (await http.get("/runs/get", params={"run_id": row.external_id})).json()["run"]
        query = {"run_id": row.external_id, "metric_key": "train_loss"}
        history = (await http.get("/metrics/get-history", params=query)).json()["metrics"]
    await followed.follower.stop()
    assert (shown["info"]["status"], shown["info"]["run_name"]) == ("FINISHED", "first")
    assert {pair["key"]: pair["value"] for pair in shown["data"]["params"]}["lora_rank"] == "4"
    assert {pair["key"]: pair["value"] for pair in shown["data"]["tags"]}["hatrack.verdict"] == "pass"
    assert sorted((int(point["step"]), point["value"]) for point in history) == [(n, 1 / n) for n in range(1, 6)]


# Weights & Biases: the process and its protocol are real, the package is not


@pytest.fixture
def wandb(tmp_path: Path) -> Callable[..., WandbTracker]:
    """Makes trackers whose processes find a stand-in for the package."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(MODULE)
    root = Path(available.__file__).parents[2]
    path = os.pathsep.join((str(tmp_path / "packages"), str(root)))

    def make(**variables: str) -> WandbTracker:
        own = {"PYTHONPATH": path, "WANDB_DIR": str(tmp_path / "wandb"), "WANDB_API_KEY": "k3y", **variables}
        return WandbTracker(tmp_path / "wandb", {"PATH": os.environ["PATH"], **own})

    return make


def told(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "wandb" / "told.jsonl").read_text().splitlines()]


async def test_a_job_is_in_weights_and_biases(
    database: Database, tmp_path: Path, wandb: Callable[..., WandbTracker]
) -> None:
    followed = Job(database, wandb(), integrations=[WANDB])
    await followed.create()
    await followed.planned()
    await followed.steps(1, 2)
    await followed.round()
    await followed.steps(3)
    await followed.ended(succeeded())
    await followed.round()
    await followed.follower.stop()
    started, *points, summary, finished = told(tmp_path)
    init = started["init"]
    assert (init["project"], init["id"], init["resume"]) == ("default~support", JOB, "allow")
    assert (started["init"]["tags"], started["key"], started["names"]) == (["sea"], "k3y", [])
    assert (started["init"]["config"]["lora_rank"], started["init"]["config"]["hatrack.adapter"]) == ("4", "voice")
    assert points == [{"step": step, "values": {"train_loss": 1 / step}} for step in (1, 2, 3)]
    assert summary["summary"]["verdict"] == "pass"
    assert finished == {"finish": 0, "quiet": None}
    assert (await followed.row()).state == "done"


async def test_a_package_that_hangs_is_killed_and_one_that_refuses_is_quoted(
    tmp_path: Path, wandb: Callable[..., WandbTracker], monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    followed = Job(database, integrations=[WANDB])
    await followed.create()
    await followed.planned()
    shown = tracked_job(await database.run(lambda db: records.get(db, JOB)), "wandb")
    hanging, refusing = wandb(FAKE_HANGS="1"), wandb(FAKE_REFUSES="1")
    await hanging.open(shown)
    process = hanging._processes[JOB]
    monkeypatch.setattr("trainer.tracking.wandb.ANSWER_S", 0.2)
    with pytest.raises(TrackerFailed, match="did not answer"):
        await hanging.log(shown, JOB, [Point(1, 1.0, {"train_loss": 1.0})])
    assert process.returncode is not None
    monkeypatch.undo()
    with pytest.raises(TrackerFailed, match="RuntimeError: the API key is not valid"):
        await refusing.open(shown)
    assert refusing._processes == {}


async def test_a_process_that_cannot_be_started_is_a_failure(tmp_path: Path, database: Database) -> None:
    followed = Job(database, integrations=[WANDB])
    await followed.create()
    await followed.planned()
    shown = tracked_job(await database.run(lambda db: records.get(db, JOB)), "wandb")
    tracker = WandbTracker(tmp_path / "wandb", {}, (sys.executable, "-c", ""))
    with pytest.raises(TrackerFailed):
        await tracker.open(shown)
