"""Reviews in the console, begun, chosen and ended: in a real Chromium, on answers written here."""

from __future__ import annotations

import json
from typing import Any

from tests.support.browser import Browser
from tests.unit.service.console.conftest import Answers, show

QUEUES: dict[str, Any] = {"data": [{"id": "eval-1"}], "has_more": False}


def test_a_key_that_is_held_down_chooses_once(page: Browser, answers: Answers) -> None:
    def pair(number: int) -> dict[str, Any]:
        asked = [{"role": "user", "content": f"question {number}"}]
        review = {"id": f"review-{number}", "asked": asked, "first": "Yes.", "second": "No.", "reference": None}
        return {"review": review, "reviewed": number - 1, "total": 3}

    answers.told = {
        "GET /v1/reviews": [QUEUES],
        "GET /v1/reviews/next": [pair(1), pair(2)],
        "POST /v1/reviews/review-1": [{}],
    }
    answers.told["POST /v1/reviews/review-2"] = [{}]
    show(page, "review.js", "ReviewView", evaluation="eval-1")
    page.wait_for_text("question 1")
    key = {"key": "1", "text": "1", "windowsVirtualKeyCode": 49}
    page.call("Input.dispatchKeyEvent", type="keyDown", **key)
    page.wait_for_text("question 2")
    page.wait("[...document.querySelectorAll('.pane button')].every((each) => !each.disabled)")
    for _ in range(5):
        page.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=True, **key)
    page.call("Input.dispatchKeyEvent", type="keyUp", key="1", windowsVirtualKeyCode=49)
    assert [each for each in answers.asked if each.startswith("POST")] == ["POST /v1/reviews/review-1"]
    page.press("2")
    page.wait_for_text("question 2")
    page.wait("performance.getEntriesByName(`${location.origin}/v1/reviews/review-2`).length === 1")
    assert answers.asked.count("POST /v1/reviews/review-2") == 1


def test_a_review_without_a_judge_is_started_here_and_its_outcome_is_shown(page: Browser, answers: Answers) -> None:
    review = {"id": "review-1", "asked": [{"role": "user", "content": "question 1"}], "first": "Yes.", "second": "No."}
    pair = {"review": review | {"reference": None}, "reviewed": 0, "total": 12}
    refused = (409, {"error": {"message": "its answers are no longer stored", "code": "nothing_to_review"}})
    answers.told = {"GET /v1/reviews/next": [pair], "POST /v1/reviews": [refused, {"id": "eval-1"}]}
    answers.told["GET /v1/reviews"] = [{"data": [], "has_more": False}, QUEUES]
    show(page, "review.js", "ReviewView", evaluation="eval-1")
    page.wait_for_text("Review eval-1 without a judge")
    assert page.problems == [], "what does not exist is not asked for"
    page.fill_labelled("Pairs", "12")
    page.fill_labelled("Reviewers of each pair", "2")
    page.click("Start the review")
    page.wait_for_text("Its answers are no longer stored")
    page.click("Start the review")
    page.wait_for_text("question 1")
    assert json.loads(answers.bodies["POST /v1/reviews"]) == {"evaluation": "eval-1", "pairs": 12, "reviewers": 2}

    people = {"mean": 0.58, "low": 0.452, "high": 0.708, "sentence": "People chose voice@3 24 times."}
    queue = {"id": "eval-1", "judge": None, "created_at": 0, "pairs": 12, "reviewed": 12, "reviewers": 2, "final": True}
    queue |= {"agreement": None, "standing": None, "counted": False, "more_reviews": None, "people": people}
    open_queue = queue | {"id": "eval-2", "people": None, "final": False, "reviewed": 3}
    kappa = {"kappa": 0.71, "low": 0.5, "high": 0.9}
    judged = {
        "id": "eval-3",
        "judge": "strict",
        "agreement": kappa,
        "sentence": "The judge strict counts.",
        "counted": True,
    }
    answers.told = {"GET /v1/reviews": [{"data": [queue, open_queue, open_queue | judged], "has_more": False}]}
    show(page, "review.js", "ReviewView")
    for shown in ("58.0 of 100, 45.2 to 70.8; 50 is even", "People chose voice@3 24 times.", "by 2 reviewers each"):
        page.wait_for_text(shown)
    for shown in ("not shown before all pairs are reviewed", "kappa 0.71 0.50 to 0.90", "The judge strict counts."):
        page.wait_for_text(shown)


def test_a_review_is_ended_only_after_it_was_said_what_that_takes(page: Browser, answers: Answers) -> None:
    queue: dict[str, Any] = {"id": "eval-1", "judge": None, "created_at": 0, "pairs": 12, "reviewed": 1, "reviewers": 2}
    queue |= {"agreement": None, "standing": None, "counted": False, "more_reviews": None, "people": None}
    people = {"mean": 0.58, "low": 0.452, "high": 0.708, "sentence": "The review was ended early."}
    ended = queue | {"final": True, "ended_at": 1, "people": people}
    answers.told = {
        "GET /v1/reviews": [
            {"data": [queue | {"final": False}], "has_more": False},
            {"data": [ended, ended | {"id": "eval-2", "people": None}], "has_more": False},
        ],
        "POST /v1/reviews/eval-1/end": [ended],
    }
    show(page, "review.js", "ReviewView")
    page.click("End …")
    page.wait_for_text("1 of 12 pairs has all choices. Nobody can choose any more")
    assert "POST /v1/reviews/eval-1/end" not in answers.asked
    page.click("End the review", "dialog")
    page.wait("!document.querySelector('dialog')")
    for shown in ("ended early", "The review was ended early.", "nobody has chosen"):
        page.wait_for_text(shown)
    assert answers.asked.count("POST /v1/reviews/eval-1/end") == 1
