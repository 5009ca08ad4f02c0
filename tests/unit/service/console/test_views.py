"""What the console shows and sends of bases, evaluations, advice and costs, on answers written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.costs.schemas import YearAnswer
from service.training.ladder_schemas import Ladder, LadderReport
from tests.support.browser import Browser
from tests.unit.service.console.conftest import METRICS, NONE, Answers, adapter, listed, models, show, version

PRICES = {"currency": "EUR", "device_hour": 2.0, "person_hour": 60.0}


# adapters


def test_the_list_shows_each_live_version_s_base_and_pins_from_the_row(page: Browser, answers: Answers) -> None:
    weightless = {"digest": None, "adapter": "clerk", "base_name": "small", "rank": None, "alpha": None}
    clerk = adapter(version(1, **weightless), name="clerk")
    answers.told = {
        "GET /v1/adapters": [listed(adapter(version(1)), clerk), listed(adapter(version(1), pinned=True), clerk)],
        "GET /v1/keys": [NONE],
        "GET /v1/usage": [NONE],
        "GET /metrics": [METRICS],
        "PUT /v1/adapters/voice/pin": [{}],
    }
    show(page, "adapters.js", "AdaptersView")
    page.wait("document.querySelectorAll('tbody tr').length === 2")
    bases = "[...document.querySelectorAll('td[data-label=Base]')].map((each) => each.innerText)"
    assert page.run(bases) == ["large", "small"]
    buttons = "[...document.querySelectorAll('tbody button')].map((each) => each.ariaLabel)"
    assert page.run(buttons) == ["Pin voice"], "a version without weights needs no slot"
    page.click("Pin …")
    page.wait_for_text("It takes a slot from all other adapters for good.")
    page.click("Pin", "dialog")
    page.wait(f"{buttons}[0] === 'Unpin voice'")
    assert "PUT /v1/adapters/voice/pin" in answers.asked


@pytest.mark.parametrize(("bases", "sent"), [(("small",), None), (("small", "large"), "large")], ids=["one", "two"])
def test_a_prompt_is_made_a_version_on_the_chosen_base(
    page: Browser, answers: Answers, bases: tuple[str, ...], sent: str | None
) -> None:
    answers.told = {
        "GET /v1/models": [models(*bases)],
        "POST /v1/adapters": [version(1, digest=None, aliases=["live"])],
    }
    show(page, "upload.js", "UploadDialog", kind="prompt")
    page.fill("dialog input", "voice")
    page.fill("dialog textarea", "Be brief.")
    if sent:
        page.wait("document.querySelector('dialog select')")
        page.fill("dialog select", sent)
    page.click("Make a version", "dialog")
    page.wait_for_text("voice@1 is ready")
    assert page.run("document.querySelectorAll('dialog select').length") == 0
    assert json.loads(answers.bodies["POST /v1/adapters"]).get("base") == sent


def test_the_playground_compares_a_version_with_its_own_base_and_offers_all(page: Browser, answers: Answers) -> None:
    answers.told = {
        "GET /v1/models": [models("small", "large")],
        "GET /v1/adapters": [listed(adapter(version(1), version(2)))],
        "GET /v1/vector_stores": [NONE],
        "POST /v1/chat/completions": ["data: [DONE]\n\n"],
    }
    show(page, "playground.js", "PlaygroundView", first="voice@2")
    page.wait("document.querySelectorAll('.chip').length === 2")
    chosen = page.run("[...document.querySelectorAll('.chip')].map((each) => each.firstChild.textContent)")
    assert chosen == ["large", "voice@2"]
    offered = page.run("[...document.querySelectorAll('.chips option')].map((each) => each.value)")
    assert offered == ["", "small", "voice", "voice@1"]
    page.fill("#question", "Where is it?")
    page.click("Ask 2 models")
    page.wait("document.querySelectorAll('.pane').length === 2")
    badges = "[...document.querySelectorAll('.pane')].map((each) => each.querySelector('.badge')?.innerText ?? '')"
    assert page.run(badges) == ["base", ""]
    page.run("sessionStorage.clear()")


# evaluations


def test_a_version_is_judged_again_on_the_examples_of_its_last_verdict(page: Browser, answers: Answers) -> None:
    verdict = {"examples": 40, "verdict": "pass", "evaluation": {"held_out": "file-7", "model": "voice@1"}}
    answers.told = {
        "GET /v1/adapters/voice/versions/1/verdicts": [listed(verdict)],
        "GET /v1/datasets": [NONE],
        "POST /v1/evaluations": [
            (400, {"error": {"message": "`metric`: no metric named 'exact'", "code": "invalid", "param": "metric"}}),
            {"id": "eval-9"},
        ],
    }
    show(page, "evaluate.js", "EvaluateDialog", model="voice@1")
    page.wait_for_text("those of its last verdict: 40 examples, pass")
    assert page.run("[...document.querySelectorAll('dialog button')].at(-1).disabled"), "no examples yet"
    page.fill("dialog select", "file-7")
    page.click("How it is judged: chosen from the examples unless you say otherwise")
    page.fill_labelled("Metric", "exact")
    page.fill_labelled("Suites", "")
    page.click("Start the evaluation", "dialog")
    page.wait_for_text("no metric named 'exact'")
    page.fill_labelled("Metric", "exact_match")
    page.click("Start the evaluation", "dialog")
    page.wait("location.hash === '#/train/eval-9'")
    assert json.loads(answers.bodies["POST /v1/evaluations"]) == {
        "model": "voice@1",
        "held_out": "file-7",
        "suites": [],
        "promote": "never",
        "metric": "exact_match",
    }


def test_a_version_is_chosen_and_judged_on_a_file_that_is_stored_once(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    file = tmp_path / "held.jsonl"
    file.write_text('{"prompt": "p", "completion": "c"}\n')
    answers.told = {
        "GET /v1/adapters": [listed(adapter(version(1), version(2), version(3, servable="other_base")))],
        "GET /v1/adapters/voice/versions/2/verdicts": [NONE],
        "GET /v1/datasets": [NONE],
        "POST /v1/files": [{"id": "file-1"}],
        "POST /v1/evaluations": [(409, {"error": {"message": "the engine is away", "code": "down"}}), {"id": "eval-1"}],
    }
    show(page, "evaluate.js", "EvaluateDialog")
    page.wait("document.querySelectorAll('dialog select option').length === 3")
    assert "voice@3" not in page.text, "it cannot serve"
    page.fill("dialog select", "voice@2")
    page.attach("dialog .drop input", file)
    page.wait_for_text("held.jsonl")
    page.run("document.querySelector('dialog input[type=checkbox]').click()")
    page.click("Start the evaluation", "dialog")
    page.wait_for_text("engine is away")
    page.click("Start the evaluation", "dialog")
    page.wait("location.hash === '#/train/eval-1'")
    assert answers.asked.count("POST /v1/files") == 1
    assert 'name="purpose"\r\n\r\nevals' in answers.bodies["POST /v1/files"].decode()
    sent = json.loads(answers.bodies["POST /v1/evaluations"])
    assert (sent["model"], sent["held_out"], sent["promote"]) == ("voice@2", "file-1", "auto")


# advice


def test_advice_is_asked_for_with_all_that_it_can_be(page: Browser, answers: Answers, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Where is it?\n")
    answers.told = {
        "GET /v1/models": [models("small")],
        "GET /v1/teachers": [listed({"id": "outside-one"})],
        "GET /v1/vector_stores": [listed({"id": "vs-1", "name": "policies"}, {"id": "vs-2", "name": "orders"})],
        "POST /v1/files": [{"id": "file-prompts"}],
        "POST /v1/ladders": [{"id": "ladder-1"}],
    }
    page.run("window.stored = () => 'file-training'")
    page.run(
        """(async () => {
        const { html, render } = await import("/console/vendor/preact.js");
        const { AdviceForm } = await import("/console/advice_form.js");
        const root = document.createElement("div");
        document.body.replaceChildren(root);
        render(html`<${AdviceForm} stored=${window.stored} />`, root);
        })()"""
    )
    page.wait_for_text("orders")
    page.fill_labelled("Adapter", "desk")
    page.fill_labelled("How thorough", "whole")
    page.fill_labelled("Good enough at", "90")
    page.fill_labelled("Requests a month", "30000")
    page.run("[...document.querySelectorAll('fieldset input')].at(-1).click()")
    page.click("System prompts of your own, to try beside those that are made from the examples")
    page.fill_labelled("Prompt 1", "Answer with one word.")
    page.click("A teacher that answers more prompts, for a LoRA to learn from")
    page.fill_labelled("Teacher", "outside-one")
    assert page.run("document.querySelector('footer button').disabled"), "a teacher needs prompts"
    page.attach("input[type=file]", prompts)
    page.click("Measure it")
    page.wait("location.hash === '#/train/ladder-1'")
    assert json.loads(answers.bodies["POST /v1/ladders"]) == {
        "training_file": "file-training",
        "adapter": "desk",
        "quick": False,
        "lora": True,
        "vector_store_ids": ["vs-2"],
        "instructions": ["Answer with one word."],
        "target": 0.9,
        "requests_per_month": 30000,
        "teacher": "outside-one",
        "unlabelled_file": "file-prompts",
    }
    assert 'name="purpose"\r\n\r\nuser_data' in answers.bodies["POST /v1/files"].decode()


def year(total: float | None) -> dict[str, Any]:
    parts: dict[str, Any] = dict.fromkeys(("requests", "retraining", "judging", "data", "checks"), total and total / 5)
    hours = {"device_hours": 12.0, "people_hours": 34.0, "requests_per_year": 360000, "rule_of_thumb": None}
    return parts | {"total": total} | hours


def rung(key: str, model: str, mean: float, **more: Any) -> dict[str, Any]:
    interval = {"label": key, "mean": mean, "low": mean - 0.05, "high": min(1.0, mean + 0.05), "examples": 60}
    made: dict[str, Any] = {"key": key, "title": f"Rung {key}", "model": model, "mean": interval, "control": 0.02}
    made |= {"against_below": None, "seconds": 0.8, "first_token": None, "once": {"device_seconds": 60, "money": 0.1}}
    made |= {"request": {"prompt_tokens": 50.0, "completion_tokens": 4.0, "engine_seconds": 0.02}}
    made["request"] |= {"per_thousand": 0.02, "hosted_per_thousand": None}
    made |= {"year": year(100.0), "update": "at once", "shown": [], "system_prompt": None}
    return made | more


def ladder() -> tuple[dict[str, Any], dict[str, Any]]:
    """A ladder that has ended and its report: the LoRA is advised, a prompt is live."""
    difference = {"of": "lora", "against": "instructions", "estimate": 0.4, "low": 0.3, "high": 0.5}
    shown = [{"asked": "Where is it?", "reference": "Aboard.", "answer": "Aboard!", "score": 0.9}]
    rungs = [
        rung("base", "small", 0.2),
        rung("instructions", "voice@1", 0.4),
        rung("lora", "voice@2", 0.8, against_below=difference, shown=shown, year=year(250.0)),
    ]
    run: dict[str, Any] = dict.fromkeys(Ladder.model_fields)
    run |= {"id": "ladder-1", "status": "succeeded", "created_at": 0, "adapter": "voice", "children": [], "quick": True}
    run |= {"advice": "fine_tune", "rung": "lora", "model": "voice@2", "sentence": "Fine-tune.", "seconds": 480.0}
    run["rungs"] = [
        {"key": r["key"], "title": r["title"], "model": r["model"], "mean": r["mean"]["mean"]} for r in rungs
    ]
    report: dict[str, Any] = dict.fromkeys(LadderReport.model_fields)
    report |= {"base": "small", "file": "desk.jsonl", "rungs": rungs, "metric": "exact_match", "why_metric": "labels"}
    report |= {
        "counts": {"training": 100, "choosing": 20, "held_out": 60},
        "facts": {"warnings": ["One label is rare."]},
    }
    advice = {"word": "fine_tune", "rung": "lora", "sentence": "Fine-tune.", "reasons": ["It gains 40 points."]}
    report |= {
        "advice": advice | {"would_change": ["A target of 40."]},
        "common_answer": 0.1,
        "requests_per_month": 30000,
    }
    report |= {"skipped": [{"title": "Rung documents", "reason": "no documents were named"}], "notes": ["A note."]}
    report |= {"prices": PRICES | {"retrainings_per_year": 4}}
    point = {"part": "a half", "model": "voice@7", "examples": 50, "mean": rungs[1]["mean"]}
    report["curve"] = {"points": [point], "cleanest": None, "more": "help", "sentence": "More examples would help."}
    return run, report


def test_advice_is_shown_whole_and_its_rung_promoted_in_place(page: Browser, answers: Answers) -> None:
    run, report = ladder()
    voice = adapter(version(1, digest=None, aliases=["live"]), version(2))
    live = adapter(version(1, digest=None), version(2, aliases=["live"]), aliases={"live": 2})
    answers.told = {
        "GET /v1/ladders/ladder-1": [run],
        "GET /v1/ladders/ladder-1/events": [NONE],
        "GET /v1/ladders/ladder-1/report": [report],
        "GET /v1/adapters": [listed(voice), listed(live)],
        "PUT /v1/adapters/voice/aliases/live": [{}],
    }
    show(page, "ladder.js", "LadderView", id="ladder-1")
    for shown in (
        *("Advice: fine-tune", "It gains 40 points.", "What would change it", "A target of 40.", "advised"),
        *("+40.0", "More examples would help.", "Rung documents: no documents were named", "A note."),
        *("One label is rare.", "250.00 EUR", "requests 50.00, retraining 50.00", "Would more examples help?"),
    ):
        page.wait(f"document.body.textContent.replace(/\\s+/g, ' ').includes({json.dumps(shown)})")
    rows = "[...document.querySelectorAll('section[aria-label=Rungs] tbody tr')]"
    promotable = f"{rows}.map((each) => each.querySelector('button')?.ariaLabel ?? '')"
    assert page.run(promotable) == ["", "", "Promote voice@2"], "not the base, and not what is live"
    page.click("Promote voice@2 …")
    page.wait_for_text("A year of it: 250.00 EUR")
    page.wait_for_text("This version was never judged")
    page.click("Point live to @2", "dialog")
    page.wait("!document.querySelector('dialog')")
    page.wait_for_text("voice@2 is live")
    assert json.loads(answers.bodies["PUT /v1/adapters/voice/aliases/live"]) == {"version": 2, "expected": 1}


def test_a_ladder_without_a_version_asks_for_no_adapter_and_says_what_is_measured(
    page: Browser, answers: Answers
) -> None:
    run, _ = ladder()
    so_far = {"mean": 0.214, "low": 0.1, "high": 0.4, "questions": 8, "of": 48}
    base = run["rungs"][0] | {"mean": None, "provisional": so_far}
    run |= {"status": "running", "advice": None, "model": None, "rung": None, "sentence": None, "rungs": [base]}
    run["children"] = [{"id": "eval-5", "purpose": "prompts"}]
    answers.told = {
        "GET /v1/ladders/ladder-1": [run],
        "GET /v1/ladders/ladder-1/events": [NONE],
        "GET /v1/evaluations/eval-5": [{"progress": {"stage": "asking", "done": 7, "total": 80}}],
    }
    show(page, "ladder.js", "LadderView", id="ladder-1")
    page.wait_for_text("Comparing prompts: 7 of 80")
    page.wait_for_text("21.4 so far (10.0 to 40.0), on 8 of 48")
    assert page.run("document.querySelector('progress').value") == 7
    assert "GET /v1/adapters" not in answers.asked
    assert page.problems == []


# the year


def test_a_year_is_computed_for_the_traffic_that_is_typed(page: Browser, answers: Answers) -> None:
    answer: dict[str, Any] = dict.fromkeys(YearAnswer.model_fields)
    answer |= {"adapter": "voice", "currency": "EUR", "prices": PRICES, "runs": {"available": True, "reason": None}}
    answer |= {"rhythm": {"retrainings_per_year": 4, "revalidations_per_year": 4.06, "checked_share": 0.1}}
    request = {"requests": 30, "prompt_tokens": 50.4, "completion_tokens": 12.2, "engine_seconds": 0.1}
    one = {"version": 1, "name": "voice@1", "has_weights": True, "live": True, "request": request, "year": year(700.0)}
    two = one | {
        "version": 2,
        "name": "voice@2",
        "live": False,
        "request": None,
        "year": year(900.0) | {"requests": None, "total": None},
    }
    answer |= {"versions": [one, two], "traffic": {"source": "usage", "requests_per_year": 360, "days": 30.0}}
    answer["traffic"]["requests"] = 30
    given = answer | {"traffic": answer["traffic"] | {"source": "given", "requests_per_year": 36500}}
    answers.told = {"GET /v1/costs/year": [answer, given]}
    show(page, "year.js", "YearSection", name="voice")
    assert answers.asked == [], "nothing is asked before it is opened"
    page.click("What a year costs")
    page.wait_for_text("30 requests in 30.0 days, scaled")
    assert "50 + 12" in page.text
    assert "not asked yet" in page.text
    assert "700.00" in page.text
    assert "requests –, retraining 180.00" in page.text
    assert "–: not known." in page.text
    assert "not set the prices" not in page.text
    page.fill("input", "100")
    page.click("Compute")
    page.wait_for_text("36,500 requests")
    page.wait("performance.getEntriesByType('resource').some((each) => each.name.includes('requests_per_day=100'))")
