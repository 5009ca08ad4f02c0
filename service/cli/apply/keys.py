"""How keys of a gateway compare with those of a file, and which of them the command uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from service.client.settings import ClientSettings
from service.registry.catalog import equal_json

if TYPE_CHECKING:
    from service.cli.apply.document import KeyState
    from service.client.types.gateway import KeyObject


def own_keys(keys: Iterable[KeyObject], url: str) -> list[KeyObject]:
    """The one of ``keys`` that the command shows to the gateway; none if that is the admin key.

    It is known by its hint alone: where another begins likewise, both are returned, so that neither is revoked.
    """
    shown = ClientSettings().gateway_key(url) or ""
    return [key for key in keys if shown.startswith(key["hint"].rstrip("…"))]


def key_text(state: KeyState) -> str:
    """What a key that the file names may do, in a line."""
    words = [" ".join(scope.value for scope in state.scopes)]
    words += [f"{kind} {' '.join(globs) or 'none'}" for kind, globs in _globs(state) if globs is not None]
    words += [f"only {name}={value}" for name, value in state.filters.items()]
    words += [f"{name}={value}" for name, value in state.limits.model_dump(exclude_none=True).items()]
    words += [f"expires {state.expires_at}"] if state.expires_at else []
    return ", ".join(words)


def _globs(state: KeyState) -> list[tuple[str, tuple[str, ...] | None]]:
    return [("adapters", state.adapters), ("stores", state.stores)]


def key_differences(key: KeyObject, state: KeyState, own: list[KeyObject]) -> list[str]:
    """The fields in which a key is not what the file says.

    Where the file names no expiry, the gateway gives a key that of its creator, so that one no later than the expiry of
    ``own``, the key in use, is no difference.
    """
    expires_at = key["expires_at"]
    caps = [each["expires_at"] for each in own if each["expires_at"] is not None]
    if state.expires_at is None and expires_at is not None and any(expires_at <= cap for cap in caps):
        expires_at = None
    has = {
        "scopes": set(key["scopes"]),
        "adapters": None if key["adapters"] is None else set(key["adapters"]),
        "stores": None if key["stores"] is None else set(key["stores"]),
        "filters": dict(key["filters"] or {}),
        "limits": {name: limit for name, limit in (key["limits"] or {}).items() if limit is not None},
        "expires_at": expires_at,
    }
    wants = {
        "scopes": {scope.value for scope in state.scopes},
        "adapters": None if state.adapters is None else set(state.adapters),
        "stores": None if state.stores is None else set(state.stores),
        "filters": state.filters,
        "limits": state.limits.model_dump(exclude_none=True),
        "expires_at": state.expires_at_s,
    }
    return [name for name, wanted in wants.items() if not equal_json(has[name], wanted)]
