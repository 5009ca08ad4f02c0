"""The routes ``/v1/adapters``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from adapters.errors import AdapterError
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs, request_id
from service.errors import (
    AdapterNotFinite,
    AdapterNotFound,
    BadGateway,
    BadRequest,
    Conflict,
    DiskFull,
    EngineUnavailable,
    Internal,
    NotFound,
    RateLimited,
    SourceFailed,
    SourceTimeout,
    StoreUnavailable,
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
from service.registry.json_upload import receive_json
from service.registry.push import PushResult
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
    SettingsUpload,
    VerdictRequest,
)
from service.registry.service import Registry
from service.registry.state import adapter_not_found
from service.registry.upload import ReceivedUpload, is_json, receive, require_name_allowed
from service.registry.verdicts import MAX_BODY_BYTES

ENGINE_ERRORS: Final = (RateLimited, BadGateway, Unavailable, EngineUnavailable, Timeout)
"""Of a proof, which the engine is asked for."""
LOADING_ERRORS: Final = (*ENGINE_ERRORS, Internal, AdapterNotFinite)
"""Of loading an adapter in the engine."""
EVENT_STREAM: Final = "text/event-stream"
STREAMED: Final = (
    'Each event\'s data is `{"object": "adapter.push", "stage": "fetching" | "proving"}`, while fetching with `file`, '
    "`bytes` and `total`; the last one's is the `AdapterVersion`, or has an `error` and its `status`."
)
PUSH_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": AdapterVersion,
        "description": "The version existed already and is ready. With `stream=true`: events.",
        "content": {EVENT_STREAM: {"schema": {"type": "string", "description": STREAMED}}},
    }
}
DELETED: Final = answers(None, NotFound, Unprocessable, DiskFull, status=204, description="Deleted.")


def registry(request: Request) -> Registry:
    service: Registry = request.app.state.registry
    return service


router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
CurrentCaller = Annotated[Caller, Depends(needs(Scope.ADAPTERS))]
CurrentActor = Annotated[Actor, Depends(actor)]
CurrentRegistry = Annotated[Registry, Depends(registry)]
After = Annotated[str | None, Query(max_length=64, description="The `last_id` of the previous page.")]
Limit = Annotated[int, Query(ge=1, le=100)]
Force = Annotated[bool, Query(description="Delete even if aliases point to it; the aliases are deleted, too.")]
InState = Annotated[
    RevalidationState | None,
    Query(description="Only versions whose verdict still holds (`fresh`), is `due` for revalidation, or has `failed`."),
]


async def allowed(name: str, caller: CurrentCaller, registry: CurrentRegistry) -> AsyncIterator[str]:
    """The adapter's name in the path.

    Raises:
        AdapterNotFound: The key's globs do not match it, or the route finds none; the two get the same answer, with the
            name that was probably meant.
    """
    try:
        if not caller.may_use(name):
            raise adapter_not_found(name)
        yield name
    except AdapterNotFound:
        raise adapter_not_found(name, registry.similar(caller, name)) from None


Name = Annotated[str, Depends(allowed)]


@router.post(
    "",
    status_code=201,
    responses=PUSH_STREAM
    | answers(
        AdapterVersion,
        *(NotFound, TooLarge, WrongMediaType, Unprocessable, *LOADING_ERRORS, SourceFailed, SourceTimeout, DiskFull),
        status=201,
        description="The version is new and is ready.",
    )
    | answers(AdapterVersion, status=202, description="With `wait=false`: the version is being proven."),
)
@takes(AdapterUpload, media_type="multipart/form-data", or_json=SettingsUpload)
async def push(
    request: Request,
    caller: CurrentCaller,
    actor: CurrentActor,
    registry: CurrentRegistry,
    wait: Annotated[bool, Query(description="Respond only once the version is proven; otherwise at once.")] = True,
    stream: Annotated[
        bool, Query(description="With a `source`: answer 200 with server-sent events on how far it is.")
    ] = False,
) -> Response:
    """Upload a version, or name a `source` to fetch it from, and prove that the engine serves it.

    Without the files `config` and `weights`, or sent as JSON without a `source`, it is a version without weights: the
    base answers with its `settings`, and the proof is that the prompt renders and fits, and that its vector stores
    exist.

    422: the upload was received but cannot be served; `code` says what is wrong with it, or what the proof did not
    show. 429 `too_many_proving`: too many versions are waiting for their proof. Of a `source`: 403
    `source_not_allowed`: HATRACK_SOURCES does not cover it; 422 `source_not_found`, `source_digest_mismatch`; 429
    `too_many_fetches`; 502 `source_failed` and 504 `source_timeout`: what has come is kept, the same request goes on.
    """
    try:
        if is_json(request.headers):
            return await _push_json(request, caller, actor, registry, wait=wait, stream=stream)
        pushed = await registry.pushes.push(
            caller,
            lambda write: receive(
                request.headers,
                request.stream(),
                write,
                max_weights=registry.pushes.max_weights,
                check_name=partial(require_name_allowed, caller),
            ),
            wait=wait,
            actor=actor,
        )
    except ClientDisconnect:
        raise BadRequest("the client disconnected during the upload", code="client_disconnected") from None
    except AdapterError as error:
        raise to_http(error) from error
    return _pushed(pushed)


async def _push_json(
    request: Request, caller: Caller, actor: Actor, registry: Registry, *, wait: bool, stream: bool
) -> Response:
    upload = await receive_json(request.headers, request.stream(), partial(require_name_allowed, caller))
    received, source = upload.received, upload.source
    if source is None:

        async def as_sent(_write: object) -> ReceivedUpload:
            return received

        return _pushed(await registry.pushes.push(caller, as_sent, wait=wait, actor=actor))
    push = partial(
        registry.pushes.push_from,
        *(caller, received, registry.fetcher.parse(source.url), source.sha256),
        wait=wait,
        actor=actor,
    )
    if not stream:
        return _pushed(await push())
    events = registry.push_events.stream(lambda progress: push(progress=progress), request_id(request))
    return StreamingResponse(events, media_type=EVENT_STREAM, headers={"cache-control": "no-store"})


def _pushed(pushed: PushResult) -> JSONResponse:
    where = f"/v1/adapters/{pushed.version['adapter']}/versions/{pushed.version['version']}"
    return JSONResponse(pushed.version, status_code=pushed.status, headers={"location": where})


@router.get("", responses=answers(Page[Adapter]))
async def list_adapters(
    caller: CurrentCaller,
    registry: CurrentRegistry,
    after: After = None,
    limit: Limit = 20,
    revalidation: InState = None,
) -> dict[str, Any]:
    """The project's adapters, oldest first; with `revalidation`, only those with versions in that state."""
    return await registry.adapters(caller, after, limit, revalidation)


