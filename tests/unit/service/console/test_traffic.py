"""The numbers of Traffic: groups, cost, budgets, rates and latencies, in a real Chromium on answers written here."""

from __future__ import annotations

from typing import Any

import pytest

from service.costs.schemas import Budget, CostRow, Money, Outside, Seconds
from service.usage.routes import UsageRow
from tests.support.browser import Browser
from tests.unit.service.console.conftest import NONE, Answers, show

USAGE, COSTS = "GET /v1/usage", "GET /v1/costs"
ROWS = (
    "[...document.querySelectorAll('section[aria-label=Usage] tbody tr')].map((row) => [...row.querySelectorAll('td')]"
    ".map((cell) => cell.innerText.replace(/\\s+/g, ' ')))"
)
DENIED = (403, {"error": {"message": "no", "code": "insufficient_permissions"}})
READY: dict[str, Any] = {"engines": []}


def usage_row(name: str, **more: Any) -> dict[str, Any]:
    counts = {"requests": 1200, "errors": 3, "prompt_tokens": 5000, "cached_tokens": 1250, "completion_tokens": 700}
    return UsageRow(object="usage", id=name, start=0, end=86400, **(counts | more)).model_dump()


def cost_row(name: str, *, requests: int = 1200, total: float | None = 12.4, **more: Any) -> dict[str, Any]:
    money = Money(serving=1, evaluating=0, training=2, outside=0.5, total=total)
    outside = Outside(requests=2, prompt_tokens=1, completion_tokens=1, money=0.5, unpriced_requests=0)
    made: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "device_hours": 1.5, "hosted": None} | more
    seconds = Seconds(serving=1800, evaluating=0, training=3600)
    row = CostRow(
        object="cost",
        id=name,
        start=0,
        end=86400,
        requests=requests,
        seconds=seconds,
        outside=outside,
        money=None if total is None else money,
        **made,
    )
    return row.model_dump()


def costs(*rows: dict[str, Any], price: float | None = 2.0, budgets: tuple[Budget, ...] = ()) -> dict[str, Any]:
    told = {"currency": "EUR", "prices": {"device_hour": price}, "runs": {"available": True, "reason": None}}
    return NONE | told | {"data": list(rows), "budgets": [each.model_dump() for each in budgets]}


def budget(project: str, spent: float, monthly: float, *, exhausted: bool = False) -> Budget:
    made: dict[str, Any] = {
        "remaining": monthly - spent,
        "exhausted": exhausted,
        "resets_at": 0,
        "runs_available": True,
    }
    return Budget(object="budget", project=project, monthly=monthly, spent=spent, **made)


