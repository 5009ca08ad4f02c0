"""Signed requests between Hatrack's own processes: a keyed BLAKE2b over what is asked, valid for a minute.

The signature stands in one header, ``<Unix time>.<nonce>.<digest of the body>.<MAC>``, and covers method, path, time,
nonce, body and what else is bound to it (a session's id). It proves that whoever asks knows the shared secret; it
hides nothing. Anyone who can read the wire sees what is asked and answered.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from service.errors import Unauthenticated

HEADER: Final = "x-hatrack-signature"
VALID_S: Final = 60.0
"""How far the signer's and the verifier's clocks, and the way between them, may differ, s."""
MIN_SECRET_CHARS: Final = 16
_PARTS: Final = 4
_DIGEST_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def signing_key(secret: str, purpose: str) -> bytes:
    """The key for one purpose, 32 bytes, derived from a secret of any length."""
    return blake2b(purpose.encode() + b"\0" + secret.encode(), digest_size=32).digest()


def sign(
    key: bytes, method: str, path: str, body: bytes = b"", *, bound: str = "", wall: Callable[[], float] = time.time
) -> dict[str, str]:
    """The header of a signed request.

    Args:
        path: With its query, as it is sent.
        bound: What else the signature holds for.
        wall: Unix time, seconds.
    """
    at, nonce, digest = str(int(wall())), secrets.token_hex(_NONCE_BYTES), _digest(body)
    return {HEADER: f"{at}.{nonce}.{digest}.{_mac(key, method, path, at, nonce, digest, bound)}"}


class Verifier:
    """Verifies signatures; all of it runs on one thread.

    Args:
        key: As the signer has it.
        wall: Unix time, seconds.
    """

    def __init__(self, key: bytes, *, wall: Callable[[], float] = time.time) -> None:
        self._key = key
        self._wall = wall
        self._used: OrderedDict[str, float] = OrderedDict()
        """Nonces of requests that may come once only, with the time until which they could be repeated."""

    def verify(
        self, headers: Mapping[str, str], method: str, path: str, *, bound: str = "", once: bool = False
    ) -> Callable[[bytes], None]:
        """Verify a request's header before its body is read.

        Args:
            headers: Names in lower case, or in any case if the mapping does not tell them apart.
            path: With its query, as it came.
            once: Refuse a signature that was shown before.

        Returns:
            A function that must be called with the body; it raises Unauthenticated if that is another one.

        Raises:
            Unauthenticated: The signature is missing, wrong or too old, or was used before.
        """
        parts = headers.get(HEADER, "").split(".")
        if len(parts) != _PARTS:
            raise Unauthenticated(f"the request is not signed: the header `{HEADER}` is missing or malformed")
        at, nonce, digest, mac = parts
        shown = mac.encode("utf-8", "surrogateescape")  # as servers hand over a header of any bytes
        if not hmac.compare_digest(shown, _mac(self._key, method, path, at, nonce, digest, bound).encode()):
            raise Unauthenticated("the request's signature is wrong: both sides must have the same shared secret")
        self._check_time(at)
        if once:
            self._use(nonce)

        def check_body(body: bytes) -> None:
            if not hmac.compare_digest(digest, _digest(body)):
                raise Unauthenticated("the request's body is not the one that was signed")

        return check_body

    def _check_time(self, at: str) -> None:
        skew = self._wall() - int(at)  # digits: the MAC was right
        if abs(skew) > VALID_S:
            raise Unauthenticated(
                f"the request was signed {abs(skew):.0f} s {'ago' if skew > 0 else 'ahead'} by this machine's clock; a "
                f"signature is valid for {VALID_S:.0f} s: set both machines' clocks by NTP"
            )

    def _use(self, nonce: str) -> None:
        now = self._wall()
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if nonce in self._used:
            raise Unauthenticated("the request's signature was used before")
        self._used[nonce] = now + 2 * VALID_S


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()


def _mac(key: bytes, *claims: str) -> str:
    # lengths before the parts: no two lists of claims are the same text
    text = "".join(f"{len(claim)}:{claim}" for claim in claims)
    return blake2b(text.encode("utf-8", "surrogateescape"), key=key, digest_size=_DIGEST_BYTES).hexdigest()
