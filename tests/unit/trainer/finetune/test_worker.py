from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finetune.conftest import FakeGateway, jsonl, rows
from trainer.data.report import Report
from trainer.finetune import spec, system_prompt, worker
from trainer.finetune.spec import TRAIN, VALIDATE, JobResult, TrainingPlan
from trainer.runs import control, protocol
from trainer.runs import worker as runs_worker
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import BUSY, DONE, PAUSED
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.lineage import CONFIG_FILE, WEIGHTS_FILE, Metadata


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


def run(folder: Path, stage: str = TRAIN) -> int:
    with RunDirectory(folder) as held:
        return runs_worker.work(worker.KIND, held, stage)


def result(folder: Path) -> JobResult:
    return JobResult.model_validate_json((folder / protocol.RESULT).read_bytes())


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / protocol.EVENTS).read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [event["data"] for event in events(folder) if event["type"] == "metrics"]


def test_from_a_file_to_an_adapter_that_the_gateway_has(make_job: Any, gateway: FakeGateway) -> None:
    folder = make_job()
    assert run(folder, VALIDATE) == DONE
    assert Report.model_validate_json((folder / spec.REPORT).read_bytes()).trained_on == 14
    plan = TrainingPlan.model_validate_json((folder / spec.PLAN).read_bytes())
    assert (plan.recipe.rank, plan.recipe.alpha, plan.recipe.max_length) == (4, 8.0, 256)
    assert set(plan.chosen) == {
        *("lora_alpha", "quantization", "max_length", "micro_batch_tokens", "early_stopping_patience")
    }
    assert plan.primary is not None
    assert plan.primary.name == "similarity"
    assert not (folder / protocol.RESULT).exists()

    assert run(folder) == DONE
    done = result(folder)
    assert (done.status, done.fine_tuned_model, done.digest) == ("succeeded", "voice@1", "d" * 64)
    (pushed,) = gateway.pushed
    assert pushed["base"] == b"tiny", "no gateway takes it for another base"
    assert (pushed["name"], pushed["alias"], pushed["settings"]) == (b"voice", b"candidate", b"{}")
    metadata = Metadata.model_validate_json(pushed["metadata"])
    assert (metadata.lineage.job, metadata.lineage.files) == ("ftjob-1", ("train",))
    assert metadata.lineage.recipe == plan.recipe
    report = Report.model_validate_json((folder / spec.REPORT).read_bytes())
    assert metadata.lineage.split_off == report.held_out.lines != ()
    assert metadata.training.held_out_loss is not None
    assert len(metadata.proof.probes) > 0
    ends = [m for m in metrics(folder) if m["ends_epoch"]]
    assert [m["step"] for m in ends] == [4, 8, 12]
    assert all(m["full_valid_loss"] > 0 and m["total_steps"] == 12 for m in ends)
    assert ends[-1]["train_loss"] < ends[0]["train_loss"]
    assert "`hatrack promote voice@1` makes it live" in events(folder)[-1]["message"]
    assert run(folder) == DONE
    assert len(gateway.pushed) == 1


@pytest.mark.slow
def test_a_system_prompt_that_all_examples_have_becomes_the_versions(make_job: Any, gateway: FakeGateway) -> None:
    found = [
        {"messages": [{"role": "system", "content": "Be salty."}, {"role": "user", "content": row["prompt"]},
                      {"role": "assistant", "content": row["completion"]}]}
        for row in rows()
    ]  # fmt: skip
    folder = make_job(jsonl(found), wish=HyperparameterRequest(n_epochs=1, batch_size=8, lora_rank=4))
    assert run(folder) == DONE
    assert json.loads(gateway.pushed[0]["settings"]) == {"system_prompt": "Be salty."}


def test_one_that_no_version_may_hold_is_refused_before_anything_is_trained(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_prompt, "MAX_PROMPT_CHARS", 8)
    found = [{"messages": [{"role": "system", "content": "Be salty."}, *turns(row)]} for row in rows()]
    folder = make_job(jsonl(found), wish=HyperparameterRequest(n_epochs=1, batch_size=8, lora_rank=4))
    assert run(folder) == DONE
    failed = result(folder)
    assert failed.error is not None
    assert (failed.status, failed.error.param) == ("failed", "hyperparameters.system_prompt")
    assert "has 9 characters; the maximum is 8" in failed.error.message
    assert gateway.pushed == []


