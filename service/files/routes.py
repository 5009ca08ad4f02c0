"""``/v1/files``: from HTTP to the files and back, in OpenAI's form."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from service.access.audit import Actor
from service.access.caller import Caller
from service.access.http import actor, caller
from service.errors import (
    BadRequest,
    Conflict,
    DiskFull,
    NotFound,
    StoreUnavailable,
    TooLarge,
    Unprocessable,
    WrongMediaType,
)
from service.files.form import declared_bytes, receive
from service.files.purposes import visible
from service.files.schemas import DeletedFile, FileForm, FileObject
from service.files.service import Files
from service.http.download import BYTES, RANGE_ANSWERS, Download
from service.http.schema import Page, answers, takes

MAX_LIMIT: Final = 10_000
DOWNLOAD_HEADERS: Final = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


async def files(request: Request) -> Files:
    """The service that the composition root put on the app."""
    service: Files = request.app.state.files
    return service


async def allowed(caller: Annotated[Caller, Depends(caller)]) -> Caller:
    """The caller, which may see files of some purpose. Raises Forbidden."""
    visible(caller)
    return caller


router = APIRouter(prefix="/v1/files", tags=["files"])
CurrentCaller = Annotated[Caller, Depends(allowed)]
CurrentActor = Annotated[Actor, Depends(actor)]
CurrentFiles = Annotated[Files, Depends(files)]


@router.post("", responses=answers(FileObject, NotFound, TooLarge, WrongMediaType, StoreUnavailable, DiskFull))
@takes(FileForm, media_type="multipart/form-data")
async def create_file(
    request: Request, caller: CurrentCaller, actor: CurrentActor, service: CurrentFiles
) -> JSONResponse:
    """Upload a file."""
    try:
        made = await service.create(
            caller,
            lambda incoming: receive(
                request.headers, request.stream(), incoming, caller=caller, max_bytes=service.max_file_bytes
            ),
            actor=actor,
            body_bytes=declared_bytes(request.headers),
        )
    except ClientDisconnect:
        raise BadRequest("the client disconnected during the upload", code="client_disconnected") from None
    return JSONResponse(made, headers={"location": f"/v1/files/{made['id']}"})


@router.get("", responses=answers(Page[FileObject]))
async def list_files(
    caller: CurrentCaller,
    service: CurrentFiles,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The project's files, newest first."""
    return await service.page(caller, purpose=purpose, after=after, limit=limit, order=order)


@router.get("/{file_id}", responses=answers(FileObject, NotFound))
async def get_file(file_id: str, caller: CurrentCaller, service: CurrentFiles) -> dict[str, Any]:
    """One file."""
    return await service.show(caller, file_id)


@router.get(
    "/{file_id}/content",
    response_class=Download,
    responses=answers(*(None, NotFound, Unprocessable, StoreUnavailable), description="Its bytes.", media_type=BYTES)
    | RANGE_ANSWERS,
)
async def get_content(file_id: str, caller: CurrentCaller, service: CurrentFiles) -> Download:
    """A file's bytes, as they were uploaded. With an object store: 422 `file_damaged`, it has lost them; 503
    `store_unavailable`, it does not answer."""
    row, path = await service.content(caller, file_id)
    return Download(path, media_type=BYTES, filename=row.filename, headers=DOWNLOAD_HEADERS)


@router.delete("/{file_id}", responses=answers(DeletedFile, NotFound, Conflict, DiskFull))
async def delete_file(
    file_id: str, caller: CurrentCaller, actor: CurrentActor, service: CurrentFiles
) -> dict[str, Any]:
    """Take a file off the list. 409 `file_in_use`: it is a dataset's version."""
    await service.delete(caller, file_id, actor=actor)
    return {"id": file_id, "object": "file", "deleted": True}
