"""Assembles costs and budgets for the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from service.config import Settings
from service.costs.budgets import BudgetService
from service.costs.estimate import EstimateService
from service.costs.report import CostReport
from service.costs.runs import Measured, TrainerCosts
from service.costs.year import YearReport
from service.database import Database
from service.files.service import Files
from service.registry.catalog import Catalog
from service.training.config import DATABASE as TRAINER_DATABASE
from service.training.sidecar import Sidecar
from service.usage.account import UsageAccount


@dataclass(frozen=True, slots=True)
class Costs:
    """The gateway's components for costs."""

    report: CostReport
    budgets: BudgetService
    estimates: EstimateService
    year: YearReport


def assemble(
    settings: Settings, database: Database, account: UsageAccount, sidecar: Sidecar, files: Files, catalog: Catalog
) -> Costs:
    """Create the components without starting them; new runs are refused where a budget is spent."""
    database_of_runs = settings.home / TRAINER_DATABASE

    def has_trainer() -> bool:
        return sidecar.watch.state != "off" or database_of_runs.exists()

    trainer = TrainerCosts(sidecar.training.client, has_trainer)
    budgets = BudgetService(database, account, trainer, settings.prices)
    sidecar.training.check_budget = budgets.check_run
    sidecar.training.check_request = budgets.check
    measured = Measured(database, account, trainer, settings.prices)
    return Costs(
        CostReport(measured, budgets),
        budgets,
        EstimateService(sidecar.jobs, files, trainer, settings.prices),
        YearReport(measured, catalog),
    )
