"""What the console shows of the gateway's engines: in the traffic view, and in the banner over all views."""

from __future__ import annotations

from typing import Any

from tests.support.browser import Browser
from tests.unit.service.console.conftest import METRICS, NONE, Answers, models, show


def engine(name: str, state: str = "ready", base: str = "small") -> dict[str, Any]:
    return {"name": name, "base": base, "state": state, "reason": "it exited with 1" * (state == "down"), "since": 0}


def readiness(*engines: dict[str, Any], status: str = "ready") -> dict[str, Any]:
    return {
        "status": status,
        "base": "small",
        "engine": engines[0],
        "engines": list(engines),
        "trainer": {"state": "ready"},
    }


def test_traffic_tells_the_engines_apart(page: Browser, answers: Answers) -> None:
    answers.told = {
        "GET /metrics": [METRICS],
        "GET /v1/usage": [NONE],
        "GET /v1/costs": [NONE | {"budgets": []}],
        "GET /readyz": [readiness(engine("small"), engine("large", "down", "qwen"))],
    }
    show(page, "traffic.js", "TrafficView")
    page.wait("document.querySelectorAll('section[aria-label=Engines] tbody tr').length === 2")
    rows = page.run(
        "[...document.querySelectorAll('section[aria-label=Engines] tbody tr')].map((row) => Object.fromEntries("
        "[...row.querySelectorAll('td')].map((cell) => [cell.dataset.label, cell.innerText.replace(/\\s+/g, ' ')])))"
    )
    assert (rows[0]["Engine"], rows[0]["Base"], rows[0]["Slots in use"]) == ("small", "small", "–")
    assert (rows[1]["Base"], rows[1]["Slots in use"], rows[1]["Waiting"]) == ("qwen", "3 of 16", "7")
    assert "it exited with 1" in rows[1]["State"]


def test_a_banner_is_there_while_no_engine_answers_and_tab_goes_on_in_the_page(page: Browser, answers: Answers) -> None:
    down = readiness(engine("small", "down"), engine("large", "down"), status="down")
    answers.told = {
        "GET /v1/models": [models("small")],
        "GET /v1/adapters": [NONE],
        "GET /v1/keys": [NONE],
        "GET /v1/usage": [NONE],
        "GET /metrics": [METRICS],
        "GET /readyz": [(503, down)],
    }
    page.open("about:blank")
    page.open(f"{answers.url}/console")
    page.fill("#key", "hk_test")
    page.click("Sign in")
    page.wait_for_text("No engine is ready.")
    assert "It exited with 1" in page.run("document.querySelector('.banner').innerText")
    page.wait_for_text("0 of 2 engines ready")
    page.wait_for_text("No adapters yet")
    assert page.run("document.activeElement.id") == "main", "the form that had the focus is gone"
    page.press("Tab")
    assert page.run("document.querySelector('main').contains(document.activeElement)")
    assert page.run("document.activeElement.innerText") == "New from a prompt"
    page.run("sessionStorage.clear()")


def test_a_gateway_that_will_stop_says_so_and_blames_no_engine(page: Browser) -> None:
    show(page, "readiness.js", "EngineBanner", ready=readiness(engine("a"), engine("b"), status="stopping"))
    page.wait_for_text("The gateway is about to stop.")
    assert "engine" not in page.text.lower()
