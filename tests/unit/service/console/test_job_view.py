"""The page of a job while it waits, trains, is judged and has ended: in a real Chromium, on answers written here."""

from __future__ import annotations

import json
from typing import Any

from service.training.evaluation_schemas import EvaluationReport
from service.training.job_schemas import FineTuningJob, JobDetails
from tests.support.browser import Browser
from tests.unit.service.console.conftest import NONE, Answers, adapter, listed, show, version

JOB, EVENTS = "GET /v1/fine_tuning/jobs/ftjob-1", "GET /v1/fine_tuning/jobs/ftjob-1/events"
STEP = {"step": 4, "total_steps": 8, "train_loss": 2.5, "tokens_per_s": 300.0, "seconds_left": 65.0}


def job(status: str, *, model: str | None = None, **details: Any) -> dict[str, Any]:
    """A job in the API's shape."""
    made: dict[str, Any] = dict.fromkeys(FineTuningJob.model_fields)
    made |= {"id": "ftjob-1", "status": status, "created_at": 0, "model": "large", "fine_tuned_model": model}
    hatrack: dict[str, Any] = dict.fromkeys(JobDetails.model_fields)
    made["hatrack"] = hatrack | {"adapter": "voice", "pauses": {"count": 0, "seconds": 0}} | details
    return made


def stream(*events: tuple[str, dict[str, Any]]) -> str:
    """Events of these types and data, as they are streamed."""
    lines = [
        {"id": f"event-{at}", "type": kind, "data": data, "message": kind, "level": "info", "created_at": 0}
        for at, (kind, data) in enumerate(events)
    ]
    return "".join(f"data: {json.dumps(line)}\n\n" for line in lines)


def test_a_waiting_job_says_for_what_and_where_it_stands_in_the_queue(page: Browser, answers: Answers) -> None:
    waiting = {"reason": "turn", "message": "2nd in line behind voice, step 5 of 39", "position": 2}
    answers.told = {JOB: [job("queued", waiting=waiting)], EVENTS: [stream()]}
    show(page, "job.js", "JobView", id="ftjob-1")
    page.wait_for_text("2nd in line behind voice, step 5 of 39")
    assert "2 in the queue" not in page.text, "once is enough"
    assert "The data report" not in page.text, "there is none before the file was checked"


def test_a_job_shows_its_loss_and_then_how_far_the_judging_is(page: Browser, answers: Answers) -> None:
    answers.told = {JOB: [job("running")], EVENTS: [stream(("metrics", STEP))]}
    show(page, "job.js", "JobView", id="ftjob-1")
    page.wait_for_text("Step 4 of 8, 300 tokens/s, about 1 min 5 s of training left")
    assert page.run("document.querySelector('section[aria-label=Judging]')") is None

    judging = ("message", {"stage": "asking", "done": 7, "total": 30})
    answers.told[EVENTS] = [stream(("metrics", STEP | {"step": 8}), judging, ("message", {}))]
    show(page, "job.js", "JobView", id="ftjob-1")
    page.wait_for_text("asking: 7 of 30")
    assert page.run("document.querySelector('section[aria-label=Judging] progress').value") == 7
    assert page.run("document.querySelectorAll('section[aria-label=Loss] progress').length") == 0


def report() -> dict[str, Any]:
    """A report of ten answers."""
    made: dict[str, Any] = dict.fromkeys(EvaluationReport.model_fields)
    means = [{"label": "voice@1", "mean": 0.8, "low": 0.7, "high": 0.9, "examples": 40}]
    made |= {"metric": "exact_match", "means": means, "differences": [], "held_out": 40, "suites": [], "notes": []}
    sample = {"kind": "best", "asked": "Where?", "reference": "Here.", "base": "No.", "base_score": 0.0}
    samples = [
        sample | {"id": str(number), "candidate": f"Answer {number}.", "candidate_score": 1.0} for number in range(10)
    ]
    checks = [{"name": "examples", "state": "kept", "sentence": "40 examples are enough."}]
    verdict = {"word": "pass", "sentence": "It is better.", "checks": checks}
    return made | {"samples": samples, "verdict": verdict}


def test_a_job_that_has_ended_shows_its_report_and_promotes_its_version(page: Browser, answers: Answers) -> None:
    verdict = {"verdict": "pass", "sentence": "It is better.", "files": {"report": "file-9"}}
    ready = version(1, verdict=verdict)
    answers.told = {
        JOB: [job("succeeded", model="voice@1", verdict=verdict | {"live": False})],
        EVENTS: [stream()],
        "GET /v1/adapters": [listed(adapter(ready, aliases={})), listed(adapter(ready | {"aliases": ["live"]}))],
        "GET /v1/files/file-9/content": [report()],
        "PUT /v1/adapters/voice/aliases/live": [{}],
    }
    show(page, "job.js", "JobView", id="ftjob-1")
    page.wait_for_text("40 examples are enough.")
    assert page.text.count("It is better.") == 1, "the verdict is said once"
    assert page.run("document.querySelectorAll('section[aria-label=Answers] > article').length") == 3
    page.click("7 more questions")
    page.wait_for_text("Answer 9.")
    page.click("Promote voice@1 …")
    page.click("Point live to @1", "dialog")
    page.wait_for_text("voice@1 is live")
    assert json.loads(answers.bodies["PUT /v1/adapters/voice/aliases/live"]) == {"version": 1}


def test_a_job_whose_version_is_gone_asks_for_nothing_that_is_not_there(page: Browser, answers: Answers) -> None:
    verdict = {"verdict": "fail", "sentence": "It is worse.", "live": False}
    answers.told = {
        JOB: [job("succeeded", model="voice@1", verdict=verdict)],
        EVENTS: [stream()],
        "GET /v1/adapters": [NONE],
    }
    show(page, "job.js", "JobView", id="ftjob-1")
    page.wait_for_text("It is worse.")
    page.wait("performance.getEntriesByType('resource').some((each) => each.name.endsWith('/v1/adapters?limit=100'))")
    assert "Promote" not in page.text
    assert page.problems == []
