"""`client.keys`, `client.audit` and `client.usage`: who may do what, who changed what, and who used how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal, TypedDict, Unpack

from service.client.connection import PAGE, Resource, given, path_of
from service.client.types.gateway import (
    AuditEntry,
    CreatedKey,
    DeletedKey,
    KeyObject,
    ProjectStorage,
    RotatedKey,
    Scope,
    UsageRow,
)

USAGE_PAGE: Final = 1000


class Keys(Resource):
    """`client.keys`: API keys. Needs a key with the scope `admin`; every method raises ClientError."""

    def list(self, project: str | None = None) -> Iterator[KeyObject]:
        """The keys of all projects, or of one, oldest first. The keys themselves are never shown again."""
        return self._connection.pages(KeyObject, path_of("keys"), {"project": project})

    def retrieve(self, key_id: str) -> KeyObject:
        """One key. Raises ClientError `not_found` (404)."""
        return self._connection.request(KeyObject, "GET", path_of("keys", key_id))

    def create(
        self,
        name: str,
        *,
        project: str | None = None,
        scopes: Sequence[Scope] | None = None,
        adapters: Sequence[str] | None = None,
        stores: Sequence[str] | None = None,
        filters: Mapping[str, str | float | bool] | None = None,
        limits: Mapping[str, int] | None = None,
        expires_at: int | None = None,
    ) -> CreatedKey:
        """Create a key. The response's `key` is the only time that it is shown.

        Args:
            name: For people; need not be unique.
            project: Created with its first key. None: the project that this client acts in.
            scopes: What the key may do. None: `infer`.
            adapters: Globs over adapter names. None: all of the project; empty: none.
            stores: Globs over vector store names, likewise.
            filters: Attributes and values to which every search is restricted; such a key has the scope `infer` only.
            limits: `requests_per_minute`, `tokens_per_minute`, `concurrent`, `tokens_per_day`.
            expires_at: Unix time in seconds. None: never.
        """
        body: dict[str, Any] = {"name": name, "project": project, "limits": limits, "expires_at": expires_at}
        body |= {"scopes": scopes, "adapters": adapters, "stores": stores, "filters": filters}
        return self._connection.request(CreatedKey, "POST", path_of("keys"), json=given(body))

    def delete(self, key_id: str) -> DeletedKey:
        """Revoke a key and the keys created with it, from the next request on.

        Raises:
            ClientError: `not_found` (404); `admin_key` (409), since the admin key can only be rotated.
        """
        return self._connection.request(DeletedKey, "DELETE", path_of("keys", key_id))

    def rotate_admin(self) -> RotatedKey:
        """Replace the admin key; the response's `key` is the new one. This client keeps using the old one.

        Raises:
            ClientError: `admin_key_given` (409) if the gateway has its admin key from the environment.
        """
        return self._connection.request(RotatedKey, "POST", path_of("keys", "rotate-admin"))


class Audit(Resource):
    """`client.audit`: the log of changes and refused requests. Needs a key with the scope `admin`."""

    def list(
        self, *, project: str | None = None, action: str | None = None, limit: int | None = None
    ) -> Iterator[AuditEntry]:
        """Entries, newest first. Raises ClientError.

        Args:
            project: Only this project's.
            action: Only this action, such as `alias.promote`.
            limit: Number of entries. None: all.
        """
        filters = {"project": project, "action": action}
        page_size = None if limit is None else min(max(limit, 1), PAGE)
        return islice(self._connection.pages(AuditEntry, path_of("audit"), filters, page_size=page_size), limit)


class UsageQuery(TypedDict, total=False):
    """Which usage to list; a missing field or None takes the gateway's default.

    ``start`` and ``end`` are Unix seconds, ``group_by`` any of `hour` (the time bucket), `project`, `key`, `adapter`,
    `version`; the rest are filters.
    """

    start: int | None
    end: int | None
    bucket: Literal["hour", "day"]
    group_by: Sequence[str] | None
    project: str | None
    key: str | None
    adapter: str | None


def parameters(query: UsageQuery) -> dict[str, Any]:
    """A query as the parameters of its request."""
    filters: dict[str, Any] = dict(query)
    if (group_by := query.get("group_by")) is not None:
        filters["group_by"] = ",".join(group_by)
    return filters


class Usage(Resource):
    """`client.usage`: requests and tokens. A key with the scope `admin` sees all projects, any other key itself."""

    def list(self, **query: Unpack[UsageQuery]) -> Iterator[UsageRow]:
        """Rows of usage, oldest first; by default of the last 24 hours. Raises ClientError."""
        filters = parameters(query)
        # the gateway's default period moves with its clock, and all pages must be of one period
        return self._connection.pages(
            UsageRow, path_of("usage"), filters, page_size=USAGE_PAGE, carry_over=("start", "end")
        )

    def storage(self) -> ProjectStorage:
        """What the client's project has on the disk, and its limits. Needs a key with the scope `admin`.

        Raises:
            ClientError: `project_not_found` (404).
        """
        return self._connection.request(ProjectStorage, "GET", path_of("storage"))
