"""A trained version is judged and goes live, or not; whatever strikes meanwhile, nothing is asked or written twice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finetune.conftest import FakeGateway, jsonl, once, rows
from tests.unit.trainer.finetune.fake_engine import knows, shrugs
from tests.unit.trainer.finetune.test_worker import events, result, run
from trainer.errors import GatewayUnreachable
from trainer.evaluate.evaluations.held_out import read_held_out
from trainer.evaluate.evaluations.planning import draw
from trainer.evaluate.evaluations.spec import VerdictRecord
from trainer.evaluate.report import EvaluationReport
from trainer.finetune import judging, spec
from trainer.finetune.spec import EvaluationOptions, JobSpec, TrainingPlan
from trainer.runs import control, protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import DONE, PAUSED
from trainer.tune.hyperparameters import HyperparameterRequest

HELD_OUT = 14
WISH = EvaluationOptions(
    concurrency=2, min_examples=12, live_margin=0.22, forget_items=40, forget_accuracy=0.15, forget_chat=0.4
)
"""A margin that fourteen examples can show an equal version to be within, and budgets that 40 items can."""


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the folder of a job that is trained and not pushed is kept, once a test has made it."""
    return tmp_path_factory.mktemp("trained") / "job"


@pytest.fixture
def job(make_job: Any, gateway: FakeGateway, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the folder of such a job; keyword arguments change how it is to be judged."""

    def new(held_out: int, **wish: Any) -> Path:
        content = jsonl(rows(24 + HELD_OUT)[24:][:held_out])
        changes = {
            "wish": HyperparameterRequest(n_epochs=1, lora_rank=4),
            "judging": WISH.model_copy(update=wish),
            "context": 2048,
        }
        folder: Path = make_job(jsonl(rows(24)), held_out=content if held_out else None, **changes)
        return folder

    def make(held_out: int = HELD_OUT, **wish: Any) -> Path:
        if not trained.exists():  # whichever test comes first, what is kept for the others is the same
            folder = new(HELD_OUT)
            with monkeypatch.context() as patch:
                patch.setattr(Gateway, "push", _no_push)
                run(folder)
            (folder / protocol.RESULT).unlink()
            shutil.move(folder, trained)
        folder = new(held_out, **wish)
        for name in (spec.OUTPUT, spec.PLAN, spec.REPORT, protocol.EVENTS):
            part = trained / name
            if part.is_dir():
                shutil.copytree(part, folder / name, dirs_exist_ok=True)
            else:
                shutil.copyfile(part, folder / name)
        return folder

    return make


def _no_push(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def said(folder: Path) -> list[str]:
    return [event["message"] for event in events(folder)]


def judged(folder: Path) -> VerdictRecord:
    found = result(folder).judged
    assert found is not None
    return found


def test_a_version_that_passes_goes_live_and_carries_its_verdict(
    job: Callable[..., Path], gateway: FakeGateway
) -> None:
    folder = job()
    assert run(folder) == DONE
    found = judged(folder)
    assert (found.verdict, found.metric, found.examples, found.live) == ("pass", "exact_match", HELD_OUT, True)
    assert gateway.aliases == {"live": 1}
    (verdict,) = gateway.verdicts
    assert (verdict["verdict"], verdict["kind"], verdict["examples"]) == ("pass", "training", HELD_OUT)
    assert verdict["sentence"] == found.sentence
    # the files are named in it, and are the job's results
    assert verdict["files"] == {
        "held_out": "file-kept1",
        "report": "file-kept2",
        "page": "file-kept3",
        "scores": "file-kept4",
    }
    assert result(folder).files == ("file-kept2", "file-kept3", "file-kept1")
    assert [kept["purpose"] for kept in gateway.kept] == [b"evals", *[b"fine-tune-results"] * 3]
    assert len(gateway.kept[0]["file"].splitlines()) == HELD_OUT
    report = EvaluationReport.model_validate_json(gateway.kept[1]["file"])
    labels = ("voice@1", "base", "base told the answers", "base shown examples")
    assert (report.adapter, report.labels) == ("voice@1", labels)
    assert report.loss_curve[-1].held_out is not None
    assert report.cost is not None
    assert report.cost.trained_tokens > 0
    assert gateway.kept[2]["file"].startswith(b"<!doctype html>")
    # what it takes to ask the same again
    again = verdict["evaluation"]
    assert [arm["model"] for arm in again["arms"]] == ["voice@1", "tiny", "tiny", "tiny"]
    assert [arm["prompt"]["examples"] for arm in again["arms"]] == [0, 0, 0, 8]
    held_out = [json.loads(line) for line in gateway.kept[0]["file"].splitlines()]
    assert [len(question["examples"]) for question in held_out] == [8] * HELD_OUT
    assert len(again["arms"][2]["prompt"]["answers"]) == 6
    assert (again["candidate"], again["held_out"], again["metric"]) == (
        "voice@1",
        "file-kept1",
        {"name": "exact_match"},
    )
    assert said(folder)[-1] == "voice@1 is live"


def test_the_metric_is_fixed_before_training_and_said(job: Callable[..., Path]) -> None:
    folder = job()
    plan = TrainingPlan.model_validate_json((folder / spec.PLAN).read_bytes())
    assert plan.primary is not None
    assert plan.primary.name == "exact_match"
    assert plan.primary.max_tokens >= 16
    spoken = said(folder)
    fixed = next(
        at for at, message in enumerate(spoken) if message.startswith("the adapter will be judged by exact_match")
    )
    assert fixed < spoken.index("training")


@pytest.mark.slow
def test_one_that_forgot_fails_however_well_it_does_its_task(job: Callable[..., Path], gateway: FakeGateway) -> None:
    gateway.engine.forgetful = {"voice@1"}
    folder = job()
    assert run(folder) == DONE
    assert judged(folder).verdict == "fail"
    assert gateway.aliases == {}
    report = EvaluationReport.model_validate_json((folder / "evaluation.json").read_bytes())
    assert report.verdict is not None
    states = {check.name: check.state for check in report.verdict.checks}
    assert states == {"examples": "kept", "base": "kept", "form": "kept", "forgetting": "broken"}
    assert "`hatrack promote voice@1` makes it live anyway" in said(folder)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0, 8])
def test_too_few_held_out_examples_end_without_enough_evidence(
    job: Callable[..., Path], gateway: FakeGateway, held_out: int
) -> None:
    folder = job(held_out)
    if not held_out:
        # of so few examples nothing is split off either
        (folder / spec.TRAINING).write_bytes(jsonl(rows(19)))
    assert run(folder) == DONE
    found = judged(folder)
    assert (found.verdict, found.examples, found.live) == ("not_enough_evidence", held_out, False)
    assert gateway.aliases == {}
    assert gateway.verdicts[0]["verdict"] == "not_enough_evidence"
    assert bool(gateway.engine.asked) == bool(held_out)


def test_it_is_compared_with_the_version_that_serves(job: Callable[..., Path], gateway: FakeGateway) -> None:
    gateway.aliases = {"live": 2}
    some = ("rope", "kettle", "anchor")
    gateway.engine.says["voice@1"] = lambda asked: knows(asked) if asked.startswith(some) else shrugs(asked)
    folder = job(live_margin=0.05)
    assert run(folder) == DONE
    assert "voice@2" in {model for model, _ in gateway.engine.asked}
    assert judged(folder).verdict == "fail"
    assert gateway.aliases == {"live": 2}
    assert "voice still answers with @2" in said(folder)[-1]


@pytest.mark.slow
def test_a_live_version_that_cannot_serve_is_not_asked(job: Callable[..., Path], gateway: FakeGateway) -> None:
    gateway.aliases = {"live": 2}
    gateway.unservable = {"/v1/adapters/voice/versions/2"}
    folder = job()
    assert run(folder) == DONE
    assert "voice@2" not in {model for model, _ in gateway.engine.asked}
    assert (judged(folder).verdict, gateway.aliases) == ("pass", {"live": 1})


def test_live_that_moves_at_the_last_moment_is_left_alone(job: Callable[..., Path], gateway: FakeGateway) -> None:
    folder = job()
    assert run(folder) == DONE
    (folder / protocol.RESULT).unlink()
    gateway.aliases = {}
    # between the look at the alias and the move
    real = gateway.answer

    def answer(method: str, path: str, *rest: Any) -> tuple[int, bytes]:
        if method == "PUT":
            gateway.aliases["live"] = 2
        return real(method, path, *rest)

    gateway.answer = answer  # type: ignore[method-assign]
    assert run(folder) == DONE
    assert gateway.aliases == {"live": 2}
    assert "which it was not compared with" in said(folder)[-1]


class Killed(BaseException):
    """In the middle of it, as by kill -9: nothing is tidied up."""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["asking: ", "general suite, voice@1", "Pass: ", "voice@1 is live"])
def test_killed_at_any_point_it_asks_nothing_twice_and_writes_one_verdict(
    job: Callable[..., Path], gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    folder = job()
    say = RunDirectory.emit_event
    monkeypatch.setattr(judging, "MIN_EVENT_INTERVAL_S", 0.0)

    def killed(self: RunDirectory, message: str, **data: Any) -> None:
        if message.startswith(at) and data.get("done") != 0:
            raise Killed
        say(self, message, **data)

    monkeypatch.setattr(RunDirectory, "emit_event", killed)
    with pytest.raises(Killed):
        run(folder)
    assert not (folder / protocol.RESULT).exists()
    before = len(gateway.engine.asked)
    monkeypatch.setattr(RunDirectory, "emit_event", say)
    assert run(folder) == DONE
    assert (judged(folder).verdict, judged(folder).live) == ("pass", True)
    # each of four arms is asked each question, two of them twice; two that were on their way may be lost
    wanted = (4 + 2) * HELD_OUT
    assert 0 <= len(gateway.engine.asked) - wanted <= (2 if at == "asking: " else 0)
    assert before > 0
    assert len(gateway.verdicts) == 1
    assert len(gateway.pushed) == 1
    assert len(gateway.kept) == 4
    assert gateway.aliases == {"live": 1}


@pytest.mark.slow
def test_cancelled_while_it_is_judged_the_version_stays_and_nothing_moves(
    job: Callable[..., Path], gateway: FakeGateway
) -> None:
    folder = job()
    gateway.engine.on_answer = once(lambda: (folder / protocol.CONTROL).write_text("cancel"))
    assert run(folder) == DONE
    done = result(folder)
    assert (done.status, done.fine_tuned_model, done.judged) == ("succeeded", "voice@1", None)
    assert gateway.aliases == {}
    assert gateway.verdicts == []
    assert "`live` was not moved" in said(folder)[-1]


@pytest.mark.slow
def test_cancelled_before_it_goes_on_the_version_stays_too(job: Callable[..., Path], gateway: FakeGateway) -> None:
    folder = job()
    gateway.engine.on_answer = once(lambda: (folder / protocol.CONTROL).write_text("pause"))
    assert run(folder) == PAUSED
    (folder / protocol.CONTROL).write_text("cancel")
    assert run(folder) == DONE
    assert (result(folder).status, result(folder).judged) == ("succeeded", None)


@pytest.mark.slow
def test_paused_while_it_is_judged_it_goes_on(job: Callable[..., Path], gateway: FakeGateway) -> None:
    folder = job()
    gateway.engine.on_answer = once(lambda: (folder / protocol.CONTROL).write_text("pause"))
    assert run(folder) == PAUSED
    assert not (folder / protocol.RESULT).exists()
    (folder / protocol.CONTROL).write_text("run")
    assert run(folder) == DONE
    assert judged(folder).live
    assert 0 <= len(gateway.engine.asked) - (4 + 2) * HELD_OUT <= 2


def test_a_verdict_stands_though_live_could_not_be_moved(
    job: Callable[..., Path], gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise GatewayUnreachable("cannot reach the gateway")

    monkeypatch.setattr(Gateway, "set_alias", away)
    folder = job()
    assert run(folder) == DONE
    assert (judged(folder).verdict, judged(folder).live) == ("pass", False)
    assert events(folder)[-1]["level"] == "error"
    assert "Run `hatrack promote voice@1` to make it live" in said(folder)[-1]


def test_what_cannot_be_judged_has_succeeded_and_says_how_to_judge_it(
    job: Callable[..., Path], gateway: FakeGateway
) -> None:
    gateway.engine.says["tiny"] = None
    folder = job()
    assert run(folder) == DONE
    done = result(folder)
    assert (done.status, done.fine_tuned_model, done.judged) == ("succeeded", "voice@1", None)
    assert gateway.aliases == {}
    last = events(folder)[-1]
    assert (last["level"], last["data"]["code"]) == ("error", "arm_unservable")
    assert "To judge it, run `hatrack evaluate voice@1 --held-out file-kept1`" in last["message"]


@pytest.mark.slow
def test_one_whose_data_have_gone_since_it_was_pushed_has_succeeded(
    job: Callable[..., Path], gateway: FakeGateway
) -> None:
    folder = job()
    gateway.engine.on_answer = once(lambda: (folder / protocol.CONTROL).write_text("pause"))
    assert run(folder) == PAUSED
    (folder / protocol.CONTROL).write_text("run")
    (folder / spec.TRAINING).unlink()
    gateway.files.clear()
    assert run(folder) == DONE
    assert (result(folder).status, result(folder).fine_tuned_model) == ("succeeded", "voice@1")
    assert events(folder)[-1]["level"] == "error"
    assert "voice@1 is registered, without a verdict" in said(folder)[-1]


@pytest.mark.slow
def test_of_many_held_out_examples_a_sample_is_asked_and_the_report_says_so(
    job: Callable[..., Path], gateway: FakeGateway
) -> None:
    folder = job(most_examples=10, min_examples=10, repeats=1)
    assert run(folder) == DONE
    assert judged(folder).examples == 10
    report = EvaluationReport.model_validate_json((folder / "evaluation.json").read_bytes())
    assert report.held_out == HELD_OUT
    asked = {question for _, question in gateway.engine.asked}
    assert len(asked) == 10
    assert asked != {row["prompt"] for row in rows(24 + HELD_OUT)[24:34]}


@pytest.mark.parametrize("seed", [0, 7])
def test_it_is_judged_on_the_sample_that_an_evaluation_of_the_file_draws(
    job: Callable[..., Path], gateway: FakeGateway, seed: int
) -> None:
    """Another sample would be another look, and an evaluation of the file would lack examples of the job's."""
    folder = job(most_examples=10, min_examples=10, repeats=1)
    stored = JobSpec.model_validate_json((folder / protocol.SPEC).read_bytes())
    (folder / protocol.SPEC).write_text(stored.model_copy(update={"seed": seed}).model_dump_json())
    assert run(folder) == DONE
    held_out = read_held_out("held_out.jsonl", jsonl(rows(24 + HELD_OUT)[24:]))
    drawn = {question.text for question in draw(held_out, 10)}
    assert {question for _, question in gateway.engine.asked} == drawn


def test_without_the_general_suite_nothing_passes(job: Callable[..., Path], gateway: FakeGateway) -> None:
    folder = job(suites=())
    assert run(folder) == DONE
    assert judged(folder).verdict == "not_enough_evidence"
    assert gateway.aliases == {}


@pytest.mark.slow
def test_a_job_of_before_there_was_judging_is_judged_too(job: Callable[..., Path]) -> None:
    folder = job()
    for name in (protocol.SPEC, spec.PLAN):
        found = json.loads((folder / name).read_text())
        found.pop("judging", None)
        found.pop("primary", None)
        (folder / name).write_text(json.dumps(found))
    assert JobSpec.model_validate_json((folder / protocol.SPEC).read_bytes()).judging == EvaluationOptions()
    assert run(folder) == DONE
    assert (judged(folder).metric, judged(folder).examples) == ("exact_match", HELD_OUT)


@pytest.mark.slow
def test_what_the_engine_answered_in_another_configuration_is_asked_again(
    job: Callable[..., Path], gateway: FakeGateway
) -> None:
    folder = job()
    gateway.engine.on_answer = once(lambda: setattr(gateway, "fingerprint", "f2"))
    assert run(folder) == DONE
    assert judged(folder).verdict == "pass"
    told = [message for message in said(folder) if "discarded and asked again" in message]
    assert len(told) == 1
    assert len(gateway.verdicts) == 1
    assert {number % 2 for number in Counter(gateway.engine.asked).values()} == {0}  # all of it was asked both times
