"""The trainer's routes, as clients reach them: authorised here, answered there. And the load, which workers ask for.

What of them the trainer answers is described in `service.training.openapi`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final, TypeAlias

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs
from service.admission.queue import AdmissionQueue
from service.http.body import as_model, read_object
from service.http.multipart import FRAMING_BYTES
from service.http.schema import answers
from service.training.client import CHECK_TIMEOUT_S
from service.training.evaluations import Evaluations
from service.training.forward import Forward, Streamed, headers_of, target_of
from service.training.job_schemas import Load
from service.training.jobs import JobRequest
from service.training.service import Training

MAX_JSON_BYTES: Final = 2 * 1024 * 1024
VERBS: Final = ("cancel", "pause", "resume")
METHODS: Final = ["GET", "POST", "DELETE"]
Done: TypeAlias = Callable[[], Awaitable[None]]
FORWARDED: Final = ("fine_tuning", "evaluations", "reviews", "ladders")


def training(request: Request) -> Training:
    """The way to the trainer."""
    found: Training = request.app.state.training
    return found


def evaluations(request: Request) -> Evaluations:
    """Who makes evaluations."""
    found: Evaluations = request.app.state.evaluations
    return found


router = APIRouter(prefix="/v1", tags=["training"])
Trains = Annotated[Caller, Depends(needs(Scope.TRAIN))]
MakesJobs = Annotated[Caller, Depends(needs(Scope.TRAIN, Scope.INFER, Scope.ADAPTERS))]
Judges = Annotated[Caller, Depends(needs(Scope.TRAIN, Scope.INFER))]
By = Annotated[Actor, Depends(actor)]
Way = Annotated[Training, Depends(training)]
Desk = Annotated[Evaluations, Depends(evaluations)]


@router.get("/load", responses=answers(Load))
async def load(request: Request, who: Trains) -> dict[str, Any]:
    """How many requests of callers (not of jobs) wait for the engine, and how many are in it."""
    gate: AdmissionQueue = request.app.state.gate
    callers = gate.scheduler.callers
    return {"object": "load", "waiting": callers.queued, "in_flight": callers.in_flight}


@router.post("/fine_tuning/jobs", include_in_schema=False)
async def create_job(request: Request, who: MakesJobs, by: By, way: Way) -> Response:
    """Make a fine-tuning job."""
    headers = headers_of(request, who)
    body = as_model(await read_object(request, max_bytes=MAX_JSON_BYTES), JobRequest)
    answer = await way.create_job(who, body, headers, actor=by)
    return Response(answer.body, answer.status, answer.headers)


@router.post("/evaluations", include_in_schema=False)
async def create_evaluation(request: Request, who: Judges, by: By, desk: Desk) -> Response:
    """Make an evaluation."""
    headers = headers_of(request, who)
    body = await read_object(request, max_bytes=MAX_JSON_BYTES)
    answer = await desk.create(who, body, headers, actor=by)
    return Response(answer.body, answer.status, answer.headers)


@router.post("/evaluations/{evaluation_id}/cancel", include_in_schema=False)
async def cancel_evaluation(evaluation_id: str, request: Request, who: Trains, by: By, way: Way) -> Response:
    """End an evaluation."""
    return await _json(request, who, way, done=partial(way.noted, by, "evaluation.cancel", evaluation_id))


@router.post("/fine_tuning/data_check", include_in_schema=False)
async def check_data(request: Request, who: Trains, way: Way) -> Response:
    """Look at training data without keeping it: the file is streamed to the trainer."""
    headers = headers_of(request, who) | {"content-type": request.headers.get("content-type", "")}
    body = Streamed(request, request.app.state.files.max_file_bytes + FRAMING_BYTES)
    return Forward(way.client, "POST", target_of(request), headers, body, timeout_s=CHECK_TIMEOUT_S)


@router.post("/fine_tuning/jobs/{job_id}/{verb}", include_in_schema=False)
async def change_job(job_id: str, verb: str, request: Request, who: Trains, by: By, way: Way) -> Response:
    """Cancel, pause or resume a job."""
    done = partial(way.noted, by, f"job.{verb}", job_id) if verb in VERBS else None
    return await _json(request, who, way, done=done)


async def forward(request: Request, who: Trains, way: Way) -> Response:
    """Everything else that the trainer answers."""
    return await _json(request, who, way)


for _name in FORWARDED:
    router.add_api_route(f"/{_name}", forward, methods=METHODS, name=_name, include_in_schema=False)
    router.add_api_route(
        f"/{_name}/{{rest:path}}", forward, methods=METHODS, name=f"{_name} below", include_in_schema=False
    )


async def _json(request: Request, who: Caller, way: Training, *, done: Done | None = None) -> Response:
    headers, body = headers_of(request, who), None
    target = target_of(request)
    if request.method != "GET":
        given = await read_object(request, max_bytes=MAX_JSON_BYTES)
        body = orjson.dumps(given)
        headers["content-type"] = "application/json"
    return Forward(way.client, request.method, target, headers, body, done=done)
