"""``/v1/adapters``: from HTTP to the registry and back, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from adapters.errors import AdapterError
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs
from service.errors import (
    AdapterNotFinite,
    BadGateway,
    BadRequest,
    Conflict,
    DiskFull,
    EngineUnavailable,
    Internal,
    NotFound,
    RateLimited,
    Timeout,
    TooLarge,
    Unavailable,
    Unprocessable,
    WrongMediaType,
    to_http,
)
from service.http.body import as_model, read_json, read_object
from service.http.download import RANGE_ANSWERS, Download
from service.http.schema import Page, answers, takes
from service.registry.revalidation import RevalidationState
from service.registry.schemas import (
    Adapter,
    AdapterAlias,
    AdapterConfig,
    AdapterPin,
    AdapterUpload,
    AdapterVersion,
    AliasRequest,
    DeletedAlias,
    RecordedVerdict,
    VerdictRequest,
)
from service.registry.service import Registry
from service.registry.state import adapter_not_found
from service.registry.upload import receive, require_name_allowed
from service.registry.verdicts import MAX_BODY_BYTES

ENGINE_ERRORS: Final = (RateLimited, BadGateway, Unavailable, EngineUnavailable, Timeout)
"""Of a proof, which the engine is asked for."""
LOADING_ERRORS: Final = (*ENGINE_ERRORS, Internal, AdapterNotFinite)
"""Of loading an adapter in the engine."""
DELETED: Final = answers(None, NotFound, Unprocessable, DiskFull, status=204, description="Deleted.")


def registry(request: Request) -> Registry:
    found: Registry = request.app.state.registry
    return found


router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
Who = Annotated[Caller, Depends(needs(Scope.ADAPTERS))]
By = Annotated[Actor, Depends(actor)]
CurrentRegistry = Annotated[Registry, Depends(registry)]
After = Annotated[str | None, Query(max_length=64, description="The `last_id` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100)]
Force = Annotated[bool, Query(description="Also where aliases point there: they are deleted, too.")]
InState = Annotated[
    RevalidationState | None,
    Query(
        description="Only versions whose verdict still holds (`fresh`), that are `due` for another, or have `failed`."
    ),
]


async def allowed(name: str, who: Who) -> str:
    """The path's name, which the key's globs must match: else there is no such adapter for it. Raises NotFound."""
    if not who.may_use(name):
        raise adapter_not_found(name)
    return name


Name = Annotated[str, Depends(allowed)]


@router.post(
    "",
    status_code=201,
    responses=answers(AdapterVersion, description="The version was known already, and is ready.")
    | answers(
        AdapterVersion,
        *(NotFound, TooLarge, WrongMediaType, Unprocessable, *LOADING_ERRORS, DiskFull),
        status=201,
        description="The version is new, and is ready.",
    )
    | answers(AdapterVersion, status=202, description="With `wait=false`: the version is being proven."),
)
@takes(AdapterUpload, media_type="multipart/form-data")
async def push(
    request: Request,
    who: Who,
    by: By,
    registry: CurrentRegistry,
    wait: Annotated[bool, Query(description="Answer once the version is proven; else at once.")] = True,
) -> JSONResponse:
    """Upload a version, and prove that the engine answers with it.

    422: the upload was received and cannot be served; `code` says what is wrong with it, or what the engine did not
    show of it. 429 `too_many_proving`: too many versions wait for their proof.
    """
    try:
        pushed = await registry.push(
            who,
            lambda write: receive(
                request.headers,
                request.stream(),
                write,
                max_weights=registry.max_weights,
                check_name=partial(require_name_allowed, who),
            ),
            wait=wait,
            actor=by,
        )
    except ClientDisconnect:
        raise BadRequest("the client left in the middle of its upload", code="client_disconnected") from None
    except AdapterError as error:
        raise to_http(error) from error
    where = f"/v1/adapters/{pushed.version['adapter']}/versions/{pushed.version['version']}"
    return JSONResponse(pushed.version, status_code=pushed.status, headers={"location": where})


@router.get("", responses=answers(Page[Adapter]))
async def list_adapters(
    who: Who, registry: CurrentRegistry, after: After = None, limit: Limit = 20, revalidation: InState = None
) -> dict[str, Any]:
    """The project's adapters, oldest first; those with versions in a state of revalidation, where one is given."""
    return await registry.adapters(who, after, limit, revalidation)


