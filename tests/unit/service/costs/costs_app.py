"""Costs and budgets over a real database, with real keys, and a trainer that says what a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI

from adapters.costs import Prices
from adapters.protocol.costs import DeviceTimes, EndpointCharge, LastTraining, RunTime
from service.access.audit import ADMIN_ID
from service.access.authentication import Authenticator, KeyEntry
from service.access.caller import Caller, Scope
from service.access.keys import make_key
from service.access.records import KeyDraft
from service.access.records import add as add_key
from service.costs.budgets import BudgetService
from service.costs.report import CostReport
from service.costs.routes import router
from service.costs.runs import Measured, TrainerCosts
from service.costs.year import YearReport
from service.database import Database
from service.engine.busy import EngineClock
from service.error_handlers import RequestIds, add_error_handlers
from service.errors import TrainerUnavailable
from service.http.schema import add_routes
from service.http.stream import TokenUsage
from service.registry.catalog import (
    NO_SETTINGS,
    AdapterEntry,
    Catalog,
    CatalogSnapshot,
    Servable,
    Target,
    VersionEntry,
)
from service.registry.split import AliasTarget
from service.telemetry.record import Record
from service.usage.account import UsageAccount
from service.usage.engine_time import EngineMeter
from tests.unit.service.access.clock import Clock

ADMIN = "the-admin-key-of-these-tests"
PRICES = Prices(device_hour=3600.0, hosted_input=2.0, hosted_output=8.0, person_hour=60.0, currency="EUR")
"""A second of the device costs 1."""
PEOPLE = (("key_a", "acme"), ("key_b", "acme"), ("key_c", "bolt"))


class StandInTrainer:
    """Tells the times of runs; or is not reachable."""

    def __init__(self) -> None:
        self.times: list[RunTime] = []
        self.charges: list[EndpointCharge] = []
        self.last: LastTraining | None = None
        self.reachable = True

    async def device_times(self, start: int, end: int) -> DeviceTimes:
        self._answer()
        charges = tuple(charge for charge in self.charges if start <= charge.hour < end)
        return DeviceTimes(data=tuple(run for run in self.times if start <= run.hour < end), charges=charges)

    async def last_training(self, project: str, adapter: str) -> LastTraining | None:
        self._answer()
        return self.last

    def _answer(self) -> None:
        if not self.reachable:
            raise TrainerUnavailable("the trainer is not reachable")

    def ran(self, hour: int, seconds: float, *, key: str = "key_a", project: str = "acme", **more: Any) -> None:
        run = {"run": f"ftjob-{len(self.times)}", "adapter": "voice", "version": None, "judging_s": 0.0} | more
        self.times.append(RunTime(project=project, key_id=key, hour=hour, training_s=seconds, **run))

    def charged(self, hour: int, money: float, *, key: str = "key_a", project: str = "acme", **more: Any) -> None:
        """Three answers of an endpoint outside, of 10 tokens in and 5 out each."""
        values = {"run": "eval-1", "adapter": "voice", "version": None, "endpoint": "big", "unpriced": 0} | more
        tokens = {"requests": 3, "prompt_tokens": 30, "completion_tokens": 15}
        self.charges.append(EndpointCharge(project=project, key_id=key, hour=hour, money=money, **tokens, **values))


class CostsApp:
    """The routes of costs, a clock that is set by hand, an admin's key and those of two projects."""

    def __init__(self, home: Path, prices: Prices = PRICES) -> None:
        self.clock = Clock()
        self.trainer = StandInTrainer()
        self.database = Database(home / "hatrack.db")
        self.engine = EngineClock(self.clock.monotonic)
        meter = EngineMeter(self.engine, lambda: True, wall=self.clock.wall, monotonic=self.clock.monotonic)
        self.account = UsageAccount(self.database, flush_s=3600, meter=meter, wall=self.clock.wall)
        trainer = cast(TrainerCosts, self.trainer)
        self.budgets = BudgetService(self.database, self.account, trainer, prices, wall=self.clock.wall)
        authenticator = Authenticator(ADMIN)
        self.callers = {"admin": Caller(ADMIN_ID, "default", frozenset({Scope.ADMIN}))}
        self.keys = {"admin": ADMIN}
        for key_id, project in PEOPLE:
            self.keys[key_id] = make_key()
            self.callers[key_id] = Caller(key_id, project, frozenset({Scope.INFER}))
            authenticator.put(authenticator.hmac(self.keys[key_id]), KeyEntry(self.callers[key_id]))
        api = FastAPI()
        api.state.authenticator = authenticator
        api.state.budgets = self.budgets
        self.catalog = Catalog("smol", 0)
        measured = Measured(self.database, self.account, trainer, prices, self.clock.wall)
        api.state.year_report = YearReport(measured, self.catalog)
        api.state.cost_report = CostReport(measured, self.budgets)
        add_routes(api, router)
        add_error_handlers(api)
        self.app = RequestIds(api)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[CostsApp]:
        await self.database.open()

        def add_keys(db: Any) -> None:
            for key_id, project in PEOPLE:
                add_key(db, key_id, key_id.encode(), "hint", KeyDraft(key_id.upper(), project, frozenset()))
            run = KeyDraft("training voice", "acme", frozenset(), background=True, parent_key_id="key_a")
            add_key(db, "key_run", b"run", "hint", run)

        await self.database.run(add_keys)
        self.callers["key_run"] = Caller("key_run", "acme", frozenset({Scope.INFER}), background=True)
        async with self.budgets.running():
            yield self
        await self.database.close()

    def publish(self, project: str, *weights: bool, live: AliasTarget | None = None) -> None:
        """An adapter `voice` with versions that have weights or not; the last one is live, or what ``live`` says."""
        versions = {
            number: VersionEntry(number, "0" * 64 if has_weights else None, NO_SETTINGS, Servable.OK, 0)
            for number, has_weights in enumerate(weights, start=1)
        }
        entry = AdapterEntry("voice", 0, versions, {"live": len(versions) if live is None else live})
        self.catalog.replace(CatalogSnapshot({(project, "voice"): entry}))

    def ask(self, key_id: str, seconds: float, adapter: str = "voice", version: int = 1, tokens: int = 10) -> None:
        """A request of 10 tokens in and 5 out that has the engine to itself for that long."""
        entered = self.engine.enter()
        self.clock.pass_s(seconds)
        target = Target(adapter, "0" * 64, adapter, version)
        record = Record("r", "/v1/x", self.callers[key_id], target, usage=TokenUsage(tokens, 5, 0))
        record.engine_s = self.engine.leave(entered)
        self.account(record)
        self.budgets(record)

    async def request(self, method: str, path: str, key_id: str = "admin", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[key_id]}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers, **more)

    async def costs(self, key_id: str = "admin", **params: Any) -> dict[str, Any]:
        answer = await self.request("GET", "/v1/costs", key_id, params=params)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page
