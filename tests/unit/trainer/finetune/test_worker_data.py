"""What a worker finds in a job's data and in its parent before it trains, and what of it stands in the lineage."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapters.inspect import modules_in
from tests.unit.trainer.finetune.conftest import FakeGateway, jsonl, rows
from tests.unit.trainer.finetune.test_worker import events, result, run, turns
from trainer.data.report import Report
from trainer.data.split import Split
from trainer.errors import GatewayRefused
from trainer.finetune import pipeline as job_work
from trainer.finetune import spec
from trainer.finetune.capacity import BaseModelInfo
from trainer.finetune.spec import VALIDATE, EvaluationOptions, TrainingPlan
from trainer.runs import control, protocol
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import DONE
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.lineage import CONFIG_FILE, WEIGHTS_FILE, DataSource, Metadata


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


def with_system(row: dict[str, Any], text: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": text}, *turns(row)]}


def test_a_prompt_that_every_example_contradicts_is_refused_before_training(make_job: Any) -> None:
    folder = make_job(jsonl([with_system(row, "Be salty.") for row in rows()]), system_prompt="Be sweet.")
    assert run(folder, VALIDATE) == DONE
    failed = result(folder).error
    assert failed is not None
    assert (failed.code, failed.param) == ("invalid_hyperparameter", "hyperparameters.system_prompt")
    assert "differs from the system message of every example" in failed.message
    same = make_job(jsonl([with_system(row, "Be salty.") for row in rows()]), id="ftjob-2", system_prompt="Be salty.")
    assert run(same, VALIDATE) == DONE
    assert not (same / protocol.RESULT).exists()
    assert not any(event["data"].get("code") == "system_prompts_differ" for event in events(same))


def test_a_prompt_that_some_examples_contradict_is_warned_of(make_job: Any) -> None:
    found = [with_system(row, "Be salty.") if n % 2 else row for n, row in enumerate(rows())]
    mixed = [row if "messages" in row else {"messages": turns(row)} for row in found]
    folder = make_job(jsonl(mixed), system_prompt="Be sweet.")
    assert run(folder, VALIDATE) == DONE
    (warned,) = [event for event in events(folder) if event["data"].get("code") == "system_prompts_differ"]
    assert warned["level"] == "warn"
    trained_on = Report.model_validate_json((folder / spec.REPORT).read_bytes()).trained_on
    assert 0 < int(warned["message"].split()[0]) == len(warned["data"]["lines"]) < trained_on
    assert all(line % 2 == 0 for line in warned["data"]["lines"])


def test_a_held_out_part_that_is_too_small_for_a_pass_is_told_before_training(make_job: Any) -> None:
    few, enough = make_job(), make_job(id="ftjob-2", judging=EvaluationOptions(min_examples=2))
    for folder, times in ((few, 1), (enough, 0)):
        assert run(folder, VALIDATE) == DONE
        told = [event for event in events(folder) if event["data"].get("code") == "too_few_held_out"]
        assert [event["level"] for event in told] == ["warn"] * times
    assert "Only 10 examples are held out, but a pass needs 30" in events(few)[0]["message"]
    report = Report.model_validate_json((few / spec.REPORT).read_bytes())
    assert [finding.code for finding in report.findings] == ["too_few_held_out"]


def test_a_larger_share_is_held_out_where_that_was_asked_for(make_job: Any) -> None:
    folder = make_job(jsonl(rows(60)), held_out_share=0.5)
    assert run(folder, VALIDATE) == DONE
    assert Report.model_validate_json((folder / spec.REPORT).read_bytes()).held_out.examples == 30


def test_a_note_is_an_event_and_refuses_nothing(make_job: Any) -> None:
    folder = make_job(jsonl([{**row, "id": number} for number, row in enumerate(rows())]), strict=True)
    assert run(folder, VALIDATE) == DONE
    assert not (folder / protocol.RESULT).exists()
    (note,) = [event for event in events(folder) if event["data"].get("code") == "ignored_keys"]
    assert (note["level"], note["data"]["lines"]) == ("info", list(range(1, 21)))
    assert note["message"] == "the key 'id' is not used; 24 rows have it, the first in line 1"


def test_a_fault_of_the_validation_file_names_it(make_job: Any) -> None:
    folder = make_job(held_out=b"{")
    assert run(folder, VALIDATE) == DONE
    failed = result(folder).error
    assert failed is not None
    assert (failed.code, failed.param) == ("invalid_validation_file", "validation_file")
    assert failed.message.startswith("held.jsonl: line 1: not JSON")


@pytest.mark.slow
def test_the_lineage_has_the_validation_file_what_was_left_out_and_the_dtype(
    make_job: Any, gateway: FakeGateway
) -> None:
    held = jsonl(rows(30)[24:])
    wish = HyperparameterRequest(n_epochs=1, batch_size=8, lora_rank=4)
    datasets = {"training_file": "support@3", "validation_file": "support-heldout@1"}
    assert run(make_job(held_out=held, drop_long=True, dtype="float32", wish=wish, datasets=datasets)) == DONE
    lineage = Metadata.model_validate_json(gateway.pushed[0]["metadata"]).lineage
    assert lineage.held_out == DataSource(name="held.jsonl", sha256=hashlib.sha256(held).hexdigest(), examples=6)
    assert lineage.datasets == datasets
    assert lineage.same_training(lineage.model_copy(update={"datasets": {}}))  # a name decides no weights
    assert lineage.drop_long
    assert lineage.base.dtype == "float32"


@pytest.mark.slow
def test_a_parent_is_told_by_its_weights_and_one_whose_alphas_differ_is_not_trained_on(
    make_job: Any, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_job(wish=HyperparameterRequest(n_epochs=1, lora_rank=4))
    assert run(first) == DONE
    changes: dict[str, Any] = {"target_modules": ".*proj", "alpha_pattern": {"no_such": 3}}

    def fetch(_gateway: Gateway, _model: str, directory: Path) -> None:
        directory.mkdir()
        shutil.copy(first / spec.OUTPUT / WEIGHTS_FILE, directory / WEIGHTS_FILE)
        config = json.loads((first / spec.OUTPUT / CONFIG_FILE).read_text())
        (directory / CONFIG_FILE).write_text(json.dumps(config | changes))

    monkeypatch.setattr(Gateway, "fetch_adapter", fetch)
    folder = make_job(id="ftjob-2", parent="voice@1", wish=HyperparameterRequest(n_epochs=1))
    assert run(folder, VALIDATE) == DONE
    recipe = TrainingPlan.model_validate_json((folder / spec.PLAN).read_bytes()).recipe
    assert {"q_proj", "down_proj"} < set(recipe.target_modules)
    # one on all linear layers leaves none out, as it is counted when a job is made
    there = modules_in(folder / "parent" / WEIGHTS_FILE)
    assert set(BaseModelInfo.read(base_dir).matching_layers(recipe.target_modules)) == there

    # once there is a plan, the parent itself is not asked for: it may be deleted meanwhile
    def gone(_gateway: Gateway, model: str) -> dict[str, Any]:
        raise GatewayRefused(404, "not_found", f"{model} is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "settings", gone)
        patch.setattr(Gateway, "fetch_adapter", gone)
        assert run(folder, VALIDATE) == DONE
    assert not (folder / protocol.RESULT).exists()

    changes["alpha_pattern"] = {"layers.1.mlp.down_proj": 3}
    folder = make_job(id="ftjob-3", parent="voice@1", wish=HyperparameterRequest(n_epochs=1))
    assert run(folder, VALIDATE) == DONE
    failed = result(folder).error
    assert failed is not None
    assert failed.code == "parent_unsupported"


def test_what_is_held_out_is_neither_the_seed_s_affair_nor_a_later_release_s(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    for seed in (1, 2):
        folder = make_job(id=f"ftjob-{seed}", seed=seed)
        assert run(folder, VALIDATE) == DONE
        held.append(json.loads((folder / spec.REPORT).read_text())["held_out"]["lines"])
    assert held[0] == held[1] != []
    # a plan was made, and what goes on with the job would draw others
    monkeypatch.setattr("trainer.data.prepare.split", lambda examples, **_: Split(tuple(range(24)), ()))
    seen: list[tuple[int, ...]] = []
    whole = job_work.prepare

    def prepare(*parts: Any, **more: Any) -> Any:
        found = whole(*parts, **more)
        seen.append(tuple(example.line for example in found.held_out))
        return found

    monkeypatch.setattr(job_work, "prepare", prepare)
    assert run(folder, VALIDATE) == DONE
    assert seen == [tuple(held[0])]
