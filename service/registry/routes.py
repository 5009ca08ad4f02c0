"""``/v1/adapters``: from HTTP to the registry and back, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from adapters import errors as adapter_errors
from adapters.errors import AdapterError
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs
from service.body import as_model, read_json, read_object
from service.errors import (
    BadRequest,
    DiskFull,
    HatrackError,
    TooLarge,
    Unprocessable,
    WrongMediaType,
)
from service.registry.pointers import Where
from service.registry.revalidation import State
from service.registry.service import Registry
from service.registry.split import Aim, parse_split
from service.registry.state import no_adapter
from service.registry.upload import demand_name, receive
from service.registry.verdicts import MAX_BODY_BYTES, VerdictBody

_STATUS: Final[tuple[tuple[type[AdapterError], type[HatrackError]], ...]] = (
    (adapter_errors.TooLarge, TooLarge),
    (adapter_errors.PickleRefused, WrongMediaType),
    (adapter_errors.DiskFull, DiskFull),
)


def to_http(error: AdapterError) -> HatrackError:
    """What a client sees of an adapter's error: 422 with its code; 413, 415 and 507 where they say more."""
    kind = next((http for cause, http in _STATUS if isinstance(error, cause)), Unprocessable)
    return kind(error.message, param=error.param, code=error.code)


class Aiming(BaseModel):
    """Body of a move of an alias: to one version, or split over several; only if it is where it is expected to be,
    where that is said (null: nowhere)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int | None = Field(None, ge=1, le=2**31 - 1)
    split: dict[str, int] | None = None
    expected: int | None = Field(None, ge=1, le=2**31 - 1)

    @property
    def aim(self) -> Aim:
        """Where the alias is to point. Raises BadRequest."""
        if (self.version is None) == (self.split is None):
            found = "neither" if self.split is None else "both"
            raise BadRequest(
                f"send either `version` or `split`, found {found}",
                param="version" if self.split is None else "split",
                code="missing_required_parameter" if self.split is None else None,
            )
        return self.version if self.version is not None else parse_split(self.split or {})

    @property
    def where(self) -> Where | None:
        """Where the alias has to be; None where nothing was said of it."""
        return Where(self.expected) if "expected" in self.model_fields_set else None


def registry(request: Request) -> Registry:
    found: Registry = request.app.state.registry
    return found


router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
Who = Annotated[Caller, Depends(needs(Scope.ADAPTERS))]
By = Annotated[Actor, Depends(actor)]
Shelf = Annotated[Registry, Depends(registry)]


async def allowed(name: str, who: Who) -> str:
    """The path's name, which the key's globs must match: else there is no such adapter for it. Raises NotFound."""
    if not who.may_use(name):
        raise no_adapter(name)
    return name


Name = Annotated[str, Depends(allowed)]


@router.post("")
async def push(request: Request, who: Who, by: By, shelf: Shelf, wait: bool = True) -> JSONResponse:
    """Upload a version: 201 means ready, 200 known already, 202 (with `wait=false`) being proven."""
    try:
        pushed = await shelf.push(
            who,
            lambda write: receive(
                request.headers,
                request.stream(),
                write,
                max_weights=shelf.max_weights,
                check_name=partial(demand_name, who),
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


@router.get("")
async def list_adapters(
    who: Who,
    shelf: Shelf,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    revalidation: State | None = None,
) -> dict[str, Any]:
    """The project's adapters, oldest first; those with versions in a state of revalidation, where one is given."""
    return await shelf.adapters(who, after, limit, revalidation)


@router.get("/{name}")
async def get_adapter(name: Name, who: Who, shelf: Shelf, revalidation: State | None = None) -> dict[str, Any]:
    """An adapter with its versions (those in a state of revalidation, where one is given) and aliases."""
    return await shelf.adapter(who.project, name, revalidation)


@router.delete("/{name}", status_code=204)
async def delete_adapter(name: Name, who: Who, by: By, shelf: Shelf, force: bool = False) -> Response:
    """Delete an adapter and all its versions."""
    await shelf.delete_adapter(who.project, name, force=force, actor=by)
    return Response(status_code=204)


