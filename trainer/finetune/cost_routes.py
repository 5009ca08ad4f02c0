"""``/internal/costs``: what the gateway asks for its `/v1/costs`; see ``adapters.protocol.costs``."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.protocol.costs import DEVICE_TIME_PATH, ESTIMATE_PATH, LAST_TRAINING_PATH
from adapters.protocol.runs import CreateJob
from trainer.errors import InvalidField
from trainer.finetune.costs import JobCosts
from trainer.finetune.estimates import FILES, JobEstimates
from trainer.http import MAX_BODY_BYTES, Caller
from trainer.validation import validated

router = APIRouter()
MAX_TIME = 2**40
Time = Annotated[int, Query(ge=0, le=MAX_TIME)]


async def job_costs(request: Request) -> JobCosts:
    """The trainer's costs."""
    costs: JobCosts = request.app.state.trainer.costs
    return costs


Costs = Annotated[JobCosts, Depends(job_costs)]


async def job_estimates(request: Request) -> JobEstimates:
    """The trainer's estimates."""
    estimates: JobEstimates = request.app.state.trainer.estimates
    return estimates


@router.post(ESTIMATE_PATH)
async def estimate(
    request: Request, caller: Caller, estimates: Annotated[JobEstimates, Depends(job_estimates)]
) -> dict[str, Any]:
    """What a job would take; the form has the request and the content of its files."""
    try:
        form = await MultiPartParser(request.headers, request.stream(), max_part_size=MAX_BODY_BYTES).parse()
    except MultiPartException as error:
        raise InvalidField(f"the form cannot be read: {error.message}") from error
    try:
        sent = validated(CreateJob, json.loads(str(form.get("job", "null"))))
        files = {name: file for name in FILES if isinstance(file := form.get(name), UploadFile)}
        return (await estimates.estimate(caller, sent, files)).model_dump(mode="json")
    finally:
        await form.close()


@router.get(DEVICE_TIME_PATH)
async def device_time(costs: Costs, start: Time, end: Time) -> dict[str, Any]:
    """The device time of all projects' jobs in a period, and what endpoints outside charged."""
    return (await costs.device_times(start, end)).model_dump(mode="json")


@router.get(LAST_TRAINING_PATH)
async def last_training(
    costs: Costs, project: Annotated[str, Query(max_length=128)], adapter: Annotated[str, Query(max_length=128)]
) -> dict[str, Any] | None:
    """The last job of an adapter that made a version; null if there is none."""
    last = await costs.last_training(project, adapter)
    return None if last is None else last.model_dump(mode="json")
