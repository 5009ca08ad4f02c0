"""The routes ``/v1/datasets``."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from adapters.names import MAX_VERSION
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, needs
from service.datasets.schemas import Dataset, DatasetDiff, DatasetPush, DatasetVersion, PushedDatasetVersion
from service.datasets.service import Datasets
from service.errors import Conflict, DiskFull, NotFound, StoreUnavailable, TooLarge, Unprocessable
from service.http.body import read_json
from service.http.schema import Page, answers, takes

MAX_DIFF_SHOWN: Final = 100
DELETED: Final = answers(None, NotFound, Conflict, DiskFull, status=204, description="Deleted.")


def datasets(request: Request) -> Datasets:
    """The service that the composition root put on the app."""
    service: Datasets = request.app.state.datasets
    return service


router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
CurrentCaller = Annotated[Caller, Depends(needs(Scope.TRAIN))]
CurrentActor = Annotated[Actor, Depends(actor)]
CurrentDatasets = Annotated[Datasets, Depends(datasets)]


@router.post(
    "",
    status_code=201,
    responses=answers(PushedDatasetVersion, description="The latest version has these bytes; nothing was changed.")
    | answers(
        PushedDatasetVersion,
        NotFound,
        TooLarge,
        Unprocessable,
        StoreUnavailable,
        DiskFull,
        status=201,
        description="The version is new.",
    ),
)
@takes(DatasetPush)
async def push(request: Request, caller: CurrentCaller, actor: CurrentActor, service: CurrentDatasets) -> JSONResponse:
    """Make an uploaded file the next version of a dataset.

    403 `dataset_not_allowed`: the key's globs do not match the name. 404 `file_not_found`.
    """
    body = await read_json(request, DatasetPush)
    version, is_new = await service.push(caller, body, actor=actor)
    where = f"/v1/datasets/{version['dataset']}/versions/{version['version']}"
    return JSONResponse(version, status_code=201 if is_new else 200, headers={"location": where})


@router.get("", responses=answers(Page[Dataset]))
async def list_datasets(
    caller: CurrentCaller,
    service: CurrentDatasets,
    after: Annotated[str | None, Query(max_length=64, description="The `last_id` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The project's datasets, oldest first."""
    return await service.page(caller, after=after, limit=limit)


@router.get("/{name}", responses=answers(Dataset, NotFound))
async def get_dataset(name: str, caller: CurrentCaller, service: CurrentDatasets) -> dict[str, Any]:
    """A dataset with its versions."""
    return await service.show(caller, name)


@router.delete("/{name}", status_code=204, responses=DELETED)
async def delete_dataset(name: str, caller: CurrentCaller, actor: CurrentActor, service: CurrentDatasets) -> Response:
    """Delete a dataset with all its versions; their files stay. 409 `dataset_in_use`: a job in progress reads one."""
    await service.delete(caller, name, actor=actor)
    return Response(status_code=204)


@router.get("/{name}/versions/{number}", responses=answers(DatasetVersion, NotFound))
async def get_version(name: str, number: str, caller: CurrentCaller, service: CurrentDatasets) -> dict[str, Any]:
    """One version."""
    return await service.version(caller, name, number)


@router.delete("/{name}/versions/{number}", status_code=204, responses=DELETED)
async def delete_version(
    name: str, number: str, caller: CurrentCaller, actor: CurrentActor, service: CurrentDatasets
) -> Response:
    """Delete one version; its file stays. 409 `dataset_in_use`: a job or an evaluation in progress reads it."""
    await service.delete_version(caller, name, number, actor=actor)
    return Response(status_code=204)


@router.get("/{name}/versions/{number}/diff", responses=answers(DatasetDiff, NotFound, Unprocessable, StoreUnavailable))
async def diff(
    name: str,
    number: str,
    caller: CurrentCaller,
    service: CurrentDatasets,
    against: Annotated[int, Query(ge=1, le=MAX_VERSION, description="The version to compare with.")],
    limit: Annotated[int, Query(ge=0, le=MAX_DIFF_SHOWN, description="Rows of each kind that are shown.")] = 20,
) -> dict[str, Any]:
    """The rows that a version has added, removed or changed. 422 `dataset_too_large`."""
    return await service.diff(caller, name, number, against=against, limit=limit)
