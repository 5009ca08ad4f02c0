"""The routes ``/v1/batches``, as in OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs
from service.batches.schemas import Batch, BatchRequest
from service.batches.service import Batches
from service.errors import Conflict, DiskFull, NotFound, RateLimited, TooLarge
from service.http.body import read_json
from service.http.schema import Page, answers, takes


async def batches(request: Request) -> Batches:
    """The service that the composition root put on the app."""
    service: Batches = request.app.state.batches
    return service


router = APIRouter(prefix="/v1/batches", tags=["batches"])
CurrentCaller = Annotated[Caller, Depends(needs(Scope.INFER))]
CurrentActor = Annotated[Actor, Depends(actor)]
CurrentBatches = Annotated[Batches, Depends(batches)]


@router.post("", responses=answers(Batch, NotFound, TooLarge, RateLimited, DiskFull))
@takes(BatchRequest)
async def create_batch(
    request: Request, caller: CurrentCaller, actor: CurrentActor, service: CurrentBatches
) -> dict[str, Any]:
    """Create a batch from an uploaded file of requests; they are asked at background priority with the key's rights.

    404 `file_not_found`. 429 `too_many_batches`.
    """
    return await service.create(caller, await read_json(request, BatchRequest), actor=actor)


@router.get("", responses=answers(Page[Batch]))
async def list_batches(
    caller: CurrentCaller,
    service: CurrentBatches,
    after: Annotated[str | None, Query(max_length=64, description="The `last_id` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The project's batches, newest first; with a key with globs or filters those that it has created."""
    return await service.page(caller, after=after, limit=limit)


@router.get("/{batch_id}", responses=answers(Batch, NotFound))
async def get_batch(batch_id: str, caller: CurrentCaller, service: CurrentBatches) -> dict[str, Any]:
    """One batch."""
    return await service.show(caller, batch_id)


@router.post("/{batch_id}/cancel", responses=answers(Batch, NotFound, Conflict, DiskFull))
async def cancel_batch(
    batch_id: str, caller: CurrentCaller, actor: CurrentActor, service: CurrentBatches
) -> dict[str, Any]:
    """Cancel a batch; its answers so far become its output file. 409 `batch_final`: it has ended, or is about to."""
    return await service.cancel(caller, batch_id, actor=actor)
