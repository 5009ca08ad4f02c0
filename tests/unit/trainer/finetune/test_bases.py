"""A trainer for a gateway with several bases: each job is checked, planned and run for its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.runs import FileRef, JobContext
from tests.support.tiny_models import make_base
from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import CONTEXT_HEADER, Client, context, installation, running
from trainer.app import Trainer
from trainer.config import Settings
from trainer.errors import InvalidField
from trainer.finetune.capacity import BaseModelInfo
from trainer.finetune.kind import VALIDATE
from trainer.http import CurrentCaller
from trainer.installation import BaseGone, Installation, OtherBase
from trainer.runs import records
from trainer.runs.kind import RunOutcome


def job_context(base: str | None = None) -> JobContext:
    return JobContext(
        adapter="voice", base=base, training_file=FileRef(id="train", filename="t.jsonl", bytes=4096, sha256="0" * 64)
    )


@pytest.fixture(scope="session")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("qwen3", tmp_path_factory.mktemp("wide"), hidden_size=64)


@pytest.fixture
def both(tmp_path: Path, base_dir: Path, wide_dir: Path, gateway: FakeGateway) -> Installation:
    wide = OtherBase(wide_dir, "wide", max_rank=8, context=512, dtype="float32")
    return replace(installation(tmp_path, base_dir, gateway), others=(wide,))


def test_each_base_has_its_own_limits(both: Installation, wide_dir: Path) -> None:
    assert both.base_names == ("tiny", "wide")
    assert both.on(None) is both.on("tiny") is both
    wide = both.on("wide")
    assert (wide.base, wide.base_name, wide.max_rank, wide.context, wide.dtype) == (wide_dir, "wide", 8, 512, "float32")
    assert (wide.home, wide.gateway) == (both.home, both.gateway)
    with pytest.raises(InvalidField, match="does not know the base `other`; it was started with `tiny`, `wide`"):
        both.on("other")


def test_an_argument_brings_another_base(tmp_path: Path) -> None:
    text = f'{{"base": "{tmp_path}", "base_name": "wide", "max_rank": 8, "context": null, "dtype": "float16"}}'
    assert OtherBase.parse(text) == OtherBase(tmp_path, "wide", 8, None, "float16")


async def test_a_job_is_planned_for_the_base_that_it_names(both: Installation, base_dir: Path, wide_dir: Path) -> None:
    others = {"wide": BaseModelInfo.read(wide_dir)}
    trainer = Trainer.build(Settings(device="cpu"), both, BaseModelInfo.read(base_dir), others=others)
    caller = CurrentCaller(project="default", key_id="key", adapters=None)
    body = {"model": "wide", "training_file": "train"}
    spec = await trainer.jobs.planned(caller, body, job_context(base="wide"))
    assert (spec.base_name, spec.base_dir, spec.max_rank, spec.context, spec.dtype) == (
        *("wide", wide_dir, 8, 512),
        "float32",
    )
    default = await trainer.jobs.planned(caller, body | {"model": "tiny"}, job_context())
    assert (default.base_name, default.base_dir) == ("tiny", base_dir)
    rank = body | {"hyperparameters": {"lora_rank": 16}}
    with pytest.raises(InvalidField, match="lora_rank"):
        await trainer.jobs.planned(caller, rank, job_context(base="wide"))
    assert (await trainer.jobs.planned(caller, rank | {"model": "tiny"}, job_context())).wish.lora_rank == 16


async def create(client: Client, **metadata: str) -> Any:
    return await client.create({CONTEXT_HEADER: context(base="wide")}, model="wide", metadata=metadata)


async def test_a_job_whose_base_is_gone_fails_and_says_so(
    tmp_path: Path, base_dir: Path, wide_dir: Path, gateway: FakeGateway
) -> None:
    wide = OtherBase(wide_dir, "wide", max_rank=8)
    async with running(tmp_path, base_dir, gateway, others=(wide,)) as trainer:
        client = trainer.client()
        held, queued = await create(client, hold="3"), await create(client)
        await client.at_step(held.id, 3)
    async with running(tmp_path, base_dir, gateway) as trainer:
        client = trainer.client()
        for job_id in (held.id, queued.id):
            job = await client.ended(job_id)
            assert (job.status, job.error.code) == ("failed", "base_gone")
            assert job.error.message.startswith(
                "The base `wide` is no longer served; the gateway serves `tiny`. Serve it again"
            )
            assert job.error.message in await client.messages(job_id)


@pytest.mark.slow
async def test_a_base_that_goes_while_a_job_is_checked_ends_it(
    tmp_path: Path, base_dir: Path, wide_dir: Path, gateway: FakeGateway
) -> None:
    """The worker of a former trainer ends its stage, and what follows needs the base."""
    wide = OtherBase(wide_dir, "wide", max_rank=8)
    async with running(tmp_path, base_dir, gateway, others=(wide,)) as trainer:
        client = trainer.client()
        held, queued = await create(client, hold="3"), await create(client)
        await client.at_step(held.id, 3)
        await client.until(queued.id, lambda job: job.status == "queued")
        directories = trainer.trainer.jobs.directories
        stored = json.loads(directories.read_bytes(queued.id, "spec.json") or b"")
        (directories.path_of(queued.id) / "spec.json").write_text(json.dumps(stored | {"base_name": "gone"}))
        finetune = trainer.trainer.jobs._finetune
        run = await trainer.trainer.jobs._database.run(lambda db: records.get(db, queued.id))
        outcome = await finetune.stage_ended(run, VALIDATE, ())
        assert isinstance(outcome, RunOutcome)
        assert (outcome.result.error.code, outcome.result.status) == ("base_gone", "failed")


@pytest.mark.slow
async def test_a_base_with_another_name_is_the_same_base(
    tmp_path: Path, base_dir: Path, wide_dir: Path, gateway: FakeGateway
) -> None:
    async with running(tmp_path, base_dir, gateway, others=(OtherBase(wide_dir, "wide", max_rank=8),)) as trainer:
        held = await create(trainer.client(), hold="3")
        await trainer.client().at_step(held.id, 3)
    async with running(tmp_path, base_dir, gateway, others=(OtherBase(wide_dir, "broad", max_rank=8),)) as trainer:
        assert (await trainer.client().ended(held.id)).status == "succeeded"
        stored = json.loads(trainer.trainer.jobs.directories.read_bytes(held.id, "spec.json") or b"")
        assert (stored["base_name"], stored["base_dir"]) == ("broad", str(wide_dir))


def test_a_run_finds_its_base_by_name_or_directory(both: Installation, wide_dir: Path, tmp_path: Path) -> None:
    assert both.of_run("wide", tmp_path).base_name == both.of_run("old name", wide_dir).base_name == "wide"
    assert both.of_run(None, tmp_path) is both
    with pytest.raises(BaseGone, match="The base `other` is no longer served; the gateway serves `tiny`, `wide`"):
        both.of_run("other", tmp_path)
