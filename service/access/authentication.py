"""Authenticates a request by its headers: synchronous and in memory, because every request passes here."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from adapters.errors import NameInvalid, NameReserved
from adapters.names import parse_name
from service.access.audit import ADMIN_ID
from service.access.caller import DEFAULT_PROJECT, Caller, Scope
from service.access.keys import key_hmac, well_formed
from service.errors import BadRequest, Forbidden, Unauthenticated

MAX_KEY_CHARS: Final = 256
MAX_CACHED_KEYS: Final = 4096
"""Valid keys cached with their entries, to save the HMAC. Unknown keys are not cached, so nobody can fill it."""
NEVER: Final = float("inf")
CHALLENGE: Final = {"www-authenticate": 'Bearer realm="hatrack"'}


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key's caller and its expiry, Unix seconds."""

    caller: Caller
    expires_at: float = NEVER


class Authenticator:
    """Holds every active key, as an HMAC only.

    The table is never changed in place but replaced between two requests, so the next request sees the change. Timing
    reveals nothing about other keys: lookups use an HMAC that no client can choose, and the admin key is compared in
    constant time.

    Args:
        admin_key: The admin key itself; kept as an HMAC.
        secret: The HMAC secret. None: a random one, for keys that need not outlive the process.
    """

    def __init__(self, admin_key: str, secret: bytes | None = None) -> None:
        self._secret = secret if secret is not None else secrets.token_bytes(32)
        self._entries: Mapping[bytes, KeyEntry] = {}
        self._by_id: Mapping[str, KeyEntry] = {}
        self._cache: dict[str, KeyEntry] = {}
        self._listeners: list[Callable[[Collection[bytes] | None], None]] = []
        self._admin_entry = KeyEntry(Caller(ADMIN_ID, DEFAULT_PROJECT, frozenset({Scope.ADMIN})))
        self._admin = key_hmac(self._secret, admin_key)

    def hmac(self, key: str) -> bytes:
        """The key's HMAC, under which it is stored: 32 bytes."""
        return key_hmac(self._secret, key)

    def put(self, digest: bytes, entry: KeyEntry) -> None:
        """Add the key with this HMAC."""
        self.load({**self._entries, digest: entry}, changed={digest})

    def drop(self, digests: frozenset[bytes]) -> None:
        """Remove the keys with these HMACs."""
        self.load({known: entry for known, entry in self._entries.items() if known not in digests}, changed=digests)

    def load(self, entries: Mapping[bytes, KeyEntry], changed: Collection[bytes] | None = None) -> None:
        """Replace all keys but the admin key.

        Args:
            changed: The HMACs whose keys are others now, or gone; None: any may be.
        """
        self._entries, self._cache = entries, {}
        self._by_id = {entry.caller.key_id: entry for entry in entries.values()}
        self._notify(changed)

    def set_admin_key(self, key: str) -> None:
        """Replace the admin key."""
        self.set_admin_hmac(self.hmac(key))

    def set_admin_hmac(self, digest: bytes) -> None:
        """Replace the admin key by one of which only the HMAC is known."""
        self._admin, self._cache = digest, {}
        self._notify(())

    # for a front, which has the same keys

    def on_change(self, listener: Callable[[Collection[bytes] | None], None]) -> None:
        """Call ``listener`` with what has changed after each change; it must be quick and must not raise."""
        self._listeners.append(listener)

    @property
    def entries(self) -> Mapping[bytes, KeyEntry]:
        """All keys but the admin key by their HMACs; the mapping is replaced with each change."""
        return self._entries

    @property
    def admin_hmac(self) -> bytes:
        """The admin key's HMAC."""
        return self._admin

    @property
    def secret(self) -> bytes:
        """The secret of the HMACs."""
        return self._secret

    def _notify(self, changed: Collection[bytes] | None) -> None:
        for listener in self._listeners:
            listener(changed)

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller whose key is in ``Authorization: Bearer`` or ``x-api-key``; two keys must be the same.

        An admin key acts in the project of the ``OpenAI-Project`` header, or else in ``default``. Every other key acts
        in its own project, and the header, if present, must name it.

        Args:
            headers: The request's headers, names in lower case.

        Raises:
            Unauthenticated: The key is missing, unknown, revoked or expired.
            Forbidden: ``project_mismatch``: the header names another project than the key's.
            BadRequest: The header is not a valid project name. ``conflicting_keys``: the two headers differ.
        """
        key = key_in(headers)
        entry = self._cache.get(key)
        if entry is None:
            entry = self._look_up(key)
        if entry.expires_at <= time.time():
            raise _refusal("the API key has expired")
        project = headers.get("openai-project")
        return entry.caller if project is None else _in_project(entry.caller, project)

    def caller_with_id(self, key_id: str, project: str, admin_hmac: bytes | None = None) -> Caller:
        """The caller of a key that was authenticated earlier, for work that outlives its request.

        Args:
            project: The one that it acted in then.
            admin_hmac: For the admin key, its HMAC then; None: not known.

        Raises:
            Unauthenticated: The key was revoked, replaced or has expired since.
        """
        entry = self._admin_entry if key_id == ADMIN_ID else self._by_id.get(key_id)
        if key_id == ADMIN_ID and admin_hmac not in (None, self._admin):
            raise _refusal("the admin key was replaced")
        if entry is None:
            raise _refusal(f"the API key {key_id} was revoked")
        if entry.expires_at <= time.time():
            raise _refusal(f"the API key {key_id} has expired")
        return entry.caller if entry.caller.project == project else replace(entry.caller, project=project)

    def _look_up(self, key: str) -> KeyEntry:
        if len(key) > MAX_KEY_CHARS:
            raise _refusal("unknown API key: it does not exist on this gateway, or was revoked")
        digest = self.hmac(key)
        entry: KeyEntry | None
        if hmac.compare_digest(digest, self._admin):
            entry = self._admin_entry
        else:
            entry = self._entries.get(digest) if well_formed(key) else None
        if entry is None:
            raise _refusal("unknown API key: it does not exist on this gateway, or was revoked")
        if len(self._cache) >= MAX_CACHED_KEYS:
            self._cache = {}
        self._cache[key] = entry
        return entry


def key_in(headers: Mapping[str, str]) -> str:
    """The key in a request's headers, which may be unknown. Raises Unauthenticated if there is none, BadRequest if two
    headers have different keys."""
    given = headers.get("authorization")
    bearer = given[7:].strip() if given is not None and given[:7].lower() == "bearer " else ""
    key = headers.get("x-api-key", "").strip()
    if bearer and key and bearer != key:
        raise BadRequest(
            "`Authorization` and `x-api-key` have different keys; send only one of the two headers",
            code="conflicting_keys",
        )
    if bearer or key:
        return bearer or key
    if given:  # the value is not repeated: it may be a key without the scheme
        raise _refusal("invalid Authorization header: send `Authorization: Bearer <key>`")
    raise _refusal(
        "no API key: send `Authorization: Bearer <key>` (the admin key is in the file admin.key in HATRACK_HOME)"
    )


def _in_project(caller: Caller, project: str) -> Caller:
    if caller.project == project:
        return caller
    if Scope.ADMIN not in caller.scopes:
        raise Forbidden(
            f"the OpenAI-Project header names {project[:64]!r}, but the API key belongs to another project; "
            "omit the header (the openai client sends it if OPENAI_PROJECT_ID is set)",
            code="project_mismatch",
        )
    return replace(caller, project=project_name(project, "OpenAI-Project"))


def project_name(text: str, param: str) -> str:
    """Return ``text`` if it is a valid project name; the rules are those of adapter names. Raises BadRequest."""
    try:
        return parse_name(text)
    except (NameInvalid, NameReserved):
        raise BadRequest(
            f"`{param}` must be a project name: 1 to 64 characters of a-z, 0-9, '.', '_' and '-', beginning with a "
            f"letter or digit; got {text[:80]!r}",
            param=param,
        ) from None


def _refusal(message: str) -> Unauthenticated:
    return Unauthenticated(message, headers=CHALLENGE)
