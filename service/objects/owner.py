"""Which installation a prefix of an object store belongs to.

To one: `hatrack gc` removes from it what its own database does not name. Each home has a random id (`installation-id`,
in no backup: a restored home is another installation until its operator says otherwise). The first home to use a prefix
writes its id into the object `owner.json`, by a conditional write; others are refused.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from adapters.blobs import fsync_directory
from service.errors import SettingsError
from service.objects.client import NoSuchObject, ObjectStore

OBJECT: Final = "owner.json"
ID_FILE: Final = "installation-id"
MAX_BYTES: Final = 4096
TAKE_OVER: Final = "hatrack move-store --take-over"


@dataclass(frozen=True, slots=True)
class Owner:
    """An installation, and for people where it was when it took the prefix (``since``: Unix seconds)."""

    installation: str
    host: str
    home: str
    since: int

    @property
    def shown(self) -> str:
        """In a message."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self.since))
        return f"the installation in {self.home} on {self.host} (since {day})"


def installation_id(home: Path) -> str | None:
    """The home's id; None: it has none yet. Raises SettingsError."""
    try:
        return (home / ID_FILE).read_text("ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{home / ID_FILE} cannot be read: {error}") from error


def owner_of(objects: ObjectStore) -> Owner | None:
    """The installation that the prefix belongs to; None: nobody has taken it.

    Raises:
        StoreUnavailable: The store does not answer.
        SettingsError: What says so is damaged.
    """
    try:
        return Owner(**json.loads(objects.read(OBJECT, MAX_BYTES)))
    except NoSuchObject:
        return None
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"{OBJECT} in the object store {objects.url}, which says whose it is, cannot be read. If it is this "
            f"installation's, run `{TAKE_OVER}`"
        ) from error


def claim(objects: ObjectStore, home: Path) -> None:
    """Take the prefix for this home, unless it is its own already.

    Raises:
        SettingsError: It belongs to another installation; the message says what to do.
        StoreUnavailable: The store does not answer. It may have been taken, and is then found to be this home's.
    """
    own = _described(home)  # its id is on the disk before anybody can find it in the store
    owner = owner_of(objects)
    if owner is None and not objects.create(OBJECT, _content(own)):
        owner = owner_of(objects)  # somebody else was faster
    if owner is not None and owner.installation != own.installation:
        raise SettingsError(
            f"the object store {objects.url} belongs to {owner.shown}, and this is another one: `hatrack gc` of each "
            "would remove what the other has. Give this one a bucket or a prefix of its own. If the other is gone for "
            f"good, or this is its restored or copied home, run `{TAKE_OVER}`"
        )


def take_over(objects: ObjectStore, home: Path) -> None:
    """Take the prefix for this home, whoever had it. Raises StoreUnavailable, SettingsError."""
    objects.replace(OBJECT, _content(_described(home)))


def _described(home: Path) -> Owner:
    return Owner(_ensure_id(home), socket.gethostname(), str(home), int(time.time()))


def _content(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _ensure_id(home: Path) -> str:
    existing = installation_id(home)
    if existing is not None:
        return existing
    created = secrets.token_hex(16)
    partial = home / f".{ID_FILE}.partial"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            file.write(created + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(home / ID_FILE)
        fsync_directory(home)
    except OSError as error:
        raise SettingsError(f"{home / ID_FILE} cannot be written: {error}") from error
    return created