@router.get("/{name}", responses=answers(Adapter, NotFound))
async def get_adapter(name: Name, who: Who, registry: CurrentRegistry, revalidation: InState = None) -> dict[str, Any]:
    """An adapter with its versions (those in a state of revalidation, where one is given) and aliases."""
    return await registry.adapter(who.project, name, revalidation)


@router.delete("/{name}", status_code=204, responses=DELETED)
async def delete_adapter(name: Name, who: Who, by: By, registry: CurrentRegistry, force: Force = False) -> Response:
    """Delete an adapter and all its versions. 422 `version_in_use`: an alias points there."""
    await registry.delete_adapter(who.project, name, force=force, actor=by)
    return Response(status_code=204)


@router.get("/{name}/versions/{number}", responses=answers(AdapterVersion, NotFound))
async def get_version(name: Name, number: str, who: Who, registry: CurrentRegistry) -> dict[str, Any]:
    """One version, also a rejected one."""
    return await registry.version(who.project, name, number)


@router.delete("/{name}/versions/{number}", status_code=204, responses=DELETED)
async def delete_version(
    name: Name, number: str, who: Who, by: By, registry: CurrentRegistry, force: Force = False
) -> Response:
    """Delete one version. 422 `version_in_use`: an alias points there."""
    await registry.delete_version(who.project, name, number, force=force, actor=by)
    return Response(status_code=204)


@router.post(
    "/{name}/versions/{number}/prove",
    responses=answers(AdapterVersion, NotFound, Conflict, Unprocessable, *ENGINE_ERRORS, DiskFull),
)
async def prove_version(name: Name, number: str, who: Who, by: By, registry: CurrentRegistry) -> dict[str, Any]:
    """Prove a version again: a rejected one that passes becomes ready, a corrupt one can serve again.

    409 `version_not_ready`: it is being proven; `version_other_base`, `version_damaged`: it cannot be.
    422: what the engine did not show of it.
    """
    try:
        return await registry.prove(who.project, name, number, actor=by)
    except AdapterError as error:
        raise to_http(error) from error


@router.post(
    "/{name}/versions/{number}/verdicts",
    status_code=201,
    responses=answers(RecordedVerdict, NotFound, Conflict, TooLarge, DiskFull, status=201),
)
@takes(VerdictRequest)
async def record_verdict(
    name: Name, number: str, request: Request, who: Who, by: By, registry: CurrentRegistry
) -> JSONResponse:
    """Write down what an evaluation found of a version; for jobs and admins (403 `job_key_needed`).

    404 `file_not_found`: a file that it names is not the project's. 409 `version_not_ready`, `too_many_verdicts`.
    """
    body = as_model(await read_object(request, max_bytes=MAX_BODY_BYTES), VerdictRequest)
    return JSONResponse(await registry.verdicts.record(who, name, number, body, actor=by), status_code=201)


