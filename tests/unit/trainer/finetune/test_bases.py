"""A trainer for a gateway with several bases: each job is checked, planned and run for its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.protocol.runs import FileRef, JobContext
from tests.support.tiny_models import make_base
from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import installation
from trainer.app import Trainer
from trainer.config import Settings
from trainer.errors import InvalidField
from trainer.finetune.capacity import BaseModelInfo
from trainer.http import CurrentCaller
from trainer.installation import Installation, OtherBase


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
