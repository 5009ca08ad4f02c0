"""``/v1/adapters``: from HTTP to the registry and back, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from adapters import errors as adapter_errors
from adapters.errors import AdapterError
from service.access.caller import Caller, Scope
from service.errors import (
    BadRequest,
    DiskFull,
    Forbidden,
    HatrackError,
    TooLarge,
    UnknownField,
    Unprocessable,
    WrongMediaType,
)
from service.registry.service import Registry
from service.registry.upload import receive

MAX_JSON_BYTES: Final = 64 * 1024
Body = TypeVar("Body", bound=BaseModel)

_STATUS: Final[tuple[tuple[type[AdapterError], type[HatrackError]], ...]] = (
    (adapter_errors.TooLarge, TooLarge),
    (adapter_errors.PickleRefused, WrongMediaType),
    (adapter_errors.DiskFull, DiskFull),
)


def to_http(error: AdapterError) -> HatrackError:
    """What a client sees of an adapter's error: 422 with its code; 413, 415 and 507 where they say more."""
    kind = next((http for cause, http in _STATUS if isinstance(error, cause)), Unprocessable)
    return kind(error.message, param=error.param, code=error.code)


class Promotion(BaseModel):
    """Body of a move of an alias."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=2**31 - 1)


def caller(request: Request) -> Caller:
    """Who asks; a key with the scope `adapters` is needed. Raises Unauthenticated, Forbidden."""
    known: Caller = request.app.state.authenticator.authenticate(request.headers)
    if not known.may(Scope.ADAPTERS):
        raise Forbidden("this key has no scope `adapters`")
    return known


def registry(request: Request) -> Registry:
    found: Registry = request.app.state.registry
    return found


async def read_json(request: Request, model: type[Body]) -> Body:
    """The request's JSON body. Raises TooLarge, BadRequest, UnknownField."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise TooLarge(f"the body has more than {MAX_JSON_BYTES} bytes")
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError:
        raise BadRequest("the body is not JSON", code="invalid_json") from None
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        kind = UnknownField if first["type"] == "extra_forbidden" else BadRequest
        raise kind(f"`{param or 'body'}`: {first['msg']}", param=param) from None


router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
Who = Annotated[Caller, Depends(caller)]
Shelf = Annotated[Registry, Depends(registry)]


@router.post("")
async def push(request: Request, who: Who, shelf: Shelf, wait: bool = True) -> JSONResponse:
    """Upload a version: 201 means ready, 200 known already, 202 (with `wait=false`) being proven."""
    try:
        pushed = await shelf.push(
            who.project,
            lambda write: receive(request.headers, request.stream(), write, max_weights=shelf.max_weights),
            wait=wait,
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
) -> dict[str, Any]:
    """The project's adapters, oldest first."""
    return await shelf.adapters(who.project, after, limit)


@router.get("/{name}")
async def get_adapter(name: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """An adapter with its versions and aliases."""
    return await shelf.adapter(who.project, name)


@router.delete("/{name}", status_code=204)
async def delete_adapter(name: str, who: Who, shelf: Shelf, force: bool = False) -> Response:
    """Delete an adapter and all its versions."""
    await shelf.delete_adapter(who.project, name, force=force)
    return Response(status_code=204)


@router.get("/{name}/versions/{number}")
async def get_version(name: str, number: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """One version, also a rejected one."""
    return await shelf.version(who.project, name, number)


@router.delete("/{name}/versions/{number}", status_code=204)
async def delete_version(name: str, number: str, who: Who, shelf: Shelf, force: bool = False) -> Response:
    """Delete one version."""
    await shelf.delete_version(who.project, name, number, force=force)
    return Response(status_code=204)


@router.post("/{name}/versions/{number}/prove")
async def prove_version(name: str, number: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """Prove a version again."""
    try:
        return await shelf.prove(who.project, name, number)
    except AdapterError as error:
        raise to_http(error) from error


@router.get("/{name}/versions/{number}/files/config")
async def download_config(name: str, number: str, who: Who, shelf: Shelf) -> Response:
    """adapter_config.json as it was uploaded."""
    content = await shelf.config_file(who.project, name, number)
    headers = {"content-disposition": 'attachment; filename="adapter_config.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.get("/{name}/versions/{number}/files/weights")
async def download_weights(name: str, number: str, who: Who, shelf: Shelf) -> FileResponse:
    """adapter_model.safetensors as it was uploaded, streamed."""
    try:
        path = await shelf.weights_file(who.project, name, number)
    except AdapterError as error:
        raise to_http(error) from error
    return FileResponse(path, media_type="application/octet-stream", filename="adapter_model.safetensors")


@router.get("/{name}/aliases/{alias}")
async def get_alias(name: str, alias: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """Where an alias points, and where it pointed."""
    return await shelf.pointers.show(who.project, name, alias)


@router.put("/{name}/aliases/{alias}")
async def put_alias(name: str, alias: str, request: Request, who: Who, shelf: Shelf) -> dict[str, Any]:
    """Point an alias to a version: promote it."""
    promotion = await read_json(request, Promotion)
    try:
        return await shelf.pointers.promote(who.project, name, alias, promotion.version)
    except AdapterError as error:
        raise to_http(error) from error


@router.delete("/{name}/aliases/{alias}", status_code=200)
async def delete_alias(name: str, alias: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """Delete an alias; the version stays."""
    await shelf.pointers.drop(who.project, name, alias)
    return {"object": "adapter.alias", "adapter": name, "alias": alias, "deleted": True}


@router.post("/{name}/aliases/{alias}/rollback")
async def rollback_alias(name: str, alias: str, who: Who, shelf: Shelf) -> dict[str, Any]:
    """Point an alias back to where it pointed before."""
    return await shelf.pointers.rollback(who.project, name, alias)
