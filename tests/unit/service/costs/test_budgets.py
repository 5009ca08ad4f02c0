"""Budgets: what is spent is refused with OpenAI's quota error, what is under way goes on, and a month begins anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.costs import Prices
from service.access import audit
from service.costs import records
from service.costs.budgets import month_of, next_month
from service.errors import DiskFull, QuotaSpent
from tests.support.postgresql import TestServer
from tests.support.postgresql_proxy import databases_behind_proxy
from tests.unit.service.access.clock import MIDNIGHT
from tests.unit.service.costs.costs_app import CostsApp

HOUR = MIDNIGHT + 10 * 3600


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[CostsApp]:
    async with CostsApp(tmp_path).open() as app:
        yield app


async def budget(app: CostsApp, monthly: float, project: str = "acme") -> dict[str, Any]:
    answer = await app.request("PUT", f"/v1/budgets/{project}", json={"monthly": monthly})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_spent_budget_refuses_its_projects_requests_and_names_itself(app: CostsApp) -> None:
    await budget(app, 10)
    app.ask("key_a", 9)
    app.budgets.check(app.callers["key_a"])
    app.ask("key_b", 2)
    with pytest.raises(QuotaSpent) as caught:
        app.budgets.check(app.callers["key_a"])
    error = caught.value
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert "monthly budget of the project `acme` is spent: budget 10.00 EUR, spent 11.00 EUR" in error.message
    assert error.headers["x-should-retry"] == "false"
    assert int(error.headers["retry-after"]) == next_month(app.clock.unix) - int(app.clock.unix)
    app.budgets.check(app.callers["key_c"])  # another project


async def test_a_budget_that_is_refused_was_not_set(app: CostsApp, monkeypatch: pytest.MonkeyPatch) -> None:
    await budget(app, 10)
    app.ask("key_a", 1)  # its usage is written before the budget is

    async def no_room(*_: object) -> None:
        raise DiskFull("the disk is full; nothing was changed")

    with monkeypatch.context() as patch:
        patch.setattr(app.account, "flush", no_room)
        refused = await app.request("PUT", "/v1/budgets/acme", json={"monthly": 20})
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
    assert [each["monthly"] for each in await app.budgets.visible_to(app.callers["admin"])] == [10]
    assert [entry.action for entry in await app.database.run(lambda db: audit.page(db, after=None, limit=9))] == [
        "budget.set"
    ]


async def test_a_small_budget_is_named_with_its_digits(app: CostsApp) -> None:
    await budget(app, 0.004)
    app.ask("key_a", 0.0051)
    with pytest.raises(QuotaSpent) as caught:
        app.budgets.check(app.callers["key_a"])
    assert "budget 0.0040 EUR, spent 0.0051 EUR" in caught.value.message


async def test_what_was_spent_before_the_budget_was_set_counts(app: CostsApp) -> None:
    app.ask("key_a", 7)
    app.trainer.ran(HOUR, 5)
    set_now = await budget(app, 10)
    assert (set_now["spent"], set_now["remaining"], set_now["exhausted"]) == (12, -2, True)


async def test_training_counts_and_a_new_run_is_refused_by_what_the_trainer_says_now(app: CostsApp) -> None:
    await budget(app, 10)
    await app.budgets.check_run("acme")
    app.trainer.ran(HOUR, 12)
    with pytest.raises(QuotaSpent):
        await app.budgets.check_run("acme")
    await app.budgets.check_run("bolt")
    with pytest.raises(QuotaSpent):
        app.budgets.check(app.callers["key_a"])


async def test_what_endpoints_outside_charge_counts(app: CostsApp) -> None:
    app.ask("key_a", 4)
    app.trainer.charged(HOUR, 5.5)
    app.trainer.charged(HOUR, 0.0, unpriced=3)
    app.trainer.charged(HOUR, 90.0, project="bolt")
    app.trainer.charged(month_of(HOUR) - 3600, 90.0)
    set_now = await budget(app, 10)
    assert (set_now["spent"], set_now["exhausted"]) == (9.5, False)
    app.trainer.charged(HOUR, 0.5)
    with pytest.raises(QuotaSpent):
        await app.budgets.check_run("acme")
    app.clock.pass_s(next_month(app.clock.unix) - app.clock.unix)
    app.budgets.check(app.callers["key_a"])


async def test_runs_that_are_under_way_go_on(app: CostsApp) -> None:
    await budget(app, 1)
    app.ask("key_run", 2)
    app.budgets.check(app.callers["key_run"])


async def test_a_month_begins_anew(app: CostsApp) -> None:
    await budget(app, 10)
    app.ask("key_a", 11)
    app.clock.pass_s(next_month(app.clock.unix) - app.clock.unix - 1)
    with pytest.raises(QuotaSpent):
        app.budgets.check(app.callers["key_a"])
    app.clock.pass_s(1)
    app.budgets.check(app.callers["key_a"])
    assert (await app.costs())["budgets"][0]["spent"] == 0


async def test_a_restart_knows_what_was_spent(tmp_path: Path) -> None:
    async with CostsApp(tmp_path).open() as app:
        await budget(app, 10)
        app.ask("key_a", 11)
        await app.account.flush()
    again = CostsApp(tmp_path)
    await again.database.open()
    async with again.budgets.running():
        with pytest.raises(QuotaSpent):
            again.budgets.check(app.callers["key_a"])
    await again.database.close()


async def test_what_ends_while_the_sums_are_read_counts_once(app: CostsApp, monkeypatch: pytest.MonkeyPatch) -> None:
    await budget(app, 100)
    app.ask("key_a", 1)
    read = records.engine_seconds
    flushes: list[asyncio.Task[None]] = []

    def end_one() -> None:
        app.ask("key_a", 2)
        flushes.append(loop.create_task(app.account.flush()))

    def ends_meanwhile(db: Any, start: int) -> dict[str, float]:
        seconds = read(db, start)
        loop.call_soon_threadsafe(end_one)
        time.sleep(0.05)  # the event loop comes to it while the read has not returned
        return seconds

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(records, "engine_seconds", ends_meanwhile)
    await app.budgets.refresh()
    await asyncio.gather(*flushes)
    monkeypatch.undo()
    assert len(flushes) == 1
    (shown,) = (await app.costs())["budgets"]
    assert shown["spent"] == 3
    await app.budgets.refresh()
    (shown,) = (await app.costs())["budgets"]
    assert shown["spent"] == 3


async def test_a_trainer_that_is_down_is_told_of_and_its_last_word_stands(app: CostsApp) -> None:
    app.trainer.ran(HOUR, 6)
    await budget(app, 10)
    app.trainer.reachable = False
    (shown,) = (await app.costs())["budgets"]
    assert (shown["spent"], shown["runs_available"]) == (6, False)


async def test_budgets_are_seen_by_their_project_and_set_by_admins(app: CostsApp) -> None:
    await budget(app, 10)
    await budget(app, 20, "bolt")
    seen = {
        key: [each["project"] for each in (await app.request("GET", "/v1/budgets", key)).json()["data"]]
        for key in ("admin", "key_a", "key_c")
    }
    assert seen == {"admin": ["acme", "bolt"], "key_a": ["acme"], "key_c": ["bolt"]}
    assert [each["project"] for each in (await app.costs("key_a"))["budgets"]] == ["acme"]
    refused = await app.request("PUT", "/v1/budgets/acme", "key_a", json={"monthly": 99})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    entries = await app.database.run(lambda db: audit.page(db, after=None, limit=5, project=None, action="budget.set"))
    assert [(entry.target, entry.detail) for entry in entries] == [("bolt", {"monthly": 20}), ("acme", {"monthly": 10})]


async def test_a_removed_budget_refuses_nothing(app: CostsApp) -> None:
    await budget(app, 1)
    app.ask("key_a", 2)
    removed = await app.request("DELETE", "/v1/budgets/acme")
    assert removed.json() == {"object": "budget", "project": "acme", "deleted": True}
    app.budgets.check(app.callers["key_a"])
    again = await app.request("DELETE", "/v1/budgets/acme")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("project", "body", "status", "code"),
    [
        ("acme", {"monthly": 0}, 400, "invalid_value"),
        ("acme", {"monthly": "ten"}, 400, "invalid_value"),
        ("acme", {}, 400, "missing_required_parameter"),
        ("nobody", {"monthly": 5}, 404, "project_not_found"),
    ],
)
async def test_a_budget_that_cannot_be_is_refused(
    app: CostsApp, project: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await app.request("PUT", f"/v1/budgets/{project}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_budget_needs_the_price_of_the_device(tmp_path: Path) -> None:
    async with CostsApp(tmp_path, Prices()).open() as app:
        answer = await app.request("PUT", "/v1/budgets/acme", json={"monthly": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_device_price")
    assert "HATRACK_PRICE_DEVICE_HOUR" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("now", "begins", "ends"),
    [((2026, 12, 31, 23), (2026, 12), (2027, 1)), ((2028, 2, 29, 0), (2028, 2), (2028, 3))],
)
def test_months_are_calendar_months(now: tuple[int, ...], begins: tuple[int, int], ends: tuple[int, int]) -> None:
    at = datetime(*now, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]
    assert month_of(at) == datetime(*begins, 1, tzinfo=UTC).timestamp()
    assert next_month(at) == datetime(*ends, 1, tzinfo=UTC).timestamp()


async def test_a_budget_whose_saving_was_not_confirmed_is_in_force_once_the_database_answers(
    postgresql: TestServer, tmp_path: Path
) -> None:
    async with databases_behind_proxy(postgresql) as proxy, CostsApp(tmp_path).open() as app:
        proxy.lose_after = b"monthly_budget"
        answer = await app.request("PUT", "/v1/budgets/acme", json={"monthly": 10})
        assert (answer.status_code, proxy.losses) == (503, 1)
        await app.database.resync.idle()
        app.ask("key_a", 11)
        with pytest.raises(QuotaSpent):
            app.budgets.check(app.callers["key_a"])
