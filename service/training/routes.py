"""The trainer's routes as clients see them, authorised here and forwarded, and ``GET /v1/load`` for workers.

The forwarded routes are described in `service.training.openapi`.
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
from service.http.body import read_object
from service.http.multipart import FRAMING_BYTES
from service.http.schema import answers
from service.training.client import CHECK_TIMEOUT_S
from service.training.evaluations import EvaluationService
from service.training.forward import Forward, Streamed, headers_of, target_of
from service.training.job_schemas import Load
from service.training.jobs import JobService
from service.training.ladders import LadderService
from service.training.service import Training

MAX_JSON_BYTES: Final = 2 * 1024 * 1024
ACTIONS: Final = ("cancel", "pause", "resume")
METHODS: Final = ["GET", "POST", "DELETE"]
OnSuccess: TypeAlias = Callable[[], Awaitable[None]]
FORWARDED: Final = ("fine_tuning", "evaluations", "reviews", "ladders", "teachers")
TEACHER_TIMEOUT_S: Final = 600.0


def training(request: Request) -> Training:
    """The service that the composition root put on the app."""
    service: Training = request.app.state.training
    return service


def jobs(request: Request) -> JobService:
    """The service that the composition root put on the app."""
    service: JobService = request.app.state.jobs
    return service


def evaluations(request: Request) -> EvaluationService:
    """The service that the composition root put on the app."""
    service: EvaluationService = request.app.state.evaluations
    return service


def ladders(request: Request) -> LadderService:
    """The service that the composition root put on the app."""
    service: LadderService = request.app.state.ladders
    return service


router = APIRouter(prefix="/v1", tags=["training"])
TrainCaller = Annotated[Caller, Depends(needs(Scope.TRAIN))]
JobCaller = Annotated[Caller, Depends(needs(Scope.TRAIN, Scope.INFER, Scope.ADAPTERS))]
EvaluationCaller = Annotated[Caller, Depends(needs(Scope.TRAIN, Scope.INFER))]
CurrentActor = Annotated[Actor, Depends(actor)]
TrainerGateway = Annotated[Training, Depends(training)]
CurrentJobs = Annotated[JobService, Depends(jobs)]
CurrentEvaluations = Annotated[EvaluationService, Depends(evaluations)]
CurrentLadders = Annotated[LadderService, Depends(ladders)]


@router.get("/load", responses=answers(Load))
async def load(request: Request, caller: TrainCaller) -> dict[str, Any]:
    """How many requests from callers (jobs excluded) are queued for the engine, and how many are in it."""
    waiting, in_flight = request.app.state.callers_load()
    return {"object": "load", "waiting": waiting, "in_flight": in_flight}


@router.post("/fine_tuning/jobs", include_in_schema=False)
async def create_job(request: Request, caller: JobCaller, actor: CurrentActor, service: CurrentJobs) -> Response:
    """Create a fine-tuning job."""
    return await _create(request, caller, actor, service)


@router.post("/evaluations", include_in_schema=False)
async def create_evaluation(
    request: Request, caller: EvaluationCaller, actor: CurrentActor, service: CurrentEvaluations
) -> Response:
    """Create an evaluation."""
    return await _create(request, caller, actor, service)


@router.post("/evaluations/{evaluation_id}/cancel", include_in_schema=False)
async def cancel_evaluation(
    evaluation_id: str, request: Request, caller: TrainCaller, actor: CurrentActor, trainer: TrainerGateway
) -> Response:
    """Cancel an evaluation."""
    return await _json(request, caller, trainer, done=_audited(trainer, actor, "evaluation", evaluation_id, "cancel"))


@router.post("/ladders", include_in_schema=False)
async def create_ladder(request: Request, caller: JobCaller, actor: CurrentActor, service: CurrentLadders) -> Response:
    """Create a ladder."""
    return await _create(request, caller, actor, service)


@router.post("/ladders/{ladder_id}/{verb}", include_in_schema=False)
async def change_ladder(
    ladder_id: str, verb: str, request: Request, caller: TrainCaller, actor: CurrentActor, trainer: TrainerGateway
) -> Response:
    """Cancel, pause or resume a ladder, and with it its child runs."""
    return await _json(request, caller, trainer, done=_audited(trainer, actor, "ladder", ladder_id, verb))


@router.post("/fine_tuning/data_check", include_in_schema=False)
async def check_data(request: Request, caller: TrainCaller, trainer: TrainerGateway) -> Response:
    """Check training data without storing it: the file is streamed to the trainer."""
    headers = headers_of(request, caller) | {"content-type": request.headers.get("content-type", "")}
    body = Streamed(request, request.app.state.files.max_file_bytes + FRAMING_BYTES)
    return Forward(trainer.client, "POST", target_of(request), headers, body, timeout_s=CHECK_TIMEOUT_S)


@router.post("/fine_tuning/jobs/{job_id}/{verb}", include_in_schema=False)
async def change_job(
    job_id: str, verb: str, request: Request, caller: TrainCaller, actor: CurrentActor, trainer: TrainerGateway
) -> Response:
    """Cancel, pause or resume a job."""
    return await _json(request, caller, trainer, done=_audited(trainer, actor, "job", job_id, verb))


@router.post("/teachers/{name}", include_in_schema=False)
async def ask_teacher(name: str, request: Request, caller: TrainCaller, trainer: TrainerGateway) -> Response:
    """Ask a teacher, which may take as long as a long answer takes; its price counts for the project's budget."""
    trainer.check_request(caller)
    headers = headers_of(request, caller) | {"content-type": "application/json"}
    body = orjson.dumps(await read_object(request, max_bytes=MAX_JSON_BYTES))
    return Forward(trainer.client, "POST", target_of(request), headers, body, timeout_s=TEACHER_TIMEOUT_S)


async def forward(request: Request, caller: TrainCaller, trainer: TrainerGateway) -> Response:
    """Forward any other request to the trainer."""
    return await _json(request, caller, trainer)


for _name in FORWARDED:
    router.add_api_route(f"/{_name}", forward, methods=METHODS, name=_name, include_in_schema=False)
    router.add_api_route(
        f"/{_name}/{{rest:path}}", forward, methods=METHODS, name=f"{_name} below", include_in_schema=False
    )


async def _create(
    request: Request, caller: Caller, actor: Actor, service: JobService | EvaluationService | LadderService
) -> Response:
    headers = headers_of(request, caller)
    body = await read_object(request, max_bytes=MAX_JSON_BYTES)
    answer = await service.create(caller, body, headers, actor=actor)
    return Response(answer.body, answer.status, answer.headers)


def _audited(trainer: Training, actor: Actor, noun: str, run_id: str, verb: str) -> OnSuccess | None:
    """Records a change of a run in the audit; None if the trainer has no such verb and will refuse it."""
    return partial(trainer.record_audit, actor, f"{noun}.{verb}", run_id) if verb in ACTIONS else None


async def _json(request: Request, caller: Caller, trainer: Training, *, done: OnSuccess | None = None) -> Response:
    headers, body = headers_of(request, caller), None
    target = target_of(request)
    if request.method != "GET":
        body = orjson.dumps(await read_object(request, max_bytes=MAX_JSON_BYTES))
        headers["content-type"] = "application/json"
    return Forward(trainer.client, request.method, target, headers, body, done=done)
