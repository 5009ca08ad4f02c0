"""What a job will take: prepared as the job's worker would, at a speed that was measured and says where."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.protocol.costs import ESTIMATE_PATH, LAST_TRAINING_PATH, EstimatedJob, LastTraining
from adapters.protocol.runs import CreateJob, FileRef, JobContext
from tests.unit.trainer.finetune.conftest import FakeGateway, jsonl, rows
from tests.unit.trainer.finetune.trainers import Running, gateway_headers, running
from trainer.data.child_process import REFUSED
from trainer.finetune import estimating, spec
from trainer.finetune.spec import EstimateOrders, JobSpec, MeasuredPlan, PastSpeed
from trainer.runs import protocol, records

CONTENT = jsonl(rows(40))


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway) as found:
        yield found


def job_directory(make_job: Any, orders: EstimateOrders, content: bytes = CONTENT) -> Path:
    folder: Path = make_job(content)
    (folder / spec.TRAINING).write_bytes(content)
    (folder / spec.ESTIMATE).write_text(orders.model_dump_json())
    return folder


def measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> MeasuredPlan:
    assert estimating.main([str(folder)]) == 0
    return MeasuredPlan.model_validate_json(capsys.readouterr().out)


def test_a_few_steps_are_measured_where_no_job_tells_the_speed(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimating, "MIN_MEASURED_S", 0.0)
    folder = job_directory(make_job, EstimateOrders(record=(PastSpeed(tokens_per_s=9.0, quantization="nf4"),)))
    plan = measured(folder, capsys)
    assert (plan.jobs, plan.plan.recipe.epochs, plan.device) == (0, 3, "cpu")
    assert plan.examples + plan.held_out == 40
    assert plan.tokens_per_s > 0
    assert plan.preparing_s > 0
    assert not (folder / spec.CHECKPOINTS).exists(), "the steps are thrown away"


def test_past_jobs_with_such_a_recipe_tell_the_speed_by_their_median(
    make_job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    past = tuple(PastSpeed(tokens_per_s=pace, quantization="none") for pace in (100.0, 900.0, 120.0))
    plan = measured(job_directory(make_job, EstimateOrders(record=past)), capsys)
    assert (plan.jobs, plan.tokens_per_s) == (3, 120.0)


def test_a_job_that_would_be_refused_is_refused(make_job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = job_directory(make_job, EstimateOrders(), b"{")
    assert estimating.main([str(folder)]) == REFUSED
    assert json.loads(capsys.readouterr().out)["code"] == "invalid_training_file"


async def estimate(trainer: Running, content: bytes, **body: Any) -> httpx.Response:
    context = JobContext(
        adapter="voice",
        parent=None,
        parent_shape=None,
        training_file=FileRef(id="train", filename="train.jsonl", bytes=len(content), sha256="0"),
        validation_file=None,
    )
    sent = CreateJob(request={"model": "tiny", "training_file": "train"} | body, context=context)
    form = {"job": sent.model_dump_json()}
    return await trainer.client().http.post(
        ESTIMATE_PATH, data=form, files={"training_file": ("t", content)}, headers=gateway_headers()
    )


async def test_a_past_job_tells_what_the_next_one_will_take(trainer: Running) -> None:
    client = trainer.client()
    ended = await client.ended((await client.create(suffix="voice", metadata={"pace": "250"})).id)
    assert ended.status == "succeeded"
    answer = await estimate(trainer, CONTENT, hyperparameters={"n_epochs": 2})
    assert answer.status_code == 200, answer.text
    told = EstimatedJob.model_validate(answer.json())
    assert (told.speed_source, told.jobs, told.epochs, told.tokens_per_s) == ("record", 1, 2, 250)
    assert told.training_s == pytest.approx(told.trained_tokens / told.tokens_per_s)
    assert told.trained_tokens == 2 * told.plan["tokens_an_epoch"]
    assert (told.hyperparameters["n_epochs"], told.plan["recipe"]["epochs"]) == (2, 2)
    assert told.plan["chosen"]["lora_rank"].startswith(f"{told.hyperparameters['lora_rank']}: ")
    assert "n_epochs" not in told.plan["chosen"], "it was requested"
    shown = ended.hatrack["plan"]
    assert told.plan.keys() == shown.keys(), "in the shape in which a job shows it"
    assert told.plan["recipe"].keys() == shown["recipe"].keys()
    assert "answers" not in told.plan["primary"]
    directory = trainer.trainer.jobs.directories.path_of(ended.id)
    assert JobSpec.model_validate_json((directory / protocol.SPEC).read_bytes()).base_name == "tiny"
    query = {"project": "default", "adapter": "voice"}
    last = LastTraining.model_validate((await client.http.get(LAST_TRAINING_PATH, params=query)).json())
    assert (last.run, last.version, last.run_key_id) == (ended.id, 1, "key_job")
    assert last.training_s + last.judging_s == pytest.approx(ended.hatrack["seconds"], abs=0.01)
    none = await client.http.get(LAST_TRAINING_PATH, params=query | {"adapter": "nobody"})
    assert none.json() is None


async def test_a_job_of_a_learning_curve_is_no_measure_of_the_next_training(trainer: Running) -> None:
    client = trainer.client()
    whole = await client.ended((await client.create(suffix="voice")).id)
    part = await client.ended((await client.create(suffix="voice")).id)
    query = {"project": "default", "adapter": "voice"}

    async def last() -> LastTraining:
        return LastTraining.model_validate((await client.http.get(LAST_TRAINING_PATH, params=query)).json())

    assert (await last()).run == part.id
    database = trainer.trainer.database
    run = await database.run(lambda db: records.get(db, part.id))
    await database.run(lambda db: records.change(db, part.id, details=run.details | {"for_curve": True}))
    assert (await last()).run == whole.id
    await database.run(lambda db: records.change(db, whole.id, parent=part.id))
    assert (await last()).run_key_id is None, "the key is shared with all runs of the ladder"


async def test_the_request_is_checked_as_a_jobs_and_nothing_is_kept(trainer: Running, tmp_path: Path) -> None:
    refused = await estimate(trainer, CONTENT, hyperparameters={"lora_rank": 4096})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "hyperparameters.lora_rank")
    broken = await estimate(trainer, b"{")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_training_file")
    assert list(tmp_path.rglob(".scratch-*")) == []
