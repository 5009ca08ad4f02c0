"""``/v1/evaluations``: from HTTP to the evaluations and back.

Who asks stands in headers of the gateway, which has authorised all that a body names (``trainer.app`` lets nobody else
in), and sends what it has found out beside the client's own body.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from adapters.protocol.runs import CreateEvaluation
from trainer.evaluate.evaluations.service import Evaluations
from trainer.http import DEFAULT_LISTED, After, Caller, Limit, read_json
from trainer.runs.routes import Creation, add_run_routes, created
from trainer.validation import validated

PAGE_HEADERS: Final = {
    # nothing of the page may load, run or send anything, whatever a model or a data file has put into it
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "sandbox"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "private, no-cache",
}


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


@router.get("")
async def list_evaluations(
    caller: Caller, service: Service, after: After = None, limit: Limit = DEFAULT_LISTED
) -> dict[str, Any]:
    """The project's evaluations, newest first."""
    return await service.page(caller, after=after, limit=limit)


add_run_routes(router, "/{evaluation_id}", evaluations, "get", "cancel")


@router.get("/{evaluation_id}/report")
async def get_report(evaluation_id: str, caller: Caller, service: Service) -> Response:
    """An evaluation's report as JSON."""
    return Response(await service.report(caller, evaluation_id), media_type="application/json")


@router.get("/{evaluation_id}/report.html")
async def get_report_page(evaluation_id: str, caller: Caller, service: Service) -> Response:
    """An evaluation's report as a page."""
    content = await service.report_page(caller, evaluation_id)
    return Response(content, media_type="text/html", headers=PAGE_HEADERS)
