"""A worker that is stopped, killed or kept waiting asks nothing twice and records one verdict."""

from __future__ import annotations

import threading

import pytest

from adapters.protocol.reports import EvaluationProgress
from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import (
    EvaluationGateway,
    jsonl,
    rows,
)
from tests.unit.trainer.evaluate.evaluations.worker_runs import plan_of, run, work
from trainer.config import Settings
from trainer.evaluate.evaluations.spec import PROGRESS, REPORT
from trainer.evaluate.report import EvaluationReport
from trainer.runs import protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import DONE, Control


def test_what_was_answered_before_a_crash_is_not_asked_again(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    folder = make_folder({"model": "voice@3"})
    (folder / protocol.CONTROL).write_text(Control.RUN)
    stopped, first, say = threading.Event(), threading.Lock(), gateway.say

    def halfway(model: str, asked: str) -> str:
        if len(gateway.asked()) >= 40:
            if first.acquire(blocking=False):  # once: those that come late must not stop the second worker, too
                (folder / protocol.CONTROL).write_text(Control.PAUSE)  # ends a worker as SIGTERM does
            stopped.wait(120)
        return say(model, asked)

    gateway.say = halfway
    with RunDirectory(folder) as held:
        assert work(held, Settings()) != DONE
    gateway.say = say
    stopped.set()
    before = len(gateway.asked())
    (folder / protocol.CONTROL).write_text(Control.RUN)
    result = run(folder)
    assert result.verdict == "pass"
    asked = gateway.asked()
    wanted = plan_of(folder)
    answers = len(wanted.arms) * 36 + 2 * 30
    scored = sum(1 for path, body in gateway.requests if body.get("continue_final_message"))
    # of those that were in flight when it was stopped some are asked twice, and no others
    assert before < answers
    assert len(asked) - scored <= answers + 4
    assert len(gateway.verdicts) == 1


def test_a_crash_after_the_upload_does_not_upload_the_report_twice(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    folder = make_folder()
    run(folder)
    (folder / protocol.RESULT).unlink()
    run(folder)
    assert (len(gateway.kept), len(gateway.verdicts)) == (3, 1)


def test_a_cancelled_evaluation_ends_at_once(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    folder, release = make_folder(), threading.Event()
    answered: list[bool] = []
    (folder / protocol.CONTROL).write_text(Control.RUN)

    def say(*_: str) -> str:
        (folder / protocol.CONTROL).write_text(Control.CANCEL)
        answered.append(release.wait(240))
        return "late"

    gateway.say = say
    result = run(folder)
    assert answered == []  # nobody has waited for the requests in flight
    release.set()
    assert (result.status, result.verdict) == ("cancelled", None)
    assert gateway.verdicts == []


def test_a_gateway_that_is_away_is_waited_for(
    gateway: EvaluationGateway, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.runs.gateway.RETRY_S", (0.02,))
    gateway.away = 10
    result = run(make_folder())
    assert (result.status, result.examples, gateway.away) == ("succeeded", 36, 0)


def test_more_examples_than_may_be_asked_are_drawn_the_same_way_each_time(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(content=jsonl(rows(60)), most_examples=31)
    assert run(folder).examples == 31
    report = EvaluationReport.model_validate_json((folder / REPORT).read_bytes())
    assert report.held_out == 60
    lines = (folder / "held_out_questions.jsonl").read_text()
    (folder / protocol.RESULT).unlink()
    run(folder)
    assert (folder / "held_out_questions.jsonl").read_text() == lines


def test_progress_is_written_to_the_run_directory(make_folder: MakeFolder) -> None:
    folder = make_folder()
    run(folder)
    assert EvaluationProgress.model_validate_json((folder / PROGRESS).read_bytes()).stage == "report"
