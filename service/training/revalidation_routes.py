"""``POST /v1/revalidations`` and ``POST /v1/adapters/{name}/versions/{number}/revalidate``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs
from service.errors import Conflict, DiskFull, NotFound, RateLimited, TooLarge
from service.http.body import MAX_JSON_BYTES, as_model, read_object
from service.http.schema import takes
from service.registry.state import adapter_not_found
from service.training.evaluation_schemas import Evaluation, StartedRevalidations
from service.training.forward import headers_of
from service.training.openapi import trainers
from service.training.revalidation import Revalidations


class RevalidateBody(BaseModel):
    """Optional body of ``POST /v1/revalidations``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    all: bool = False


class NoBody(BaseModel):
    """An empty or missing body."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def revalidations(request: Request) -> Revalidations:
    """The service that the composition root put on the app."""
    service: Revalidations = request.app.state.revalidations
    return service


router = APIRouter(prefix="/v1", tags=["revalidation"])
CurrentCaller = Annotated[Caller, Depends(needs(Scope.TRAIN, Scope.INFER, Scope.ADAPTERS))]
CurrentActor = Annotated[Actor, Depends(actor)]
RevalidationService = Annotated[Revalidations, Depends(revalidations)]


@router.post("/revalidations", responses=trainers(StartedRevalidations, TooLarge))
@takes(RevalidateBody, required=False)
async def revalidate_due(
    request: Request, caller: CurrentCaller, actor: CurrentActor, service: RevalidationService
) -> dict[str, Any]:
    """Revalidate the project's due versions; with ``all``, every version that has a verdict."""
    body = as_model(await read_object(request, max_bytes=MAX_JSON_BYTES), RevalidateBody)
    return await service.revalidate_due(caller, headers_of(request, caller), every=body.all, actor=actor)


@router.post(
    "/adapters/{name}/versions/{number}/revalidate",
    responses=trainers(Evaluation, NotFound, Conflict, TooLarge, RateLimited, DiskFull),
)
@takes(NoBody, required=False)
async def revalidate(
    name: str,
    number: str,
    request: Request,
    caller: CurrentCaller,
    actor: CurrentActor,
    service: RevalidationService,
) -> Response:
    """Revalidate one version; returns the new evaluation, or the one in progress."""
    if not caller.may_use(name):
        raise adapter_not_found(name)
    as_model(await read_object(request, max_bytes=MAX_JSON_BYTES), NoBody)
    answer = await service.revalidate(caller, name, number, headers_of(request, caller), actor=actor)
    return Response(answer.body, answer.status, answer.headers)