def turns(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


@pytest.mark.slow
def test_paused_and_resumed_it_has_the_losses_of_one_that_ran_through(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_job()
    assert run(whole) == DONE
    paused = make_job(id="ftjob-2")
    monkeypatch.setattr("trainer.finetune.pipeline.METRICS_INTERVAL_S", 0.0)
    say = RunDirectory.emit_event

    def pause_at_step_5(self: RunDirectory, message: str, **data: Any) -> None:
        say(self, message, **data)
        if data.get("step") == 5:
            (self.directory / protocol.CONTROL).write_text("pause")

    monkeypatch.setattr(RunDirectory, "emit_event", pause_at_step_5)
    assert run(paused) == PAUSED
    assert not (paused / protocol.RESULT).exists()
    assert [m["step"] for m in metrics(paused)] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(RunDirectory, "emit_event", say)
    (paused / protocol.CONTROL).write_text("run")
    assert run(paused) == DONE
    assert [m["step"] for m in metrics(paused)] == list(range(1, 13))
    by_step = {m["step"]: m["train_loss"] for m in metrics(paused)}
    assert all(by_step[m["step"]] == m["train_loss"] for m in metrics(whole))
    assert result(paused).final_loss == result(whole).final_loss


@pytest.mark.slow
def test_a_cancelled_job_ends_within_a_step_and_pushes_nothing(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_job()
    monkeypatch.setattr("trainer.finetune.pipeline.METRICS_INTERVAL_S", 0.0)
    say = RunDirectory.emit_event

    def cancel_at_step_3(self: RunDirectory, message: str, **data: Any) -> None:
        say(self, message, **data)
        if data.get("step") == 3:
            (self.directory / protocol.CONTROL).write_text("cancel")

    monkeypatch.setattr(RunDirectory, "emit_event", cancel_at_step_3)
    assert run(folder) == DONE
    assert result(folder).status == "cancelled"
    assert [m["step"] for m in metrics(folder)] == [1, 2, 3]
    assert gateway.pushed == []


@pytest.mark.parametrize(
    ("content", "changes", "code", "words"),
    [
        (b"{", {}, "invalid_training_file", "line 1: not JSON"),
        (jsonl(rows(5)), {}, "invalid_training_file", "at least 10"),
        (jsonl([*rows(), {"prompt": "why " * 400, "completion": "so"}]), {}, "invalid_training_file", "max_length"),
        (None, {"wish": HyperparameterRequest(lora_rank=32)}, "invalid_hyperparameter", "engine serves 16"),
        (None, {"wish": HyperparameterRequest(max_length=4096)}, "invalid_hyperparameter", "256 at most"),
        (
            None,
            {"wish": HyperparameterRequest(target_modules=("nothing",), lora_rank=4)},
            "nothing_trainable",
            "nothing",
        ),
        (
            None,
            {"wish": HyperparameterRequest(learning_rate=1.0, n_epochs=50, lora_rank=4)},
            "loss_not_finite",
            "lower learning rate",
        ),
    ],
)
def test_what_cannot_be_done_fails_with_a_code_and_says_what_to_do(
    make_job: Any, gateway: FakeGateway, content: bytes | None, changes: dict[str, Any], code: str, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if code == "loss_not_finite":
        monkeypatch.setattr("trainer.tune.optimizer.torch.nn.utils.clip_grad_norm_", _overflow)
    folder = make_job(content, **changes)
    assert run(folder) == DONE
    failed = result(folder)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == code
    assert words in failed.error.message
    assert events(folder)[-1]["level"] == "error"
    assert gateway.pushed == []


def _overflow(parameters: Any, _most: float) -> Any:
    import torch

    return torch.tensor(float("inf"))


def test_a_refused_file_leaves_its_report(make_job: Any) -> None:
    folder = make_job(jsonl(rows()), held_out=jsonl([*rows()[:1], *rows(30)[24:]]))
    assert run(folder, VALIDATE) == DONE
    failed = result(folder).error
    assert failed is not None
    assert "held_out_in_training" in failed.message
    report = Report.model_validate_json((folder / spec.REPORT).read_bytes())
    assert report.refused


@pytest.mark.parametrize("order", ["cancel", "pause"])
def test_an_order_is_heeded_while_the_data_are_looked_at(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    folder = make_job()

    def meanwhile(*_: Any) -> list[Any]:
        (folder / protocol.CONTROL).write_text(order)
        return []

    monkeypatch.setattr("trainer.data.findings.personal", meanwhile)
    assert run(folder, VALIDATE) == (DONE if order == "cancel" else PAUSED)
    assert not (folder / spec.PLAN).exists()
    assert (folder / protocol.RESULT).exists() is (order == "cancel")


@pytest.mark.slow
@pytest.mark.parametrize("there", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_parent_of_which_only_half_was_fetched_is_fetched_again(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    gateway.grounded = {"/v1/adapters/voice/versions/1": {"vector_store_ids": ["vs_shop"]}}
    first = make_job(wish=HyperparameterRequest(n_epochs=1, lora_rank=4))
    assert run(first) == DONE

    def fetch(_gateway: Gateway, _model: str, directory: Path) -> None:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copy(first / spec.OUTPUT / name, directory / name)

    monkeypatch.setattr(Gateway, "fetch_adapter", fetch)
    folder = make_job(id="ftjob-2", parent="voice@1", wish=HyperparameterRequest(n_epochs=1))
    (folder / "parent").mkdir()
    shutil.copy(first / spec.OUTPUT / there, folder / "parent" / there)
    assert run(folder, VALIDATE) == DONE
    # what the parent is grounded in the new version will be
    plan = TrainingPlan.model_validate_json((folder / spec.PLAN).read_bytes())
    assert plan.grounding == {"vector_store_ids": ["vs_shop"]}
    assert plan.sampling is None
    assert {path.name for path in (folder / "parent").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


def test_a_look_at_the_load_writes_nothing_into_the_log(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "lower_priority", lambda: None)
    monkeypatch.setattr(runs_worker, "work", lambda *_: DONE)
    logger = logging.getLogger("httpx")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    assert worker.main([str(make_job()), "--stage", "train"]) == DONE
    assert logger.level == logging.WARNING


def test_a_full_disk_and_a_missing_file_are_told_apart(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = make_job()
    gateway.files.clear()
    assert run(missing) == DONE
    failed = result(missing).error
    assert failed is not None
    assert failed.code == "gateway_refused"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.tune.checkpoint.torch.save", full)
    folder = make_job(id="ftjob-2")
    assert run(folder) == DONE
    failed = result(folder).error
    assert failed is not None
    assert failed.code == "disk_full"


@pytest.mark.slow
def test_an_upload_is_tried_again_while_the_gateway_is_away(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.runs.gateway.RETRY_S", (0.01,))
    gateway.failing = [503, 502, 429]
    folder = make_job(wish=HyperparameterRequest(n_epochs=1, lora_rank=4))
    assert run(folder) == DONE
    assert result(folder).fine_tuned_model == "voice@1"
    gateway.failing = [422]
    refused = make_job(id="ftjob-2", wish=HyperparameterRequest(n_epochs=1, lora_rank=4))
    assert run(refused) == DONE
    failed = result(refused).error
    assert failed is not None
    assert failed.code == "gateway_refused"


@pytest.mark.slow
def test_a_training_that_had_ended_is_not_done_again(make_job: Any, gateway: FakeGateway) -> None:
    gateway.failing = [422]
    folder = make_job(wish=HyperparameterRequest(n_epochs=1, lora_rank=4))
    assert run(folder) == DONE
    (folder / protocol.RESULT).unlink()
    before = len(metrics(folder))
    assert run(folder) == DONE
    assert result(folder).status == "succeeded"
    assert len(metrics(folder)) == before


@pytest.mark.slow
def test_the_worker_gives_way_to_callers(make_job: Any, gateway: FakeGateway) -> None:
    folder = make_job(yield_most_s=240.0)
    gateway.load = (3, 4)

    def stepped() -> bool:
        return (folder / protocol.EVENTS).exists() and '"metrics"' in (folder / protocol.EVENTS).read_text()

    def leave() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not stepped():
            time.sleep(0.02)
        looked = gateway.asked.count("GET /v1/load")
        while time.monotonic() < deadline and gateway.asked.count("GET /v1/load") < looked + 2:
            time.sleep(0.02)
        gateway.load = (0, 0)

    callers = threading.Thread(target=leave)
    callers.start()
    assert run(folder) == DONE
    callers.join()
    assert gateway.asked.count("GET /v1/load") >= 3
    assert any("for live traffic" in event["message"] for event in events(folder))


@pytest.mark.slow
def test_short_pauses_are_said_at_the_end(make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.finetune.pipeline.PAUSE_REPORT_INTERVAL_S", float("inf"))
    folder = make_job(yield_most_s=0.01, wish=HyperparameterRequest(n_epochs=1, batch_size=8, lora_rank=4))
    gateway.load = (1, 0)
    assert run(folder) == DONE
    (said,) = [event for event in events(folder) if "for live traffic" in event["message"]]
    assert said["data"]["paused_s"] >= 0.01


def test_an_order_is_heeded_while_the_held_out_are_looked_at(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_job(wish=HyperparameterRequest(n_epochs=1, batch_size=8, lora_rank=4))

    def look(*_: Any, before_batch: Any) -> None:
        (folder / protocol.CONTROL).write_text("cancel")
        before_batch()
        raise AssertionError("it went on")

    monkeypatch.setattr("trainer.tune.train.evaluate", look)
    assert run(folder) == DONE
    assert result(folder).status == "cancelled"
    assert gateway.pushed == []


def test_two_workers_are_never_at_one_job(make_job: Any) -> None:
    folder = make_job()
    with RunDirectory(folder):
        assert worker.main([str(folder), "--stage", "validate"]) == BUSY


def test_a_line_that_a_killed_worker_left_half_spoils_no_other(make_job: Any) -> None:
    folder = make_job()
    (folder / protocol.EVENTS).write_text('{"at": 1, "mess')
    with RunDirectory(folder) as held:
        held.emit_event("hello")
    torn, whole = (folder / protocol.EVENTS).read_text().splitlines()
    assert torn == '{"at": 1, "mess'
    assert json.loads(whole)["message"] == "hello"
