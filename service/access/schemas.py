"""Keys and the audit as the API shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.access.caller import FilterValue, Limits, Scope
from service.http.schema import ApiModel


class KeyObject(ApiModel):
    """An API key, without the key itself."""

    object: Literal["key"]
    id: str
    name: str
    project: str
    hint: str = Field(description="The beginning of the key, to recognise it by.")
    scopes: list[Scope]
    adapters: list[str] | None = Field(description="Globs over adapter names; null: all in the project.")
    stores: list[str] | None = Field(description="Globs over vector store names and ids; null: all in the project.")
    filters: dict[str, FilterValue] = Field(
        description="Attributes and their values, to which every search with the key is restricted."
    )
    limits: Limits
    background: bool = Field(description="A job's key, whose requests yield to those of callers.")
    parent_key_id: str | None = Field(description="The key that created it; revoking that key revokes this one, too.")
    created_at: int
    expires_at: int | None


class CreatedKey(KeyObject):
    """A new API key; the only answer that holds the key itself."""

    key: str


class RotatedKey(ApiModel):
    """The new admin key."""

    object: Literal["key"]
    id: str
    key: str


class DeletedKey(ApiModel):
    """A revoked key."""

    object: Literal["key"]
    id: str
    deleted: Literal[True]


class AuditEntry(ApiModel):
    """One change, or requests that were refused access."""

    object: Literal["audit.entry"]
    id: int
    created_at: int
    key_id: str
    key_name: str | None
    project: str
    action: str
    target: str
    detail: dict[str, Any] | None
    request_id: str | None


class AuditPage(ApiModel):
    """A page of the audit, newest first."""

    object: Literal["list"]
    data: list[AuditEntry]
    first_id: int | None
    last_id: int | None
    has_more: bool
