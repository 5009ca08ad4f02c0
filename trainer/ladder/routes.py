"""``/v1/ladders``: from HTTP to the ladders and back; the gateway has authorised all that a body names."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from adapters.protocol.runs import CreateLadder
from trainer.http import DEFAULT_LISTED, Caller, Limit, read_json
from trainer.ladder import spec
from trainer.ladder.service import Ladders
from trainer.runs.routes import Creation, add_list_route, add_report_routes, add_run_routes, created
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


add_list_route(router, "", ladders)
add_run_routes(router, "/{ladder_id}", ladders, "get", "cancel", "pause", "resume")
add_report_routes(router, "/{ladder_id}", ladders, report=spec.REPORT, page=spec.PAGE)


@router.get("/{ladder_id}/events")
async def list_events(
    ladder_id: str, caller: Caller, service: Service, limit: Limit = DEFAULT_LISTED
) -> dict[str, Any]:
    """A ladder's last events, newest first."""
    return await service.events(caller, ladder_id, limit=limit)
