"""``/v1/keys`` and ``/v1/audit``: from HTTP to the keys and back; for keys with the scope ``admin``, but that every
key may revoke itself."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.access.audit import ADMIN_ID, Actor
from service.access.authentication import project_name
from service.access.caller import DEFAULT_PROJECT, NO_LIMITS, Caller, Limits, Scope
from service.access.grants import MAX_EXPIRES_AT, MAX_GLOBS, is_glob
from service.access.http import actor, caller, needs
from service.access.records import Draft
from service.access.refusals import Refusals
from service.access.schemas import AuditPage, CreatedKey, DeletedKey, KeyObject, RotatedKey
from service.access.service import Keys
from service.errors import BadRequest, Conflict, NotFound
from service.http.body import read_json
from service.http.schema import Page, answers, takes

NO_STORE: Final = {"cache-control": "no-store"}
"""An answer that holds a key is for its reader alone."""


class KeyRequest(BaseModel):
    """Body of ``POST /v1/keys``. Left out or null: scopes are ``["infer"]``, globs all of the project, no limits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100)
    project: str | None = None
    scopes: list[Scope] = Field([Scope.INFER], min_length=1, max_length=len(Scope))
    adapters: list[str] | None = Field(None, max_length=MAX_GLOBS)
    stores: list[str] | None = Field(None, max_length=MAX_GLOBS)
    limits: Limits | None = None
    expires_at: int | None = Field(None, ge=0, le=MAX_EXPIRES_AT)

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must hold no control characters")
        return value

    @field_validator("adapters", "stores")
    @classmethod
    def _globs(cls, value: list[str] | None) -> list[str] | None:
        for glob in value or ():
            if not is_glob(glob):
                raise ValueError(f"{glob[:80]!r} is no glob over names: 1 to 64 of a-z, 0-9, '.', '_', '-', '*', '?'")
        return value

    def draft(self, who: Caller) -> Draft:
        """What is to be made; in the caller's project where the body names none.

        Raises:
            BadRequest: The project's name is not valid, or a key with the scope ``admin`` is to belong to a project.
        """
        project = self.project
        if Scope.ADMIN in self.scopes:
            if project not in (None, DEFAULT_PROJECT):
                raise BadRequest("a key with the scope `admin` is in every project: leave this out", param="project")
            project = DEFAULT_PROJECT
        return Draft(
            name=self.name,
            project=project_name(who.project if project is None else project, "project"),
            scopes=frozenset(self.scopes),
            adapters=None if self.adapters is None else tuple(self.adapters),
            stores=None if self.stores is None else tuple(self.stores),
            limits=self.limits or NO_LIMITS,
            expires_at=self.expires_at,
        )


async def keys(request: Request) -> Keys:
    """The keys of this gateway."""
    found: Keys = request.app.state.keys
    return found


async def refusals_of(request: Request) -> Refusals | None:
    """What was refused and may not stand in the audit yet; None where the app counts none."""
    found: Refusals | None = getattr(request.app.state, "refusals", None)
    return found


router = APIRouter(prefix="/v1", tags=["access"])
Admin = Annotated[Caller, Depends(needs(Scope.ADMIN))]
By = Annotated[Actor, Depends(actor)]
Ring = Annotated[Keys, Depends(keys)]
Project = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/keys", status_code=201, responses=answers(CreatedKey, Conflict, status=201))
@takes(KeyRequest)
async def create_key(request: Request, who: Admin, by: By, ring: Ring) -> JSONResponse:
    """Make a key; the answer holds it, this once."""
    wanted = await read_json(request, KeyRequest)
    made, key = await ring.mint(by, wanted.draft(who))
    headers = NO_STORE | {"location": f"/v1/keys/{made['id']}"}
    return JSONResponse(made | {"key": key}, status_code=201, headers=headers)


@router.post("/keys/rotate-admin", responses=answers(RotatedKey, Conflict))
async def rotate_admin(who: Admin, by: By, ring: Ring) -> JSONResponse:
    """Put a new admin key in the place of the old; the answer holds it, this once."""
    return JSONResponse({"object": "key", "id": ADMIN_ID, "key": await ring.rotate_admin(by)}, headers=NO_STORE)


@router.get("/keys", responses=answers(Page[KeyObject]))
async def list_keys(
    who: Admin,
    ring: Ring,
    project: Project = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Keys, oldest first; of all projects where none is named."""
    return await ring.page(project, after, limit)


@router.get("/keys/{key_id}", responses=answers(KeyObject, NotFound))
async def get_key(key_id: str, who: Admin, ring: Ring) -> dict[str, Any]:
    """One key."""
    return await ring.show(key_id)


@router.delete("/keys/current", responses=answers(DeletedKey, Conflict))
async def delete_own_key(who: Annotated[Caller, Depends(caller)], by: By, ring: Ring) -> dict[str, Any]:
    """Revoke the key that this is asked with; whoever holds a key may."""
    if who.key_id == ADMIN_ID:
        raise Conflict("the admin key is not revoked but rotated: POST /v1/keys/rotate-admin", code="admin_key")
    await ring.delete(by, who.key_id)
    return {"object": "key", "id": who.key_id, "deleted": True}


@router.delete("/keys/{key_id}", responses=answers(DeletedKey, NotFound, Conflict))
async def delete_key(key_id: str, who: Admin, by: By, ring: Ring) -> dict[str, Any]:
    """Revoke a key, from the next request on."""
    await ring.delete(by, key_id)
    return {"object": "key", "id": key_id, "deleted": True}


@router.get("/audit", responses=answers(AuditPage))
async def list_audit(
    who: Admin,
    ring: Ring,
    refusals: Annotated[Refusals | None, Depends(refusals_of)],
    project: Project = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """What was changed, and who was refused, by whom and when; newest first."""
    if refusals is not None:
        await refusals.flush()
    return await ring.audited(after=after, limit=limit, project=project, action=action)