@router.get("/{name}/versions/{number}/verdicts", responses=answers(Page[RecordedVerdict], NotFound))
async def list_verdicts(
    name: Name, number: str, who: Who, registry: CurrentRegistry, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """What evaluations found of a version, newest first."""
    return await registry.verdicts.history(who.project, name, number, after, limit)


@router.get("/{name}/versions/{number}/files/config", responses=answers(AdapterConfig, NotFound))
async def download_config(name: Name, number: str, who: Who, registry: CurrentRegistry) -> Response:
    """adapter_config.json as it was uploaded."""
    content = await registry.config_file(who.project, name, number)
    headers = {"content-disposition": 'attachment; filename="adapter_config.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.get(
    "/{name}/versions/{number}/files/weights",
    response_class=Download,
    responses=answers(
        *(None, NotFound, Unprocessable),
        description="adapter_model.safetensors as it was uploaded.",
        media_type="application/octet-stream",
    )
    | RANGE_ANSWERS,
)
async def download_weights(name: Name, number: str, who: Who, registry: CurrentRegistry) -> Download:
    """adapter_model.safetensors as it was uploaded, streamed; 422 `not_in_store`: the file is lost."""
    try:
        path = await registry.weights_file(who.project, name, number)
    except AdapterError as error:
        raise to_http(error) from error
    return Download(path, media_type="application/octet-stream", filename="adapter_model.safetensors")


@router.get("/{name}/aliases/{alias}", responses=answers(AdapterAlias, NotFound))
async def get_alias(name: Name, alias: str, who: Who, registry: CurrentRegistry) -> dict[str, Any]:
    """Where an alias points, and where it pointed."""
    return await registry.aliases.show(who.project, name, alias)


@router.put(
    "/{name}/aliases/{alias}",
    responses=answers(AdapterAlias, NotFound, Conflict, TooLarge, Unprocessable, *LOADING_ERRORS, DiskFull),
)
@takes(AliasRequest)
async def put_alias(
    name: Name, alias: str, request: Request, who: Who, by: By, registry: CurrentRegistry
) -> dict[str, Any]:
    """Point an alias to a version (promote it), or split it over several. The versions are loaded before it moves.

    409 `alias_moved`: it is not where it was expected; `version_not_ready`, `version_other_base`, `version_damaged`,
    `version_corrupt`: the version cannot serve; `version_held_back`: `live` moves to it by `force` alone;
    `too_many_pins`: the adapter is pinned, and the engine's slots do not reach. 422 `name_invalid`: not an alias.
    """
    body = await read_json(request, AliasRequest)
    try:
        return await registry.aliases.set_target(
            who.project, name, alias, body.target, expected=body.where, force=body.force, actor=by
        )
    except AdapterError as error:
        raise to_http(error) from error


@router.delete("/{name}/aliases/{alias}", responses=answers(DeletedAlias, NotFound, DiskFull))
async def delete_alias(name: Name, alias: str, who: Who, by: By, registry: CurrentRegistry) -> dict[str, Any]:
    """Delete an alias; the version stays."""
    await registry.aliases.drop(who.project, name, alias, actor=by)
    return {"object": "adapter.alias", "adapter": name, "alias": alias, "deleted": True}


@router.post(
    "/{name}/aliases/{alias}/rollback",
    responses=answers(AdapterAlias, NotFound, Conflict, *LOADING_ERRORS, DiskFull),
)
async def rollback_alias(name: Name, alias: str, who: Who, by: By, registry: CurrentRegistry) -> dict[str, Any]:
    """Point an alias back to where it pointed before; again, and it is the one before that.

    409 `no_earlier_version`: there is none; `version_other_base`, `version_damaged`, `version_corrupt`: it cannot
    serve; `too_many_pins`: the adapter is pinned, and the engine's slots do not reach.
    """
    return await registry.aliases.rollback(who.project, name, alias, actor=by)


@router.put("/{name}/pin", responses=answers(AdapterPin, NotFound, Conflict, DiskFull))
async def pin_adapter(name: Name, who: Who, by: By, registry: CurrentRegistry) -> dict[str, Any]:
    """Keep the adapter's live version loaded in the engine.

    409 `no_live_version`: there is none; `too_many_pins`: the engine's slots do not reach.
    """
    return await registry.pins.pin(who.project, name, actor=by)


@router.delete("/{name}/pin", responses=answers(AdapterPin, NotFound, DiskFull))
async def unpin_adapter(name: Name, who: Who, by: By, registry: CurrentRegistry) -> dict[str, Any]:
    """Let the adapter come and go like any other."""
    return await registry.pins.unpin(who.project, name, actor=by)
