"""Where there is nothing yet, each view says what to do next: in a real Chromium, on answers written here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import Browser
from tests.unit.service.console.conftest import NONE, Answers, adapter, listed, models, show, version

DENIED = (403, {"error": {"message": "no", "code": "insufficient_permissions"}})
COSTS: dict[str, Any] = NONE | {"budgets": [], "prices": {"device_hour": None}, "currency": None, "runs": None}
EMPTY = ("adapters", "vector_stores", "datasets", "fine_tuning/jobs", "ladders", "evaluations", "reviews", "usage")
TOLD: dict[str, list[Any]] = {f"GET /v1/{each}": [NONE] for each in EMPTY}
TOLD |= {"GET /v1/models": [{"data": models("large")["data"][:1]}], "GET /v1/costs": [COSTS]}
TOLD |= {"GET /metrics": [DENIED], "GET /readyz": [{"engines": []}]}
LINKS = (
    "[...document.querySelectorAll('.empty :is(a, button)')]"
    ".map((each) => `${each.innerText}${each.getAttribute('href') ?? ''}`)"
)


@pytest.fixture(autouse=True)
def forgotten(page: Browser) -> Iterator[None]:
    page.run("sessionStorage.clear()")
    yield
    page.run("sessionStorage.clear()")


@pytest.mark.parametrize(
    ("module", "view", "words", "links"),
    [
        (
            "train.js",
            "TrainView",
            ("No jobs yet", "A job needs a JSONL file of 10 examples or more"),
            ["Train from a file", "Is training worth it?"],
        ),
        (
            "stores.js",
            "StoresView",
            ("No stores yet", "A store holds documents", "then drop documents on it"),
            ["Make the first store"],
        ),
        (
            "review.js",
            "ReviewView",
            ("Nothing to review", 'choose "Review its answers"', "--judge JUDGE"),
            ["Train#/train"],
        ),
        (
            "traffic.js",
            "TrafficView",
            ("No requests in the last 24 hours", "point an OpenAI client at", "/v1 with a key of this gateway"),
            ["playground#/playground"],
        ),
        (
            "playground.js",
            "PlaygroundView",
            ("No answers yet", "Write a question above", "There is only the base so far"),
            ["make an adapter#/adapters", "train one#/train"],
        ),
    ],
    ids=["jobs", "stores", "review", "traffic", "playground"],
)
def test_an_empty_view_says_what_to_do_next(
    page: Browser, answers: Answers, module: str, view: str, words: tuple[str, ...], links: list[str]
) -> None:
    answers.told = {**TOLD}
    show(page, module, view)
    for text in words:
        page.wait_for_text(text)
    assert page.run(LINKS) == links


@pytest.mark.parametrize(
    ("module", "view", "button", "opened"),
    [
        ("train.js", "TrainView", "Train from a file", "Drop"),
        ("train.js", "TrainView", "Is training worth it?", "Drop"),
        ("stores.js", "StoresView", "Make the first store", "New store"),
    ],
    ids=["train", "advice", "store"],
)
def test_the_way_out_of_an_empty_view_leads_there(
    page: Browser, answers: Answers, module: str, view: str, button: str, opened: str
) -> None:
    answers.told = {**TOLD}
    show(page, module, view)
    page.click(button, ".empty")
    page.wait(f"document.querySelector('dialog[open], .drop')?.innerText.includes('{opened}')")


def test_a_playground_with_adapters_sends_nobody_to_make_one(page: Browser, answers: Answers) -> None:
    answers.told = TOLD | {"GET /v1/adapters": [listed(adapter(version(1), aliases={}))]}  # none of them is live
    show(page, "playground.js", "PlaygroundView")
    page.wait_for_text("No answers yet")
    assert "There is only the base so far" not in page.text
