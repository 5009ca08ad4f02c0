"""``/v1/ladders``: from HTTP to the ladders and back; the gateway has authorised all that a body names."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from adapters.protocol.runs import CreateLadder
from trainer.evaluate.evaluations.routes import PAGE_HEADERS
from trainer.http import DEFAULT_LISTED, After, Caller, Limit, read_json
from trainer.ladder.service import Ladders
from trainer.runs.routes import Creation, add_run_routes, created
from trainer.validation import validated


async def ladders(request: Request) -> Ladders:
    """The trainer's ladders."""
    service: Ladders = request.app.state.trainer.ladders
    return service


router = APIRouter(prefix="/v1/ladders", tags=["ladders"])
Service = Annotated[Ladders, Depends(ladders)]


@router.post("")
async def create_ladder(request: Request, caller: Caller, service: Service, headers: Creation) -> JSONResponse:
    """Create a ladder."""
    sent = validated(CreateLadder, await read_json(request))
    return created(*await service.create(caller, sent.request, sent.context, headers.key, headers.idempotency_key))


@router.get("")
async def list_ladders(
    caller: Caller, service: Service, after: After = None, limit: Limit = DEFAULT_LISTED
) -> dict[str, Any]:
    """The project's ladders, newest first."""
    return await service.page(caller, after=after, limit=limit)


add_run_routes(router, "/{ladder_id}", ladders, "get", "cancel", "pause", "resume")


@router.get("/{ladder_id}/events")
async def list_events(
    ladder_id: str, caller: Caller, service: Service, limit: Limit = DEFAULT_LISTED
) -> dict[str, Any]:
    """A ladder's last events, newest first."""
    return await service.events(caller, ladder_id, limit=limit)


@router.get("/{ladder_id}/report")
async def get_report(ladder_id: str, caller: Caller, service: Service) -> Response:
    """A ladder's report as JSON."""
    return Response(await service.report(caller, ladder_id), media_type="application/json")


@router.get("/{ladder_id}/report.html")
async def get_report_page(ladder_id: str, caller: Caller, service: Service) -> Response:
    """A ladder's report as a page."""
    content = await service.report_page(caller, ladder_id)
    return Response(content, media_type="text/html", headers=PAGE_HEADERS)
