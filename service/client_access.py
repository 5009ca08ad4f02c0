"""The client's calls for keys and the audit; all need a key with the scope `admin`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

from service.client_caller import Caller
from service.client_wire import JsonObject

PAGE: Final = 100


class AccessCalls(Caller):
    """What ``HatrackClient`` can do with keys; every method raises ClientError."""

    def list_keys(self, project: str | None = None) -> list[JsonObject]:
        """All keys, oldest first, or those of one project; the keys themselves are never told again."""
        return list(self._items("/v1/keys", {"project": project}))

    def create_key(
        self,
        name: str,
        *,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        adapters: Sequence[str] | None = None,
        stores: Sequence[str] | None = None,
        limits: Mapping[str, int] | None = None,
        expires_at: int | None = None,
    ) -> JsonObject:
        """Make a key; the answer's `key` is the only time that it is told.

        Args:
            name: For people; need not be unique.
            project: Made with its first key. None: the one that this client acts in.
            scopes: Of `infer`, `adapters`, `knowledge`, `train`, `admin`. None: `infer`.
            adapters: Globs over adapter names. None: all of the project; empty: none.
            stores: Globs over store names, likewise.
            limits: Of `requests_per_minute`, `tokens_per_minute`, `concurrent`, `tokens_per_day`.
            expires_at: Unix time in seconds. None: never.
        """
        body: JsonObject = {"name": name, "project": project, "limits": limits, "expires_at": expires_at}
        body |= {"scopes": scopes, "adapters": adapters, "stores": stores}
        return self._object("POST", "/v1/keys", json={field: v for field, v in body.items() if v is not None})

    def delete_key(self, key_id: str) -> JsonObject:
        """Revoke a key and those that were made under it, from the next request on."""
        return self._object("DELETE", f"/v1/keys/{quote(key_id, safe='')}")

    def rotate_admin(self) -> JsonObject:
        """Put a new admin key in the place of the old; the answer's `key` is it. This client keeps the old one."""
        return self._object("POST", "/v1/keys/rotate-admin")

    def audit(
        self, *, project: str | None = None, action: str | None = None, limit: int | None = None
    ) -> list[JsonObject]:
        """The newest changes first: all, or at most `limit`; of one project, of one action (`alias.promote`)."""
        return list(islice(self._items("/v1/audit", {"project": project, "action": action}, limit), limit))

    def _items(self, path: str, filters: Mapping[str, str | None], most: int | None = None) -> Iterator[JsonObject]:
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        params["limit"] = PAGE if most is None else min(max(most, 1), PAGE)
        while True:
            page = self._object("GET", path, params=params)
            data = page.get("data", [])
            yield from data
            if not page.get("has_more") or not data or data[-1]["id"] == params.get("after"):
                return
            params["after"] = data[-1]["id"]