def tell(answers: Answers, usage: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    page = {"data": usage, "has_more": False}
    answers.told = {"GET /metrics": [DENIED], "GET /readyz": [READY], USAGE: [page], COSTS: [cost]}


@pytest.mark.parametrize(
    ("group", "names", "shown"),
    [
        ("adapter", {"adapter": "voice"}, "voice"),
        ("adapter,version", {"adapter": "voice", "version": 3}, "voice@3"),
        ("adapter,version", {"adapter": None}, "no such model"),
        ("key", {"key": "key_1", "key_name": "shop"}, "shop key_1"),
        ("project", {"project": "acme"}, "acme"),
    ],
)
def test_each_group_has_its_requests_tokens_time_and_cost(
    page: Browser, answers: Answers, group: str, names: dict[str, Any], shown: str
) -> None:
    tell(answers, [usage_row("one", **names)], costs(cost_row("one", **names)))
    show(page, "traffic.js", "TrafficView")
    page.wait("document.querySelectorAll('.actions select').length === 2")
    page.fill_labelled("By", group)
    page.wait(f"{ROWS}.length === 1 && {ROWS}[0][0] === '{shown}'")
    assert page.run(ROWS) == [[shown, "1,200", "3", "5,000", "25%", "700", "1 h 30 min", "12.40"]]
    assert "COST, EUR" in page.run("document.querySelector('thead').innerText").upper()
    cells = "[...document.querySelectorAll('section[aria-label=Usage] tbody td')].slice(-2).map((each) => each.title)"
    assert page.run(cells) == ["serving 30 min, evaluating 0 ms, training 1 h", "outside 0.50"]
    assert answers.queries[COSTS][-1]["group_by"] == group


def test_without_a_price_there_is_time_and_no_money(page: Browser, answers: Answers) -> None:
    tell(answers, [usage_row("one", adapter="voice")], costs(cost_row("one", adapter="voice", total=None), price=None))
    show(page, "traffic.js", "TrafficView")
    page.wait_for_text("No price is set, so there is device time and no money")
    assert page.run(ROWS) == [["voice", "1,200", "3", "5,000", "25%", "700", "1 h 30 min"]]


def test_what_costs_without_a_request_is_shown(page: Browser, answers: Answers) -> None:
    trained = cost_row("two", adapter="clerk", version=1, requests=0, total=3.0)
    teacher = cost_row("three", adapter=None, requests=0, total=0.5, device_hours=0)
    tell(answers, [], costs(trained, teacher))
    show(page, "traffic.js", "TrafficView")
    page.wait(f"{ROWS}.length === 2")
    assert page.run(ROWS) == [
        ["clerk@1", "0", "0", "0", "–", "0", "1 h 30 min", "3.00"],
        ["endpoints outside", "0", "0", "0", "–", "0", "0 ms", "0.50"],
    ]


def test_budgets_are_shown_whether_or_not_anything_was_asked(page: Browser, answers: Answers) -> None:
    tell(answers, [], costs(budgets=(budget("acme", 51.2, 50, exhausted=True), budget("zoo", 1, 1250))))
    show(page, "traffic.js", "TrafficView")
    page.wait_for_text("Budgets of this month")
    rows = page.run("[...document.querySelectorAll('section[aria-label=Budgets] li')].map((each) => each.innerText)")
    assert [" ".join(row.split()) for row in rows] == ["acme 51.20 of 50.00 EUR used up", "zoo 1.00 of 1,250 EUR"]
    page.wait_for_text("No requests in the last 24 hours")


def scrape(requests: int, tokens: int) -> str:
    first = "hatrack_time_to_first_token_seconds_bucket"
    return (
        f'hatrack_requests_total{{project="a",adapter="voice",version="1"}} {requests}\n'
        f'hatrack_completion_tokens_total{{project="a",adapter="voice",version="1"}} {tokens}\n'
        "hatrack_requests_in_flight 4\nhatrack_engine_slots_in_use 3\nhatrack_engine_slots 16\n"
        f'{first}{{le="0.1"}} 50\n{first}{{le="0.5"}} 100\n{first}{{le="+Inf"}} 100\n'
    )


def test_the_tiles_have_rates_between_two_readings_and_latencies(page: Browser, answers: Answers) -> None:
    tell(answers, [], costs())
    answers.told["GET /metrics"] = [scrape(10, 100), scrape(25, 900)]
    page.run("window.ticks = []; window.clock = 0; performance.now = () => window.clock; undefined")
    page.run("window.setInterval = (tick, every) => window.ticks.push([tick, every]); undefined")
    show(page, "traffic.js", "TrafficView")
    tiles = (
        "Object.fromEntries([...document.querySelectorAll('.tiles > div')].map((each) => each.innerText.split('\\n')))"
    )
    page.wait("document.querySelectorAll('.tiles > div').length === 8 && window.ticks.some((each) => each[1] === 5000)")
    assert page.run("document.querySelector('.tiles dd').innerText") == "…", "one reading has no rate"
    page.run("window.clock = 2000; window.ticks.find((each) => each[1] === 5000)[0](); undefined")
    page.wait("document.querySelector('.tiles dd').innerText !== '…'")
    shown = {name: value for name, value in page.run(f"{tiles}").items() if value != "–"}
    assert list(shown.values()) == ["7.5/s", "400/s", "4", "0", "3 of 16", "100 ms", "492 ms"]
