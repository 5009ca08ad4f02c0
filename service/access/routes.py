"""``/v1/keys`` and ``/v1/audit``. They need the scope ``admin``, but every key may revoke itself."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from service.access.audit import ADMIN_ID, Actor
from service.access.authentication import project_name
from service.access.caller import DEFAULT_PROJECT, NO_FILTERS, NO_LIMITS, Caller, Limits, Scope
from service.access.grants import MAX_EXPIRES_AT, MAX_GLOBS, is_glob
from service.access.http import actor, caller, needs
from service.access.records import KeyDraft
from service.access.refusals import Refusals
from service.access.schemas import AuditPage, CreatedKey, DeletedKey, KeyObject, RotatedKey
from service.access.service import Keys
from service.errors import BadRequest, Conflict, NotFound
from service.http.body import read_json
from service.http.schema import Page, answers, takes

NO_STORE: Final = {"cache-control": "no-store"}
"""For answers that contain a key."""


MAX_FILTERS: Final = 8
AttributeName: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeNumber: TypeAlias = Annotated[float, Field(ge=-(2**53), le=2**53)]
AttributeText: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class KeyRequest(BaseModel):
    """Body of ``POST /v1/keys``. Left out or null: scopes are ``["infer"]``, globs all of the project, no limits."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=100)
    project: str | None = None
    scopes: list[Scope] = Field([Scope.INFER], min_length=1, max_length=len(Scope))
    adapters: list[str] | None = Field(None, max_length=MAX_GLOBS)
    stores: list[str] | None = Field(None, max_length=MAX_GLOBS)
    filters: dict[AttributeName, AttributeText | bool | AttributeNumber] | None = Field(None, max_length=MAX_FILTERS)
    limits: Limits | None = None
    expires_at: int | None = Field(None, ge=0, le=MAX_EXPIRES_AT)

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must not contain control characters")
        return value

    @field_validator("adapters", "stores")
    @classmethod
    def _globs(cls, value: list[str] | None) -> list[str] | None:
        for glob in value or ():
            if not is_glob(glob):
                raise ValueError(
                    f"{glob[:80]!r} is not a glob: use 1 to 64 characters of a-z, 0-9, '.', '_', '-', '*' and '?'"
                )
        return value

    def draft(self, caller: Caller) -> KeyDraft:
        """The key to create; in the caller's project if the body names none.

        Raises:
            BadRequest: The project's name is not valid, or a key with the scope ``admin`` names a project.
        """
        project = self.project
        if Scope.ADMIN in self.scopes:
            if project not in (None, DEFAULT_PROJECT):
                raise BadRequest("a key with the scope `admin` acts in every project; omit `project`", param="project")
            project = DEFAULT_PROJECT
        return KeyDraft(
            name=self.name,
            project=project_name(caller.project if project is None else project, "project"),
            scopes=frozenset(self.scopes),
            adapters=None if self.adapters is None else tuple(self.adapters),
            stores=None if self.stores is None else tuple(self.stores),
            filters=self.filters or NO_FILTERS,
            limits=self.limits or NO_LIMITS,
            expires_at=self.expires_at,
        )


async def keys(request: Request) -> Keys:
    """The service that the composition root put on the app."""
    service: Keys = request.app.state.keys
    return service


async def refusals_of(request: Request) -> Refusals | None:
    """Counts refusals that may not be in the audit yet; None if the app does not count them."""
    refusals: Refusals | None = getattr(request.app.state, "refusals", None)
    return refusals


router = APIRouter(prefix="/v1", tags=["access"])
Admin = Annotated[Caller, Depends(needs(Scope.ADMIN))]
CurrentActor = Annotated[Actor, Depends(actor)]
KeyService = Annotated[Keys, Depends(keys)]
Project = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/keys", status_code=201, responses=answers(CreatedKey, Conflict, status=201))
@takes(KeyRequest)
async def create_key(request: Request, caller: Admin, actor: CurrentActor, keys: KeyService) -> JSONResponse:
    """Create a key. The key itself is only in this answer and cannot be shown again."""
    body = await read_json(request, KeyRequest)
    created, key = await keys.mint(actor, body.draft(caller))
    headers = NO_STORE | {"location": f"/v1/keys/{created['id']}"}
    return JSONResponse(created | {"key": key}, status_code=201, headers=headers)


@router.post("/keys/rotate-admin", responses=answers(RotatedKey, Conflict))
async def rotate_admin(caller: Admin, actor: CurrentActor, keys: KeyService) -> JSONResponse:
    """Replace the admin key. The new key is only in this answer and cannot be shown again."""
    return JSONResponse({"object": "key", "id": ADMIN_ID, "key": await keys.rotate_admin(actor)}, headers=NO_STORE)


@router.get("/keys", responses=answers(Page[KeyObject]))
async def list_keys(
    caller: Admin,
    keys: KeyService,
    project: Project = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Keys, oldest first; of all projects if none is given."""
    return await keys.page(project, after, limit)


@router.get("/keys/{key_id}", responses=answers(KeyObject, NotFound))
async def get_key(key_id: str, caller: Admin, keys: KeyService) -> dict[str, Any]:
    """One key."""
    return await keys.show(key_id)


@router.delete("/keys/current", responses=answers(DeletedKey, Conflict))
async def delete_own_key(
    who: Annotated[Caller, Depends(caller)], actor: CurrentActor, keys: KeyService
) -> dict[str, Any]:
    """Revoke the key of this request; needs no scope."""
    if who.key_id == ADMIN_ID:
        raise Conflict("the admin key cannot be revoked; rotate it (`hatrack keys rotate-admin`)", code="admin_key")
    await keys.delete(actor, who.key_id)
    return {"object": "key", "id": who.key_id, "deleted": True}


@router.delete("/keys/{key_id}", responses=answers(DeletedKey, NotFound, Conflict))
async def delete_key(key_id: str, caller: Admin, actor: CurrentActor, keys: KeyService) -> dict[str, Any]:
    """Revoke a key and its child keys, effective from the next request."""
    await keys.delete(actor, key_id)
    return {"object": "key", "id": key_id, "deleted": True}


@router.get("/audit", responses=answers(AuditPage))
async def list_audit(
    caller: Admin,
    keys: KeyService,
    refusals: Annotated[Refusals | None, Depends(refusals_of)],
    project: Project = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Changes and refused requests, newest first: who, what and when."""
    if refusals is not None:
        await refusals.flush()
    return await keys.audit_page(after=after, limit=limit, project=project, action=action)
