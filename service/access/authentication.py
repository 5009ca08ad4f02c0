"""From a request's headers to its caller: synchronous, in memory, on the way of every request."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from adapters.errors import NameInvalid, NameReserved
from adapters.names import parse_name
from service.access.audit import ADMIN_ID
from service.access.caller import DEFAULT_PROJECT, Caller, Scope
from service.access.keys import key_hmac, well_formed
from service.errors import BadRequest, Forbidden, Unauthenticated

MAX_KEY_CHARS: Final = 256
MAX_SEEN: Final = 4096
"""Most keys remembered beside their entries, to save the HMAC; only good ones are, so strangers cannot fill it."""
NEVER: Final = float("inf")
CHALLENGE: Final = {"www-authenticate": 'Bearer realm="hatrack"'}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key stands for, and the Unix time in seconds from which it counts no more."""

    caller: Caller
    expires_at: float = NEVER


class Authenticator:
    """Knows every living key, as an HMAC only.

    The table is never changed in place: a change puts a new one in the place of the old between two requests, so the
    next request sees it. What a key's holder can measure says nothing about other keys: the table is looked up by an
    HMAC that nobody outside can steer, and the admin key is compared in constant time.

    Args:
        admin_key: The admin key itself; kept as an HMAC.
        secret: What the HMACs are made under. None: a new one, for keys that need not outlive the process.
    """

    def __init__(self, admin_key: str, secret: bytes | None = None) -> None:
        self._secret = secret if secret is not None else secrets.token_bytes(32)
        self._entries: Mapping[bytes, Entry] = {}
        self._seen: dict[str, Entry] = {}
        self._admin_entry = Entry(Caller(ADMIN_ID, DEFAULT_PROJECT, frozenset({Scope.ADMIN})))
        self._admin = key_hmac(self._secret, admin_key)

    def hmac(self, key: str) -> bytes:
        """What the table is looked up by: 32 bytes."""
        return key_hmac(self._secret, key)

    def put(self, digest: bytes, entry: Entry) -> None:
        """From now on, the key of this HMAC is known."""
        self.load({**self._entries, digest: entry})

    def drop(self, digests: frozenset[bytes]) -> None:
        """From now on, the keys of these HMACs are unknown."""
        self.load({known: entry for known, entry in self._entries.items() if known not in digests})

    def load(self, entries: Mapping[bytes, Entry]) -> None:
        """From now on, these keys are known, beside the admin key."""
        self._entries, self._seen = entries, {}

    def set_admin(self, key: str) -> None:
        """From now on, this is the admin key."""
        self._admin, self._seen = self.hmac(key), {}

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller that ``Authorization: Bearer`` or ``x-api-key`` names; where both have a key, it must be the same.

        An admin key acts in the project of the ``OpenAI-Project`` header, else in ``default``; every other key acts in
        its own, and the header, if it is there, must name that one.

        Args:
            headers: The request's headers, names in lower case.

        Raises:
            Unauthenticated: No key, or one that is not known, or not any more.
            Forbidden: ``project_mismatch``: the header names another project than the key's.
            BadRequest: The header holds no project's name. ``conflicting_keys``: the two headers have different keys.
        """
        key = key_in(headers)
        entry = self._seen.get(key)
        if entry is None:
            entry = self._look_up(key)
        if entry.expires_at <= time.time():
            raise _refusal("the API key has expired")
        project = headers.get("openai-project")
        return entry.caller if project is None else _in_project(entry.caller, project)

    def _look_up(self, key: str) -> Entry:
        if len(key) > MAX_KEY_CHARS:
            raise _refusal("the API key is not known here")
        digest = self.hmac(key)
        entry: Entry | None
        if hmac.compare_digest(digest, self._admin):
            entry = self._admin_entry
        else:
            entry = self._entries.get(digest) if well_formed(key) else None
        if entry is None:
            raise _refusal("the API key is not known here")
        if len(self._seen) >= MAX_SEEN:
            self._seen = {}
        self._seen[key] = entry
        return entry


def key_in(headers: Mapping[str, str]) -> str:
    """The key that a request shows, known or not. Raises Unauthenticated where there is none, BadRequest where two
    headers have different ones."""
    given = headers.get("authorization")
    bearer = given[7:].strip() if given is not None and given[:7].lower() == "bearer " else ""
    key = headers.get("x-api-key", "").strip()
    if bearer and key and bearer != key:
        raise BadRequest(
            "`Authorization` and `x-api-key` have different keys; send one of the two headers", code="conflicting_keys"
        )
    if bearer or key:
        return bearer or key
    if given:  # what was found is not repeated: it may be a key without its scheme
        raise _refusal("the Authorization header is not `Bearer <key>`")
    raise _refusal("no API key: send `Authorization: Bearer <key>` (the admin key is in admin.key under HATRACK_HOME)")


def _in_project(caller: Caller, project: str) -> Caller:
    if caller.project == project:
        return caller
    if Scope.ADMIN not in caller.scopes:
        raise Forbidden(
            f"the API key belongs to another project than {project[:64]!r}, which the OpenAI-Project header names: "
            "leave the header out (the openai client sends it where OPENAI_PROJECT_ID is set)",
            code="project_mismatch",
        )
    return replace(caller, project=project_name(project, "OpenAI-Project"))


def project_name(text: str, param: str) -> str:
    """``text`` if it is a valid project name; the grammar is that of adapter names. Raises BadRequest."""
    try:
        return parse_name(text)
    except (NameInvalid, NameReserved):
        raise BadRequest(
            f"`{param}` is {text[:80]!r}, no project's name: 1 to 64 of a-z, 0-9, '.', '_', '-', the first a letter or "
            "digit",
            param=param,
        ) from None


def _refusal(message: str) -> Unauthenticated:
    return Unauthenticated(message, headers=CHALLENGE)