@router.get("/{name}/versions/{number}")
async def get_version(name: Name, number: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """One version, also a rejected one."""
    return await shelf.version(who.project, name, number)


@router.delete("/{name}/versions/{number}", status_code=204)
async def delete_version(name: Name, number: str, who: Who, by: By, shelf: Shelf, force: bool = False) -> Response:
    """Delete one version."""
    await shelf.delete_version(who.project, name, number, force=force, actor=by)
    return Response(status_code=204)


@router.post("/{name}/versions/{number}/prove")
async def prove_version(name: Name, number: str, who: Who, by: By, shelf: Shelf) -> dict[str, Any]:
    """Prove a version again."""
    try:
        return await shelf.prove(who.project, name, number, actor=by)
    except AdapterError as error:
        raise to_http(error) from error


@router.post("/{name}/versions/{number}/verdicts")
async def record_verdict(name: Name, number: str, request: Request, who: Who, by: By, shelf: Shelf) -> JSONResponse:
    """Write down what an evaluation found of a version; for jobs and admins."""
    body = as_model(await read_object(request, most=MAX_BODY_BYTES), VerdictBody)
    return JSONResponse(await shelf.verdicts.record(who, name, number, body, actor=by), status_code=201)


@router.get("/{name}/versions/{number}/verdicts")
async def list_verdicts(
    name: Name,
    number: str,
    who: Who,
    shelf: Shelf,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """What evaluations found of a version, newest first."""
    return await shelf.verdicts.history(who.project, name, number, after, limit)


@router.get("/{name}/versions/{number}/files/config")
async def download_config(name: Name, number: str, who: Who, shelf: Shelf) -> Response:
    """adapter_config.json as it was uploaded."""
    content = await shelf.config_file(who.project, name, number)
    headers = {"content-disposition": 'attachment; filename="adapter_config.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.get("/{name}/versions/{number}/files/weights")
async def download_weights(name: Name, number: str, who: Who, shelf: Shelf) -> FileResponse:
    """adapter_model.safetensors as it was uploaded, streamed."""
    try:
        path = await shelf.weights_file(who.project, name, number)
    except AdapterError as error:
        raise to_http(error) from error
    return FileResponse(path, media_type="application/octet-stream", filename="adapter_model.safetensors")


@router.get("/{name}/aliases/{alias}")
async def get_alias(name: Name, alias: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """Where an alias points, and where it pointed."""
    return await shelf.pointers.show(who.project, name, alias)


@router.put("/{name}/aliases/{alias}")
async def put_alias(name: Name, alias: str, request: Request, who: Who, by: By, shelf: Shelf) -> dict[str, Any]:
    """Point an alias to a version (promote it), or split it over several."""
    body = await read_json(request, Aiming)
    try:
        return await shelf.pointers.aim(who.project, name, alias, body.aim, expected=body.where, actor=by)
    except AdapterError as error:
        raise to_http(error) from error


@router.delete("/{name}/aliases/{alias}", status_code=200)
async def delete_alias(name: Name, alias: str, who: Who, by: By, shelf: Shelf) -> dict[str, Any]:
    """Delete an alias; the version stays."""
    await shelf.pointers.drop(who.project, name, alias, actor=by)
    return {"object": "adapter.alias", "adapter": name, "alias": alias, "deleted": True}


@router.post("/{name}/aliases/{alias}/rollback")
async def rollback_alias(name: Name, alias: str, who: Who, by: By, shelf: Shelf) -> dict[str, Any]:
    """Point an alias back to where it pointed before."""
    return await shelf.pointers.rollback(who.project, name, alias, actor=by)


@router.put("/{name}/pin")
async def pin_adapter(name: Name, who: Who, by: By, shelf: Shelf) -> dict[str, Any]:
    """Keep the adapter's live version warm."""
    return await shelf.pins.pin(who.project, name, actor=by)


@router.delete("/{name}/pin", status_code=200)
async def unpin_adapter(name: Name, who: Who, by: By, shelf: Shelf) -> dict[str, Any]:
    """Let the adapter come and go like any other."""
    return await shelf.pins.unpin(who.project, name, actor=by)
