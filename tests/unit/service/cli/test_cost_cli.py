"""`hatrack cost` and `hatrack budget`: what a person reads, within 80 columns, and JSON for machines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from service.cli.cost import print_estimate
from service.cli.main import app
from service.client import HatrackClient

SECONDS = {"serving": 4_000.0, "evaluating": 61.5, "training": 90.0}
MONEY = {"serving": 2.22, "evaluating": 0.03, "training": 0.05, "outside": 0.0, "total": 2.3}
OUTSIDE = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "money": 0.0, "unpriced_requests": 0}
ROW = {
    "object": "cost", "id": "x", "start": 0, "end": 3600, "adapter": "a-very-long-adapter-name-of-64", "version": 12,
    "requests": 1_234_567, "prompt_tokens": 10, "completion_tokens": 5, "seconds": SECONDS, "device_hours": 1.15,
    "outside": OUTSIDE, "money": MONEY, "hosted": 123.456,
}  # fmt: skip
ENGINE = {
    "busy_seconds": 4061.5, "idle_seconds": 90_000.0, "own_seconds": 3.0, "busy_money": 2.2, "idle_money": 50.0,
    "own_money": 0.001, "measured_since": 0,
}  # fmt: skip
BUDGET = {
    "object": "budget", "project": "acme", "monthly": 50.0, "spent": 51.5, "remaining": -1.5, "exhausted": True,
    "resets_at": 1_796_083_200, "runs_available": True,
}  # fmt: skip
PAGE: dict[str, Any] = {
    "object": "list", "start": 0, "end": 7200, "currency": "EUR",
    "prices": {"device_hour": 2.0, "hosted_input": 1.0, "hosted_output": 2.0, "person_hour": None},
    "data": [ROW, ROW | {"adapter": None, "version": None}], "engine": ENGINE,
    "runs": {"available": True, "reason": None}, "budgets": [BUDGET], "has_more": False,
}  # fmt: skip
NO_PRICES = dict.fromkeys(("device_hour", "hosted_input", "hosted_output", "person_hour"))
YEAR: dict[str, Any] = {
    "object": "cost.year", "adapter": "voice", "currency": "EUR", "prices": PAGE["prices"],
    "rhythm": {"retrainings_per_year": 4, "revalidations_per_year": 4.06, "checked_share": 0.05},
    "traffic": {"source": "usage", "requests_per_year": 730_000, "days": 12.5, "requests": 25_000},
    "training": {
        "job": "ftjob-0123456789abcdef01234567", "version": 2, "finished_at": 9, "seconds": 611.0,
        "judging_seconds": 100.0, "examples": 1_000,
    },
    "runs": {"available": True, "reason": None},
    "versions": [
        {
            "version": 2, "name": "voice@2", "has_weights": True, "live": True,
            "request": {"requests": 9, "prompt_tokens": 1234.5, "completion_tokens": 99.0, "engine_seconds": 0.5},
            "tokens": {"prompt": 9, "completion": 9, "hosted": 1.0},
            "year": {
                "requests": 12_345.67, "retraining": 1.2, "judging": 0.003, "data": 1_234.0, "checks": 567.0,
                "total": 14_147.87, "device_hours": 101.4, "people_hours": 30.1, "requests_per_year": 730_000,
                "rule_of_thumb": [0.9, 1.5],
            },
        },
        {
            "version": 3, "name": "voice@3", "has_weights": False, "live": False, "request": None, "tokens": None,
            "year": {
                "requests": None, "retraining": 0.0, "judging": None, "data": 0.0, "checks": None, "total": None,
                "device_hours": 0.0, "people_hours": 0.0, "requests_per_year": 730_000, "rule_of_thumb": None,
            },
        },
    ],
    "long_prompt": {
        "source": "given", "tokens_per_request": 1_500.0, "tokens_per_year": 1_095_000_000, "hosted": 1_095.0
    },
}  # fmt: skip


@pytest.fixture
def hatrack(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command against a gateway that gives one answer to each path; `run.asked` are the requests."""
    answers: dict[str, Any] = {}
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=answers[request.url.path])

    init = HatrackClient.__init__

    def through(self: HatrackClient, *args: Any, **more: Any) -> None:
        init(self, "http://gateway", "key", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(HatrackClient, "__init__", through)

    def run(path: str, content: Any, *arguments: str) -> Result:
        answers[path] = content
        return CliRunner().invoke(app, arguments)

    run.asked = asked  # type: ignore[attr-defined]
    return run


def narrow(text: str) -> None:
    assert [line for line in text.splitlines() if len(line.rstrip()) > 80] == []


@pytest.mark.parametrize("by", ["adapter", "version", "project", "key"])
def test_costs_fit_a_terminal_and_add_up(hatrack: Callable[..., Result], by: str) -> None:
    rows = [row | {"project": "p" * 64, "key": "key_" + "k" * 16, "key_name": "n" * 100} for row in PAGE["data"]]
    shown = hatrack("/v1/costs", PAGE | {"data": rows}, "cost", "--by", by)
    assert shown.exit_code == 0, shown.output
    narrow(shown.output)
    total = next(line for line in shown.output.splitlines() if line.startswith("total"))
    assert total.split() == ["total", "2,469,134", "2.2", "h", "2.0", "min", "3.0", "min", "4.60", "246.91"]
    assert "idle 25.0 h (50.00 EUR)" in shown.output
    text = " ".join(shown.output.split())
    assert "Budget of acme: 51.50 EUR of 50.00 EUR until 2026-12-01; spent: requests and new runs are refused." in text
    assert dict(hatrack.asked[0].url.params)["group_by"] == by  # type: ignore[attr-defined]


def test_what_is_not_known_is_no_number(hatrack: Callable[..., Result]) -> None:
    row = ROW | {"seconds": SECONDS | {"training": None}, "money": MONEY | {"training": None, "total": None}}
    runs = {"available": False, "reason": "the trainer is not reachable"}
    shown = hatrack("/v1/costs", PAGE | {"data": [ROW, row], "runs": runs}, "cost")
    total = next(line for line in shown.output.splitlines() if line.startswith("total"))
    assert total.split()[-3:] == ["?", "?", "246.91"]
    assert "The time of training is not available: the trainer is not reachable" in shown.output


@pytest.mark.parametrize(("unpriced", "total"), [(0, ["1.50", "4.60", "246.91"]), (2, ["?", "4.60", "246.91"])])
def test_what_endpoints_outside_charged_has_a_column_where_there_is_any(
    hatrack: Callable[..., Result], unpriced: int, total: list[str]
) -> None:
    charged = OUTSIDE | {"requests": 3, "money": None if unpriced else 1.5, "unpriced_requests": unpriced}
    shown = hatrack("/v1/costs", PAGE | {"data": [ROW, ROW | {"outside": charged}]}, "cost")
    narrow(shown.output)
    assert "OUTSIDE" in shown.output.splitlines()[0]
    assert next(line for line in shown.output.splitlines() if line.startswith("total")).split()[-3:] == total
    assert ("2 of the requests to endpoints outside have no known price" in " ".join(shown.output.split())) is bool(
        unpriced
    )
    assert "OUTSIDE" not in hatrack("/v1/costs", PAGE, "cost").output


def test_without_prices_there_are_hours(hatrack: Callable[..., Result]) -> None:
    row = ROW | {"money": None, "hosted": None}
    page = PAGE | {"data": [row], "prices": NO_PRICES, "currency": None, "engine": None, "budgets": []}
    shown = hatrack("/v1/costs", page, "cost")
    assert "HOURS" in shown.output
    assert "1.15" in shown.output
    assert "No price is set (HATRACK_PRICE_DEVICE_HOUR), so there are only hours." in shown.output


def test_json_is_the_whole_page(hatrack: Callable[..., Result]) -> None:
    assert json.loads(hatrack("/v1/costs", PAGE, "cost", "--json").output) == PAGE
    assert json.loads(hatrack("/v1/costs/year", YEAR, "cost", "--year", "voice", "--json").output) == YEAR


def test_a_year_fits_a_terminal_and_says_what_it_rests_on(hatrack: Callable[..., Result]) -> None:
    shown = hatrack("/v1/costs/year", YEAR, "cost", "--year", "voice", "--requests-per-day", "2000")
    assert shown.exit_code == 0, shown.output
    narrow(shown.output)
    text = " ".join(shown.output.split())
    assert "a year of 730,000 requests (25,000 in 12.5 days, scaled)" in text
    assert "3 to 5 times the cost of one training: 0.90 EUR to 1.50 EUR." in text
    assert "1,095,000,000 tokens a year, 1,095 EUR at a hosted model." in text
    (unknown,) = [line for line in shown.output.splitlines() if line.startswith("@3")]
    assert unknown.split() == ["@3", "-", "?", "0.00", "?", "0.00", "?", "?", "0+0"]


def test_an_estimate_shows_each_hyperparameter_with_its_value_and_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = {"n_epochs": "3: small data sets are repeated more often", "micro_batch_tokens": "512: a CPU is busy"}
    primary = {"name": "rouge_l", "why": "the request names it"}
    estimate: Any = {
        "adapter": "voice", "device": "cpu", "examples": 90, "held_out": 10, "epochs": 3, "tokens": 5_000,
        "hyperparameters": {"n_epochs": 3, "learning_rate": 0.0005, "packing": False,
            "learning_rate_multiplier": 2.0, "target_modules": ["q_proj", "v_proj"]},
        "plan": {"chosen": chosen, "primary": primary},
        "speed": {"tokens_per_second": 100.0, "source": "record", "jobs": 3}, "money": None, "currency": None,
        "seconds": {"starting": 4.0, "training": 50.0, "judging": 6.0, "total": 60.0},
    }  # fmt: skip
    print_estimate(estimate, as_json=False)
    text = capsys.readouterr().out
    table = text[text.index("HYPERPARAMETER") :].splitlines()
    assert [re.split(r"\s{2,}", line.rstrip()) for line in table[:7]] == [
        ["HYPERPARAMETER", "VALUE", "WHY"],
        ["n_epochs", "3", "auto: small data sets are repeated more often"],
        ["learning_rate", "0.0005", "as requested"],
        ["micro_batch_tokens", "512", "auto: a CPU is busy"],
        ["packing", "False", "the default, unless requested"],
        ["target_modules", "q_proj v_proj", "the default, unless requested"],
        ["metric", "rouge_l", "the request names it"],
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("cost", "--by", "colour"), "--by must be one of"),
        (("cost", "--requests-per-day", "5"), "need --year"),
        (("budget", "acme"), "with an amount, or with --remove"),
        (("budget", "acme", "5", "--remove"), "with an amount, or with --remove"),
        (("budget", "--remove"), "needs a PROJECT"),
    ],
)
def test_a_wrong_option_is_named(hatrack: Callable[..., Result], arguments: tuple[str, ...], named: str) -> None:
    refused = hatrack("/none", {}, *arguments)
    assert refused.exit_code == 2
    assert named in " ".join(refused.output.replace("│", " ").split())


def test_a_budget_is_set_listed_and_removed(hatrack: Callable[..., Result]) -> None:
    hatrack("/v1/budgets/acme", BUDGET, "budget", "acme", "50")
    listed = hatrack("/v1/budgets", {"object": "list", "data": [BUDGET]}, "budget", "acme", "50")
    assert listed.output.startswith("Budget of acme: 51.50 of 50.00 until 2026-12-01")
    small = BUDGET | {"monthly": 0.004, "spent": 0.0000512, "exhausted": False}
    listed = hatrack("/v1/budgets", {"object": "list", "data": [small]}, "budget")
    assert listed.output.startswith("Budget of acme: 0.000051 of 0.0040 until")
    removed = hatrack("/v1/budgets/acme", {"object": "budget"}, "budget", "acme", "--remove")
    assert removed.output == "acme has no budget any more.\n"
    assert hatrack("/v1/budgets", {"object": "list", "data": []}, "budget").output.startswith("No budgets.")
