"""API keys: ``hk_<random><checksum>``, kept as an HMAC only.

A key is 32 random bytes in base 62 behind a prefix, with a CRC-32 at the end, so that a scanner can tell a real key
from a typo without asking us (the form that GitHub's tokens made usual).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import string
import zlib
from pathlib import Path

from service.errors import SettingsError

PREFIX = "hk_"
ALPHABET = string.digits + string.ascii_letters
BODY_CHARS = 43
CHECKSUM_CHARS = 6
MIN_GIVEN_KEY_CHARS = 16


def make_key() -> str:
    """A new key: prefix, 43 random base-62 characters (256 bits), 6 of checksum."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(BODY_CHARS))
    return PREFIX + body + _checksum(body)


def well_formed(key: str) -> bool:
    """True where prefix, length and checksum are those of a key that Hatrack made."""
    body, check = key[len(PREFIX) : -CHECKSUM_CHARS], key[-CHECKSUM_CHARS:]
    return (
        key.startswith(PREFIX)
        and len(body) == BODY_CHARS
        and hmac.compare_digest(_checksum(body).encode(), check.encode())
    )


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        value, digit = divmod(value, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def key_hmac(secret: bytes, key: str) -> bytes:
    """What is stored and compared in place of a key: HMAC-SHA256, 32 bytes."""
    return hmac.new(secret, key.encode(), hashlib.sha256).digest()


def admin_key(home: Path, given: str | None) -> str:
    """The admin key: the given one, else the one in ``admin.key`` under home, made there (mode 0600) at first start.

    Raises:
        SettingsError: The given key is too short, or the file holds no key.
    """
    if given is not None:
        if len(given) < MIN_GIVEN_KEY_CHARS:
            raise SettingsError(
                f"HATRACK_ADMIN_KEY has {len(given)} characters, at least {MIN_GIVEN_KEY_CHARS} are needed"
            )
        return given
    path = home / "admin.key"
    if not path.exists():
        write_secret(path, make_key() + "\n")
    key = path.read_text().strip()
    if len(key) < MIN_GIVEN_KEY_CHARS:
        raise SettingsError(f"{path} holds no key; delete it to have a new one made")
    return key


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
