"""``/v1/evaluations``: from HTTP to the evaluations and back.

Who asks stands in headers of the gateway, which has authorised all that a body names (``trainer.app`` lets nobody else
in), and sends what it has found out beside the client's own body.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from adapters.protocol.runs import CreateEvaluation
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.service import Evaluations
from trainer.http import Caller, read_json
from trainer.runs.routes import Creation, add_list_route, add_report_routes, add_run_routes, created
from trainer.validation import validated


async def evaluations(request: Request) -> Evaluations:
    """The trainer's evaluations."""
    service: Evaluations = request.app.state.trainer.evaluations
    return service


router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])
Service = Annotated[Evaluations, Depends(evaluations)]


@router.post("")
async def create_evaluation(request: Request, caller: Caller, service: Service, headers: Creation) -> JSONResponse:
    """Create an evaluation."""
    sent = validated(CreateEvaluation, await read_json(request))
    return created(*await service.create(caller, sent.request, sent.context, headers.key, headers.idempotency_key))


add_list_route(router, "", evaluations)
add_run_routes(router, "/{evaluation_id}", evaluations, "get", "cancel")
add_report_routes(router, "/{evaluation_id}", evaluations, report=spec.REPORT, page=spec.PAGE)
