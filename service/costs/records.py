"""The SQL of costs: the engine's time of requests, told apart by who asked, and the projects' budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from service.access.records import require_project
from service.access.tables import keys, projects
from service.usage import records as usage_records
from service.usage.records import Selection, added, usage

_with_keys: Final = usage.outerjoin(keys, keys.c.id == usage.c.key_id)
_by_run: Final = sa.func.coalesce(keys.c.background, sa.false())
"""A run's own key made the request: it was asked to judge."""
_creator: Final[sa.ColumnElement[str]] = sa.func.coalesce(keys.c.parent_key_id, usage.c.key_id)
"""What a run asks is on the bill of the key that created it."""
_serving: Final = sa.case((_by_run, 0.0), else_=usage.c.engine_s)
_evaluating: Final = sa.case((_by_run, usage.c.engine_s), else_=0.0)
_embedded: Final = sa.and_(usage.c.engine_s == 0, usage.c.completion_tokens == 0)
"""The row is the embedder's: tokens were read, and the engine did nothing."""
_generating: Final = sa.case((_embedded, 0), else_=usage.c.prompt_tokens)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Callers' requests to one version of an adapter, added up.

    ``first_hour`` is Unix seconds; ``measured_requests`` are those in hours in which the engine's time was measured.
    """

    version: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    engine_s: float
    measured_requests: int
    first_hour: int


def select(db: sa.Connection, selection: Selection) -> list[dict[str, Any]]:
    """Rows of requests, tokens and engine time (s), by the dimensions of the selection; the key is the creator's.

    ``generating_tokens`` are the prompt tokens without the embedder's.
    """
    sums = [added(usage.c[name], name) for name in ("requests", "prompt_tokens", "completion_tokens")]
    sums += [added(_generating, "generating_tokens"), added(_serving, "serving"), added(_evaluating, "evaluating")]
    return usage_records.select(db, selection, sums, _with_keys, _creator)


def add_key_names(db: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Write each row's ``key_name``."""
    names = usage_records.key_names(db, {row["key"] for row in rows})
    for row in rows:
        row["key_name"] = names.get(row["key"], row["key"] if row["key"] == "admin" else None)


def engine_seconds(db: sa.Connection, start: int) -> dict[str, float]:
    """The engine time of each project's requests in the hours since ``start``, s."""
    query = sa.select(usage.c.project, sa.func.sum(usage.c.engine_s)).where(usage.c.hour >= start)
    return {project: float(seconds) for project, seconds in db.execute(query.group_by(usage.c.project))}


def engine_seconds_of_key(db: sa.Connection, key_id: str) -> float:
    """The engine time of all requests of one key, such as a run's, s."""
    return float(db.scalar(sa.select(added(usage.c.engine_s, "seconds")).where(usage.c.key_id == key_id)) or 0.0)


def traffic(db: sa.Connection, selection: Selection, measured_since: int) -> list[Traffic]:
    """Callers' requests to each version of the selection's adapter, by version."""
    measured = sa.case((usage.c.hour >= measured_since, usage.c.requests), else_=0)
    names = ("requests", "prompt_tokens", "completion_tokens", "engine_s")
    query = (
        sa.select(
            usage.c.version,
            *(added(usage.c[name], name) for name in names),
            added(measured, "measured_requests"),
            sa.func.min(usage.c.hour).label("first_hour"),
        )
        .select_from(_with_keys)
        .where(usage.c.project == selection.project, usage.c.adapter == selection.adapter, sa.not_(_by_run))
        .where(usage.c.hour >= selection.start, usage.c.hour < selection.end)
        .group_by(usage.c.version)
        .order_by(usage.c.version)
    )
    if selection.key is not None:
        query = query.where(_creator == selection.key)
    return [Traffic(**row) for row in db.execute(query).mappings()]


def budgets(db: sa.Connection) -> Mapping[str, float]:
    """The monthly budget of each project that has one, in the operator's currency."""
    chosen = sa.select(projects.c.id, projects.c.monthly_budget).where(projects.c.monthly_budget.is_not(None))
    return {row.id: float(row.monthly_budget) for row in db.execute(chosen.order_by(projects.c.id))}


def set_budget(db: sa.Connection, project: str, monthly: float | None) -> None:
    """Set or remove a project's budget. Raises NotFound if there is no such project."""
    require_project(db, project)
    db.execute(projects.update().where(projects.c.id == project).values(monthly_budget=monthly))
