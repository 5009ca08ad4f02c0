"""Whose cache the local folders are.

A home whose content is in an object store has a file `store.json` with the store's URL. Without it, the local folders
are the only place where the content is; with it, they may be incomplete. A gateway whose settings say otherwise does
not start: it would remove the only copies, or find that most of them are missing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from adapters.blobs import fsync_directory
from adapters.names import is_digest
from service.config import Settings
from service.errors import SettingsError

MARKER: Final = "store.json"


def marked_url(home: Path) -> str | None:
    """The store that a home's content is in; None: it is in the home itself. Raises SettingsError."""
    path = home / MARKER
    try:
        return str(json.loads(path.read_bytes())["url"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}, which names the object store of this home, cannot be read: {error}") from error


def mark(home: Path, url: str) -> None:
    """Write down, durably, that the home's content is in the store at ``url``."""
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f".{MARKER}.partial"
    with partial.open("w") as file:
        json.dump({"url": url}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(home / MARKER)
    fsync_directory(home)


def require_agreement(settings: Settings) -> None:
    """Check that the settings name the store that this home's content is in; a home without content takes it.

    Raises as ``check_agreement``.
    """
    if check_agreement(settings) and settings.store_url is not None:
        mark(settings.home, settings.store_url)


def check_agreement(settings: Settings) -> bool:
    """Whether this home, which has no content yet, is to take the store of the settings; False: it has it, or has none.

    Raises:
        SettingsError: They do not; the message says what to do.
    """
    home, url = settings.home, settings.store_url
    marked = marked_url(home)
    if marked == url:
        return False
    if url is None:
        raise SettingsError(
            f"the adapters and files of {home} are in the object store {marked}, and the local folders are only a "
            f"cache of it: set HATRACK_STORE_URL={marked}"
        )
    if marked is not None:
        raise SettingsError(
            f"the adapters and files of {home} are in the object store {marked}, and HATRACK_STORE_URL is {url}. Once "
            f"all objects are copied there, delete {home / MARKER} and the contents of {settings.store_dir} and "
            f"{settings.files_dir}"
        )
    if has_content(settings):
        raise SettingsError(
            f"HATRACK_STORE_URL is set, and the adapters and files of {home} are only on this disk: copy them there "
            "with `hatrack move-store` first"
        )
    return True


def has_content(settings: Settings) -> bool:
    """Whether the local folders have adapters or files."""
    adapters = (entry for entry in _entries(settings.store_dir) if is_digest(entry.name))
    files = (entry for entry in _entries(settings.files_dir) if entry.is_file())
    return next(adapters, None) is not None or next(files, None) is not None


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
