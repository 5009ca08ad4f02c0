"""``/v1/costs`` and ``/v1/budgets``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, caller, needs
from service.costs.budgets import BudgetService
from service.costs.estimate import EstimateService
from service.costs.report import CostReport
from service.costs.schemas import Budget, CostPage, JobEstimate, YearAnswer
from service.costs.year import YearQuery, YearReport
from service.errors import BadGateway, Conflict, NotFound, RateLimited, Timeout, TooLarge, TrainerUnavailable
from service.http.body import as_model, read_json, read_object
from service.http.schema import ApiModel, answers, takes
from service.training.forward import headers_of
from service.training.job_request import JobRequest
from service.training.request_schemas import JobBody
from service.training.routes import MAX_JSON_BYTES, JobCaller
from service.training.service import Answer
from service.usage.routes import MAX_NAME_CHARS, Asked

MAX_BUDGET = 1e12
MAX_PER_DAY = 1e9
MAX_PROMPT = 10_000_000

router = APIRouter(prefix="/v1", tags=["costs"])
CurrentCaller = Annotated[Caller, Depends(caller)]
Admin = Annotated[Caller, Depends(needs(Scope.ADMIN))]
CurrentActor = Annotated[Actor, Depends(actor)]
Project = Annotated[str, Path(max_length=64)]


class BudgetRequest(BaseModel):
    """Body of ``PUT /v1/budgets/{project}``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    monthly: float = Field(
        gt=0, le=MAX_BUDGET, allow_inf_nan=False, description="In the operator's currency, for a calendar month (UTC)."
    )


class BudgetList(ApiModel):
    """The budgets that the key may see."""

    object: Literal["list"]
    data: list[Budget]


class DeletedBudget(ApiModel):
    """A removed budget."""

    object: Literal["budget"]
    project: str
    deleted: Literal[True]


async def cost_report(request: Request) -> CostReport:
    """The report service that the composition root put on the app."""
    report: CostReport = request.app.state.cost_report
    return report


async def budgets(request: Request) -> BudgetService:
    """The service that the composition root put on the app."""
    service: BudgetService = request.app.state.budgets
    return service


async def estimates(request: Request) -> EstimateService:
    """The service that the composition root put on the app."""
    service: EstimateService = request.app.state.estimates
    return service


async def year_report(request: Request) -> YearReport:
    """The service that the composition root put on the app."""
    service: YearReport = request.app.state.year_report
    return service


Costs = Annotated[CostReport, Depends(cost_report)]
Budgets = Annotated[BudgetService, Depends(budgets)]


@router.get("/costs", responses=answers(CostPage))
async def get_costs(who: CurrentCaller, report: Costs, query: Asked) -> dict[str, Any]:
    """Device time and money of the last 24 hours, or from ``start`` to ``end``, grouped as in `/v1/usage`; left out,
    ``group_by`` is `adapter`.

    A key that is no admin's sees its own requests and runs. What runs ask counts for the key that created them.
    """
    return await report.read(who, query if query.by is not None else replace(query, by=("adapter",)))


@router.get("/costs/year", responses=answers(YearAnswer, NotFound))
async def get_year(
    who: CurrentCaller,
    service: Annotated[YearReport, Depends(year_report)],
    adapter: Annotated[str, Query(max_length=MAX_NAME_CHARS)],
    requests_per_day: Annotated[float | None, Query(ge=0, le=MAX_PER_DAY, allow_inf_nan=False)] = None,
    prompt_tokens: Annotated[int | None, Query(ge=0, le=MAX_PROMPT)] = None,
) -> dict[str, Any]:
    """What each version of an adapter of the caller's project costs in a year: requests, retraining, judging, people.

    The traffic is that of the last 30 days, scaled, unless ``requests_per_day`` is given. ``prompt_tokens`` are those
    that a long prompt would add to each request, for comparison.
    """
    return await service.read(who, YearQuery(adapter, requests_per_day, prompt_tokens))


@router.post(
    "/fine_tuning/jobs/estimate",
    responses=answers(JobEstimate, NotFound, Conflict, TooLarge, RateLimited, BadGateway, TrainerUnavailable, Timeout),
    response_model=None,
)
@takes(JobBody)
async def estimate_job(
    request: Request, caller: JobCaller, service: Annotated[EstimateService, Depends(estimates)]
) -> dict[str, Any] | Response:
    """What the job with this body will take and cost; needs the same scopes as creating it, and creates nothing.

    The data are checked and the recipe is chosen as for the job; the speed is measured, from past jobs or by a few
    steps made now, which may take a minute.
    """
    headers = headers_of(request, caller)
    body = as_model(await read_object(request, max_bytes=MAX_JSON_BYTES), JobRequest)
    estimate = await service.estimate(caller, body, headers)
    return Response(estimate.body, estimate.status, estimate.headers) if isinstance(estimate, Answer) else estimate


@router.get("/budgets", responses=answers(BudgetList))
async def list_budgets(who: CurrentCaller, service: Budgets) -> dict[str, Any]:
    """The projects' budgets, and what is left of them this month; a key that is no admin's sees its project's."""
    return {"object": "list", "data": await service.visible_to(who)}


@router.put("/budgets/{project}", responses=answers(Budget, Conflict, NotFound))
@takes(BudgetRequest)
async def put_budget(
    project: Project, request: Request, caller: Admin, actor: CurrentActor, service: Budgets
) -> dict[str, Any]:
    """Set a project's budget for a calendar month. What was spent this month counts."""
    body = await read_json(request, BudgetRequest)
    return await service.put(actor, project, body.monthly)


@router.delete("/budgets/{project}", responses=answers(DeletedBudget, NotFound))
async def delete_budget(project: Project, caller: Admin, actor: CurrentActor, service: Budgets) -> dict[str, Any]:
    """Remove a project's budget."""
    return await service.delete(actor, project)
