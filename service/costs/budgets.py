"""Budgets in money: what a project may spend on device time and on endpoints outside in a calendar month (UTC).

What counts is measured after the fact: the engine time of a request when it ends; the device time of a job while it
runs, and what teachers and judges outside have charged, both asked of the trainer every REFRESH_S. When the sum reaches
the budget, requests of the project's keys and new runs are refused. So a budget can be passed by what was under way
then: requests in the engine, and runs that were created before, which go on to their end with the requests of their own
keys.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from adapters.costs import Prices, amount_text
from service.access.audit import Actor, note
from service.access.caller import Caller, Scope
from service.costs import records
from service.costs.runs import TrainerCosts
from service.database import Database
from service.errors import Conflict, HatrackError, NotFound, QuotaSpent
from service.telemetry.record import Record
from service.usage.account import UsageAccount

REFRESH_S: Final = 15.0
HOUR_S: Final = 3600
_LOG = logging.getLogger("hatrack.costs")


class BudgetService:
    """The budgets of all projects, and what was spent of them. All of it runs on the event loop's thread.

    Args:
        account: Writes the usage; what is pending is written before the month's sum is read.
        trainer: Tells the device time of runs, and what endpoints outside charged.
        wall: Unix time, seconds.
    """

    def __init__(
        self,
        database: Database,
        account: UsageAccount,
        trainer: TrainerCosts,
        prices: Prices,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._account = account
        self._trainer = trainer
        self._prices = prices
        self._wall = wall
        self._monthly: dict[str, float] = {}
        self._month, self._month_ends = 0, 0
        self._engine_s: dict[str, float] = {}
        self._training_s: dict[str, float] = {}
        self._outside: dict[str, float] = {}
        """What endpoints outside charged each project."""
        self._runs_told = False

    # the data path

    def __call__(self, record: Record) -> None:
        """Count a finished request, as an ``Account``."""
        if record.caller is not None and record.engine_s:
            self.add_engine_time(record.caller.project, record.engine_s)

    def add_engine_time(self, project: str, seconds: float) -> None:
        """Count a project's share of the engine's time, s."""
        self._begin_month()
        self._engine_s[project] = self._engine_s.get(project, 0.0) + seconds

    def check(self, caller: Caller) -> None:
        """Refuse a request if the project's budget is spent. Runs that are under way go on.

        Raises:
            QuotaSpent: It is spent; the message names the budget.
        """
        if not caller.background:
            self._check(caller.project)

    def exhausted(self) -> dict[str, QuotaSpent]:
        """What requests of each project whose budget is spent are refused with."""
        refusals = {}
        for project in self._monthly:
            try:
                self._check(project)
            except QuotaSpent as error:
                refusals[project] = error
        return refusals

    async def check_run(self, project: str) -> None:
        """Refuse a new run if the project's budget is spent, by what the trainer says now.

        Raises:
            QuotaSpent: It is spent.
        """
        if project in self._monthly:
            await self._ask_trainer()
            self._check(project)

    def _check(self, project: str) -> None:
        monthly = self._monthly.get(project)
        if monthly is None:
            return
        self._begin_month()
        spent = self._spent(project)
        if spent is None or spent < monthly:
            return
        currency = f" {self._prices.currency}" if self._prices.currency else ""
        resets_at = next_month(self._wall())
        raise QuotaSpent(
            f"The monthly budget of the project `{project}` is spent: budget {amount_text(monthly)}{currency}, spent "
            f"{amount_text(spent)}{currency}. "
            f"It resets on {datetime.fromtimestamp(resets_at, UTC):%Y-%m-%d} (UTC); "
            f"an admin can raise it (`hatrack budget {project} AMOUNT`).",
            headers={"retry-after": str(max(1, math.ceil(resets_at - self._wall())))},
        )

    # reading and changing

    async def visible_to(self, caller: Caller, project: str | None = None) -> list[dict[str, Any]]:
        """The budgets that a key may see, as ``service.costs.schemas.Budget``: an admin's all, others their project's.

        ``project``: only this one's.
        """
        chosen = [
            name
            for name in sorted(self._monthly)
            if project in (None, name) and (caller.may(Scope.ADMIN) or name == caller.project)
        ]
        if chosen:
            await self._ask_trainer()
        return [self._shown(name) for name in chosen]

    async def put(self, actor: Actor, project: str, monthly: float) -> dict[str, Any]:
        """Set a project's budget.

        Raises:
            Conflict: ``no_device_price``: without a price nothing is ever spent.
            NotFound: There is no such project.
        """
        if self._prices.device_hour is None:
            raise Conflict(
                "a budget needs the price of the device: set HATRACK_PRICE_DEVICE_HOUR and restart the gateway",
                code="no_device_price",
            )
        await self._read_sums()  # before: what refuses this has changed no budget
        await self._store(actor, project, monthly)
        await self._ask_trainer()
        return self._shown(project)

    async def delete(self, actor: Actor, project: str) -> dict[str, Any]:
        """Remove a project's budget. Raises NotFound if it has none."""
        if project not in self._monthly:
            raise NotFound(f"the project `{project[:100]}` has no budget", param="project")
        await self._store(actor, project, None)
        return {"object": "budget", "project": project, "deleted": True}

    async def _store(self, actor: Actor, project: str, monthly: float | None) -> None:
        def work(db: sa.Connection) -> None:
            records.set_budget(db, project, monthly)
            note(db, actor, "budget.delete" if monthly is None else "budget.set", project, {"monthly": monthly})

        await self._database.run(work)
        if monthly is None:
            self._monthly.pop(project, None)
        else:
            self._monthly[project] = monthly

    def _shown(self, project: str) -> dict[str, Any]:
        self._begin_month()
        monthly, spent = self._monthly[project], self._spent(project)
        return {
            "object": "budget",
            "project": project,
            "monthly": monthly,
            "spent": spent,
            "remaining": None if spent is None else monthly - spent,
            "exhausted": spent is not None and spent >= monthly,
            "resets_at": next_month(self._wall()),
            "runs_available": self._runs_told,
        }

    # keeping count

    def _spent(self, project: str) -> float | None:
        """What the project has spent this month; None without a price."""
        device = self._prices.device(self._engine_s.get(project, 0.0) + self._training_s.get(project, 0.0))
        return None if device is None else device + self._outside.get(project, 0.0)

    def _begin_month(self) -> None:
        now = self._wall()
        if now < self._month_ends:  # also for a clock that is set back
            return
        self._month, self._month_ends = month_of(now), next_month(now)
        self._engine_s, self._training_s, self._outside = {}, {}, {}
        self._runs_told = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the budgets, and keep what runs spend up to date while this is open."""
        await self._reload()
        self._database.resync.add(self._reload)
        ticker = asyncio.create_task(self._tick(), name="budgets")
        try:
            yield
        finally:
            await self._database.resync.remove(self._reload)
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)

    async def _reload(self) -> None:
        self._monthly = dict(await self._database.run(records.budgets))
        await self.refresh()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if self._monthly:
                await self._ask_trainer()

    async def refresh(self) -> None:
        """Read the month's sums anew."""
        await self._read_sums()
        if self._monthly:
            await self._ask_trainer()

    async def _read_sums(self) -> None:
        self._begin_month()
        await self._account.flush()
        month = self._month
        async with self._account.writing:  # what ends meanwhile is neither lost nor counted twice
            seconds = await self._database.run(partial(records.engine_seconds, start=month))
            for project, pending in self._account.pending_engine_s(month).items():
                seconds[project] = seconds.get(project, 0.0) + pending
            if month == self._month:
                self._engine_s = seconds

    async def _ask_trainer(self) -> None:
        self._begin_month()
        month = self._month
        try:
            times = await self._trainer.device_times(month, int(self._wall()) + HOUR_S)
        except HatrackError as error:
            _LOG.debug("the budgets lack the time of runs: %s", error.message)
            self._runs_told = False
            return
        trained_s: dict[str, float] = {}
        charged: dict[str, float] = {}
        for run in times.data:
            trained_s[run.project] = trained_s.get(run.project, 0.0) + run.training_s
        for charge in times.charges:
            charged[charge.project] = charged.get(charge.project, 0.0) + charge.money
        if month == self._month:
            self._training_s, self._outside, self._runs_told = trained_s, charged, True


def month_of(now: float) -> int:
    """Unix seconds of the beginning of the month (UTC)."""
    today = datetime.fromtimestamp(now, UTC)
    return int(datetime(today.year, today.month, 1, tzinfo=UTC).timestamp())


def next_month(now: float) -> int:
    """Unix seconds of the beginning of the next month (UTC)."""
    today = datetime.fromtimestamp(now, UTC)
    year, month = (today.year + 1, 1) if today.month == 12 else (today.year, today.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp())
