"""The checkpoints of a job: which become versions, under which names, and what the API says of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load, load_file

from adapters.names import checkpoint_alias
from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.test_worker import events, result, run
from trainer.finetune import spec
from trainer.finetune.objects import checkpoint_object
from trainer.finetune.spec import JobResult
from trainer.runs import control, protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import DONE, PAUSED
from trainer.runs.state import CheckpointRow
from trainer.tune.lineage import Metadata

JOB = "ftjob-0f3a9c1b22de77aa01bb22cc"
A_DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


def named(step: int) -> str:
    return f"ckpt-0f3a9c1b22de-step-{step}"


def test_the_last_epochs_become_versions_that_expire(make_job: Any, gateway: FakeGateway) -> None:
    folder = make_job(id=JOB, checkpoint_versions=2, keep_checkpoints_s=A_DAY_S)
    began = time.time()
    assert run(folder) == DONE
    done = result(folder)
    # three epochs of four steps; the last one is the result
    assert done.fine_tuned_model == "voice@1"
    assert done.checkpoints == {8: "voice@2", 12: "voice@1"}
    adapter, checkpoint = gateway.pushed
    assert (adapter["alias"], checkpoint["alias"]) == (b"candidate", named(8).encode())
    assert "expires_at" not in adapter
    assert began + A_DAY_S - 1 <= int(checkpoint["expires_at"]) <= time.time() + A_DAY_S
    assert gateway.aliases[named(12)] == 1
    assert checkpoint["settings"] == adapter["settings"]

    training = Metadata.model_validate_json(checkpoint["metadata"]).training
    whole = Metadata.model_validate_json(adapter["metadata"]).training
    assert (training.checkpoint_step, training.exported_step, whole.exported_step) == (8, 8, 12)
    assert training.held_out_loss != whole.held_out_loss
    at_8 = load_file(folder / spec.CHECKPOINTS / "epoch-00000008.safetensors")
    assert not (folder / spec.CHECKPOINTS / "epoch-00000004.safetensors").exists()
    registered = load(checkpoint["weights"])
    assert sorted(name.replace(".default", "") for name in at_8) == sorted(registered)
    assert all(
        torch.equal(weight.bfloat16(), registered[name.replace(".default", "")]) for name, weight in at_8.items()
    )
    assert any(not torch.equal(weight, registered[name]) for name, weight in load(adapter["weights"]).items())
    proofs = [Metadata.model_validate_json(pushed["metadata"]).proof for pushed in (adapter, checkpoint)]
    assert [probe.base for probe in proofs[0].probes] == [probe.base for probe in proofs[1].probes]
    assert [probe.adapter for probe in proofs[0].probes] != [probe.adapter for probe in proofs[1].probes]
    assert f"the checkpoint of step 8 answers as voice:{named(8)} (voice@2)" in [e["message"] for e in events(folder)]


def test_a_version_that_is_kept_for_some_days_has_no_alias_that_would_keep_it(
    make_job: Any, gateway: FakeGateway
) -> None:
    folder = make_job(id=JOB, keep_version_s=A_DAY_S)
    began = time.time()
    assert run(folder) == DONE
    (adapter,) = gateway.pushed
    assert adapter["alias"] == b""
    assert began + A_DAY_S - 1 <= int(adapter["expires_at"]) <= time.time() + A_DAY_S
    told = [event["message"] for event in events(folder)]
    assert "voice@1 is proven and serves, for 1 day unless it is promoted" in told


def test_a_checkpoint_that_the_gateway_refuses_costs_the_job_nothing(make_job: Any, gateway: FakeGateway) -> None:
    gateway.failing = [201, 422]
    folder = make_job(id=JOB, checkpoint_versions=2, keep_checkpoints_s=A_DAY_S)
    assert run(folder) == DONE
    done = result(folder)
    assert (done.status, done.checkpoints) == ("succeeded", {12: "voice@1"})
    assert done.judged is not None
    warned = [event for event in events(folder) if event["level"] == "warn" and "checkpoint" in event["message"]]
    assert [event["message"].startswith("the checkpoint of step 8 does not answer: ") for event in warned] == [True]


@pytest.mark.slow
def test_a_worker_that_goes_on_registers_the_rest(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_job(id=JOB, checkpoint_versions=3, keep_checkpoints_s=A_DAY_S)
    emit = RunDirectory.emit_event

    def pause_after_the_first(self: RunDirectory, message: str, **data: Any) -> None:
        emit(self, message, **data)
        if message.startswith("the checkpoint of step 4 answers"):
            (self.directory / protocol.CONTROL).write_text("pause")

    monkeypatch.setattr(RunDirectory, "emit_event", pause_after_the_first)
    assert run(folder) == PAUSED
    assert pushed(folder).checkpoints == {4: "voice@2"}
    monkeypatch.setattr(RunDirectory, "emit_event", emit)
    (folder / protocol.CONTROL).write_text("run")
    assert run(folder) == DONE
    assert result(folder).checkpoints == {4: "voice@2", 8: "voice@3", 12: "voice@1"}
    assert [pushed["alias"].decode() for pushed in gateway.pushed] == ["candidate", named(4), named(8)]


def pushed(folder: Path) -> JobResult:
    return JobResult.model_validate_json((folder / spec.PUSHED).read_bytes())


def shown(done: JobResult | None, *, last: bool = False) -> tuple[str, str | None]:
    """The name and the version that the API gives for the checkpoint of step 8."""
    run_record = SimpleNamespace(id=JOB, details={"adapter": "voice", "seed": 1, "device": "cpu"})
    row = CheckpointRow(run=JOB, step=8, at=5.5, metrics={"step": 8})
    checkpoint = checkpoint_object(cast(Any, run_record), row, done, last)
    assert json.dumps(checkpoint)
    return checkpoint["fine_tuned_model_checkpoint"], checkpoint["hatrack"]["version"]


def test_a_checkpoint_has_its_name_before_it_answers() -> None:
    alias = f"voice:{named(8)}"
    assert checkpoint_alias(JOB, 8) == named(8)
    assert shown(None, last=True) == (alias, None)
    done = JobResult(status="succeeded", fine_tuned_model="voice@1", checkpoints={8: "voice@2", 12: "voice@1"})
    assert shown(done) == (alias, "voice@2")
    # the result of a training whose best point was step 8
    best = JobResult(status="succeeded", fine_tuned_model="voice@1", checkpoints={8: "voice@1", 12: "voice@2"})
    assert shown(best) == ("voice@1", "voice@1")
    refused = JobResult(status="succeeded", fine_tuned_model="voice@1", checkpoints={12: "voice@1"})
    assert shown(refused) == (alias, None)
    # of an earlier release
    earlier = JobResult(status="succeeded", fine_tuned_model="voice@1")
    assert shown(earlier, last=True) == ("voice@1", "voice@1")
    assert shown(earlier) == (alias, None)
