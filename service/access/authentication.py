"""From a request's headers to its caller."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping

from service.access.caller import DEFAULT_PROJECT, Caller, Scope
from service.access.keys import key_hmac
from service.errors import Unauthenticated

MAX_KEY_CHARS = 256


class Authenticator:
    """Knows the keys. Keys are compared as HMACs under a secret of this process, in constant time."""

    def __init__(self, admin_key: str) -> None:
        self._secret = secrets.token_bytes(32)
        self._admin = key_hmac(self._secret, admin_key)

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller that the ``Authorization: Bearer`` header names.

        Args:
            headers: The request's headers, names in lower case.

        Raises:
            Unauthenticated: No key, or one that is not known.
        """
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated(
                "no API key: send `Authorization: Bearer <key>` (the admin key is in admin.key under HATRACK_HOME)",
                headers={"www-authenticate": "Bearer"},
            )
        if len(key) > MAX_KEY_CHARS or not hmac.compare_digest(key_hmac(self._secret, key), self._admin):
            raise Unauthenticated("the API key is not known here", headers={"www-authenticate": "Bearer"})
        return Caller(key_id="admin", project=DEFAULT_PROJECT, scopes=frozenset({Scope.ADMIN}))
