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
    """Body of ``POST /v1/revalidations``; may be left out."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    all: bool = False


class NoBody(BaseModel):
    """A body that holds nothing, or none."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def revalidations(request: Request) -> Revalidations:
    """Who judges again."""
    found: Revalidations = request.app.state.revalidations
    return found


router = APIRouter(prefix="/v1", tags=["revalidation"])
Who = Annotated[Caller, Depends(needs(Scope.TRAIN, Scope.INFER, Scope.ADAPTERS))]
By = Annotated[Actor, Depends(actor)]
Again = Annotated[Revalidations, Depends(revalidations)]


@router.post("/revalidations", responses=trainers(StartedRevalidations, TooLarge))
@takes(RevalidateBody, required=False)
async def revalidate_due(request: Request, who: Who, by: By, again: Again) -> dict[str, Any]:
    """Judge again what is due of the project; with ``all``, all that was ever judged."""
    body = as_model(await read_object(request, max_bytes=MAX_JSON_BYTES), RevalidateBody)
    return await again.due(who, headers_of(request, who), every=body.all, actor=by)


@router.post(
    "/adapters/{name}/versions/{number}/revalidate",
    responses=trainers(Evaluation, NotFound, Conflict, TooLarge, RateLimited, DiskFull),
)
@takes(NoBody, required=False)
async def revalidate(name: str, number: str, request: Request, who: Who, by: By, again: Again) -> Response:
    """Judge one version again: the evaluation, perhaps one that is under way."""
    if not who.may_use(name):
        raise adapter_not_found(name)
    as_model(await read_object(request, max_bytes=MAX_JSON_BYTES), NoBody)
    answer = await again.one(who, name, number, headers_of(request, who), actor=by)
    return Response(answer.body, answer.status, answer.headers)
