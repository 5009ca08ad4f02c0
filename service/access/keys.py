"""API keys: ``hk_<random><checksum>``, kept as an HMAC only.

A key is 256 random bits in base 62 behind a prefix, with a CRC-32 at the end, so that a scanner can tell a real key
from a typo offline (the format of GitHub's tokens).
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
SECRET_BYTES = 32
HINT_CHARS = 7


def make_key() -> str:
    """A new key: prefix, 43 random base-62 characters (256 bits), 6 of checksum."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(BODY_CHARS))
    return PREFIX + body + _checksum(body)


def well_formed(key: str) -> bool:
    """Whether prefix, length and checksum are those of a Hatrack key."""
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


def hint(key: str) -> str:
    """What may be shown of a key: its first 7 characters, which leave 232 of its 256 bits unknown."""
    return key[:HINT_CHARS] + "…"


def key_hmac(secret: bytes, key: str) -> bytes:
    """The HMAC-SHA256 of a key, 32 bytes; stored and compared instead of the key."""
    return hmac.new(secret, key.encode(), hashlib.sha256).digest()


def admin_key(home: Path, given: str | None) -> str:
    """The admin key: ``given``, or else the one in ``admin.key`` in home, created (mode 0600) at first start.

    Raises:
        SettingsError: The given key is too short, or the file does not contain a key.
    """
    if given is not None:
        if len(given) < MIN_GIVEN_KEY_CHARS:
            raise SettingsError(
                f"HATRACK_ADMIN_KEY must have at least {MIN_GIVEN_KEY_CHARS} characters; got {len(given)}"
            )
        return given
    path = home / "admin.key"
    if not path.exists():
        write_secret(path, make_key() + "\n")
    key = path.read_text().strip()
    if len(key) < MIN_GIVEN_KEY_CHARS:
        raise SettingsError(f"{path} does not contain an API key; delete the file and start again to create a new one")
    return key


def key_secret(home: Path) -> tuple[bytes, bool]:
    """The HMAC secret of the keys, from ``key.secret`` in home, and whether it was created just now.

    It is created at first start (32 random bytes in hex, mode 0600).
    Without it, keys that were made with it cannot be verified.

    Raises:
        SettingsError: The file cannot be read or does not contain a secret.
    """
    path = home / "key.secret"
    if not path.exists():
        secret = secrets.token_bytes(SECRET_BYTES)
        write_secret(path, secret.hex() + "\n")
        return secret, True
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} is not a readable API key secret ({SECRET_BYTES} bytes in hex): {error}"
        ) from error
    if len(secret) != SECRET_BYTES:
        raise SettingsError(
            f"{path} must contain {SECRET_BYTES} bytes in hex, the secret of the API keys; got {len(secret)}"
        )
    return secret, False


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically and durably. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # otherwise the old file, and the old key, could come back after a power cut
    finally:
        os.close(directory)