@router.get("/{name}", responses=answers(Adapter, NotFound))
async def get_adapter(
    name: Name, caller: CurrentCaller, registry: CurrentRegistry, revalidation: InState = None
) -> dict[str, Any]:
    """An adapter with its aliases and versions; with `revalidation`, only the versions in that state."""
    return await registry.adapter(caller.project, name, revalidation)


@router.delete("/{name}", status_code=204, responses=DELETED)
async def delete_adapter(
    name: Name, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry, force: Force = False
) -> Response:
    """Delete an adapter and all its versions. 422 `version_in_use`: an alias points there."""
    await registry.deletion.delete_adapter(caller.project, name, force=force, actor=actor)
    return Response(status_code=204)


@router.get("/{name}/versions/{number}", responses=answers(AdapterVersion, NotFound))
async def get_version(name: Name, number: str, caller: CurrentCaller, registry: CurrentRegistry) -> dict[str, Any]:
    """One version; it may be rejected."""
    return await registry.version(caller.project, name, number)


@router.delete("/{name}/versions/{number}", status_code=204, responses=DELETED)
async def delete_version(
    name: Name, number: str, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry, force: Force = False
) -> Response:
    """Delete one version. 422 `version_in_use`: an alias points there."""
    await registry.deletion.delete_version(caller.project, name, number, force=force, actor=actor)
    return Response(status_code=204)


