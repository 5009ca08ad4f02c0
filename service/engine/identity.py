"""Identifies an engine: its boot id, the digest of the plugin's code, and the id of its adapter store.

Imports the standard library only, for the plugin inside the engine reads it too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

STORE_ID_FILE: Final = ".store-id"
"""File in the adapter store with a random id; two processes that read the same id use the same store."""

MAX_STORE_ID_BYTES: Final = 128


def boot_id(token: str) -> str:
    """Identifies one start of an engine: 16 hex digits of a hash of its processes' token."""
    return hashlib.sha256(b"hatrack-boot\n" + token.encode()).hexdigest()[:16]


def plugin_digest() -> str:
    """16 hex digits over the sources that run inside the engine: ``plugin/`` and what it shares with the gateway."""
    here = Path(__file__).parent
    files = [*sorted((here / "plugin").glob("*.py")), here / "contract.py", Path(__file__)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def ensure_store_id(store: Path) -> str:
    """The store's id, created if missing. Raises OSError if the store cannot be written."""
    store.mkdir(parents=True, exist_ok=True)
    existing = read_store_id(store)
    if existing is not None:
        return existing
    store_id, part = secrets.token_hex(16), store / f"{STORE_ID_FILE}.{os.getpid()}"
    part.write_text(store_id, encoding="ascii")
    part.replace(store / STORE_ID_FILE)
    return store_id


def read_store_id(store: Path) -> str | None:
    """The store's id, or None if it is missing or unreadable."""
    try:
        with (store / STORE_ID_FILE).open("rb") as file:
            return file.read(MAX_STORE_ID_BYTES).decode("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
