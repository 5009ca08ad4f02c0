"""``/internal/costs``: what the gateway asks for its `/v1/costs`; see ``adapters.protocol.costs``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from adapters.protocol.costs import DEVICE_TIME_PATH, LAST_TRAINING_PATH
from trainer.finetune.costs import JobCosts

router = APIRouter()
MAX_TIME = 2**40
Time = Annotated[int, Query(ge=0, le=MAX_TIME)]


async def job_costs(request: Request) -> JobCosts:
    """The trainer's costs."""
    costs: JobCosts = request.app.state.trainer.costs
    return costs


Costs = Annotated[JobCosts, Depends(job_costs)]


@router.get(DEVICE_TIME_PATH)
async def device_time(costs: Costs, start: Time, end: Time) -> dict[str, Any]:
    """The device time of all projects' jobs in a period."""
    return (await costs.device_times(start, end)).model_dump(mode="json")


@router.get(LAST_TRAINING_PATH)
async def last_training(
    costs: Costs, project: Annotated[str, Query(max_length=128)], adapter: Annotated[str, Query(max_length=128)]
) -> dict[str, Any] | None:
    """The last job of an adapter that made a version; null if there is none."""
    last = await costs.last_training(project, adapter)
    return None if last is None else last.model_dump(mode="json")