@router.post(
    "/{name}/versions/{number}/prove",
    responses=answers(AdapterVersion, NotFound, Conflict, Unprocessable, *ENGINE_ERRORS, DiskFull),
)
async def prove_version(
    name: Name, number: str, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> dict[str, Any]:
    """Prove a version again: a rejected one that passes becomes ready, a corrupt one can serve again.

    409 `version_not_ready`: it is being proven; `version_other_base`, `version_damaged`: it cannot be proven.
    422: the proof failed; `code` says what it did not show.
    """
    try:
        return await registry.prove(caller.project, name, number, actor=actor)
    except AdapterError as error:
        raise to_http(error) from error


@router.post(
    "/{name}/versions/{number}/verdicts",
    status_code=201,
    responses=answers(RecordedVerdict, NotFound, Conflict, TooLarge, DiskFull, status=201),
)
@takes(VerdictRequest)
async def record_verdict(
    name: Name, number: str, request: Request, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> JSONResponse:
    """Record an evaluation's verdict on a version; for jobs and admins (403 `job_key_needed`).

    404 `file_not_found`: a file that it names is not in the project. 409 `version_not_ready`, `too_many_verdicts`.
    """
    body = as_model(await read_object(request, max_bytes=MAX_BODY_BYTES), VerdictRequest)
    return JSONResponse(await registry.verdicts.record(caller, name, number, body, actor=actor), status_code=201)


@router.get("/{name}/versions/{number}/verdicts", responses=answers(Page[RecordedVerdict], NotFound))
async def list_verdicts(
    name: Name, number: str, caller: CurrentCaller, registry: CurrentRegistry, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """The verdicts on a version, newest first."""
    return await registry.verdicts.history(caller.project, name, number, after, limit)


@router.get("/{name}/versions/{number}/files/config", responses=answers(AdapterConfig, NotFound))
async def download_config(name: Name, number: str, caller: CurrentCaller, registry: CurrentRegistry) -> Response:
    """adapter_config.json as it was uploaded. 404 `version_has_no_files`: the version has no weights."""
    content = await registry.config_file(caller.project, name, number)
    headers = {"content-disposition": 'attachment; filename="adapter_config.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.get(
    "/{name}/versions/{number}/files/weights",
    response_class=Download,
    responses=answers(
        *(None, NotFound, Conflict, Unprocessable, StoreUnavailable),
        description="adapter_model.safetensors as it was uploaded.",
        media_type="application/octet-stream",
    )
    | RANGE_ANSWERS,
)
async def download_weights(name: Name, number: str, caller: CurrentCaller, registry: CurrentRegistry) -> Download:
    """adapter_model.safetensors as it was uploaded, streamed. 422 `not_in_store`: the file is lost; 404
    `version_has_no_files`: the version has no weights. With an object store: 409 `version_damaged`, it is lost there;
    503 `store_unavailable`, it does not answer."""
    try:
        path = await registry.weights_file(caller.project, name, number)
    except AdapterError as error:
        raise to_http(error) from error
    return Download(path, media_type="application/octet-stream", filename="adapter_model.safetensors")


@router.get("/{name}/aliases/{alias}", responses=answers(AdapterAlias, NotFound))
async def get_alias(name: Name, alias: str, caller: CurrentCaller, registry: CurrentRegistry) -> dict[str, Any]:
    """Where an alias points, and its history."""
    return await registry.aliases.show(caller.project, name, alias)


@router.put(
    "/{name}/aliases/{alias}",
    responses=answers(AdapterAlias, NotFound, Conflict, TooLarge, Unprocessable, *LOADING_ERRORS, DiskFull),
)
@takes(AliasRequest)
async def put_alias(
    name: Name, alias: str, request: Request, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> dict[str, Any]:
    """Point an alias to a version (promote it), or split it over several. The versions are loaded before it moves.

    409 `alias_moved`: it does not point to the expected version; `version_not_ready`, `version_other_base`,
    `version_damaged`, `version_corrupt`: the version cannot serve; `version_held_back`: `live` moves to it only with
    `force`; `too_many_pins`: the adapter is pinned, and the engine has too few slots. 422 `name_invalid`: not an alias.
    """
    body = await read_json(request, AliasRequest)
    try:
        return await registry.aliases.set_target(
            caller.project, name, alias, body.target, expected=body.where, force=body.force, actor=actor
        )
    except AdapterError as error:
        raise to_http(error) from error


@router.delete("/{name}/aliases/{alias}", responses=answers(DeletedAlias, NotFound, DiskFull))
async def delete_alias(
    name: Name, alias: str, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> dict[str, Any]:
    """Delete an alias; the version stays."""
    await registry.aliases.drop(caller.project, name, alias, actor=actor)
    return {"object": "adapter.alias", "adapter": name, "alias": alias, "deleted": True}


@router.post(
    "/{name}/aliases/{alias}/rollback",
    responses=answers(AdapterAlias, NotFound, Conflict, *LOADING_ERRORS, DiskFull),
)
async def rollback_alias(
    name: Name, alias: str, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> dict[str, Any]:
    """Point an alias back to its previous target; repeated calls go further back.

    409 `no_earlier_version`: there is none; `version_other_base`, `version_damaged`, `version_corrupt`: it cannot
    serve; `too_many_pins`: the adapter is pinned, and the engine has too few slots.
    """
    return await registry.aliases.rollback(caller.project, name, alias, actor=actor)


@router.put("/{name}/pin", responses=answers(AdapterPin, NotFound, Conflict, DiskFull))
async def pin_adapter(
    name: Name, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> dict[str, Any]:
    """Keep the adapter's live version loaded in the engine; one without weights needs nothing loaded.

    409 `no_live_version`: there is none; `too_many_pins`: the engine has too few slots.
    """
    return await registry.pins.pin(caller.project, name, actor=actor)


@router.delete("/{name}/pin", responses=answers(AdapterPin, NotFound, DiskFull))
async def unpin_adapter(
    name: Name, caller: CurrentCaller, actor: CurrentActor, registry: CurrentRegistry
) -> dict[str, Any]:
    """Unpin the adapter: the engine may unload it again."""
    return await registry.pins.unpin(caller.project, name, actor=actor)
