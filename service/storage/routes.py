"""``GET /v1/storage``: what a project has on the disk, and how much it may have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from service.access.caller import Caller, Scope
from service.access.http import needs
from service.access.records import require_project
from service.config import GIB, Settings
from service.database import Database
from service.errors import NotFound
from service.files import records as file_records
from service.http.schema import ApiModel, answers
from service.registry import storage_records

router = APIRouter(prefix="/v1/storage", tags=["usage"])


class StorageSpace(ApiModel):
    """Bytes on the disk."""

    bytes: int
    limit_bytes: int | None = Field(description="What would exceed it is refused with 413; null: no limit.")


class ProjectStorage(ApiModel):
    """What a project has on the disk, of each kind that has a limit."""

    object: Literal["storage"]
    project: str
    files: StorageSpace = Field(description="Uploaded files, with deleted ones that something still holds.")
    adapters: StorageSpace = Field(
        description="Weights in the store, with those that no version has any more until they are removed; equal ones "
        "count once."
    )
    vector_stores: StorageSpace = Field(description="Passages, vectors and indexes, estimated.")


class StorageReport:
    """Reads what projects have on the disk."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._limits = {
            "files": int(settings.max_files_gib * GIB),
            "adapters": None if settings.max_adapters_gib is None else int(settings.max_adapters_gib * GIB),
            "vector_stores": None if settings.max_stores_gib is None else int(settings.max_stores_gib * GIB),
        }

    async def read(self, project: str) -> dict[str, Any]:
        """What one project has, in the API's form. Raises NotFound."""
        stored = await self._database.run(lambda db: _stored(db, project))
        spaces = {kind: {"bytes": stored[kind], "limit_bytes": limit} for kind, limit in self._limits.items()}
        return {"object": "storage", "project": project, **spaces}


def _stored(db: sa.Connection, project: str) -> dict[str, int]:
    from service.knowledge.index import indexing_records  # only its SQL: no store is opened

    require_project(db, project)
    return {
        "files": file_records.stored_bytes(db, project),
        "adapters": storage_records.stored_bytes(db, project),
        "vector_stores": indexing_records.project_usage_bytes(db, project),
    }


async def storage_report(request: Request) -> StorageReport:
    """The report that the composition root put on the app."""
    report: StorageReport = request.app.state.storage_report
    return report


@router.get("", responses=answers(ProjectStorage, NotFound))
async def get_storage(
    admin: Annotated[Caller, Depends(needs(Scope.ADMIN))], report: Annotated[StorageReport, Depends(storage_report)]
) -> dict[str, Any]:
    """What a project's files, adapters and vector stores take on the disk, and their limits."""
    return await report.read(admin.project)
