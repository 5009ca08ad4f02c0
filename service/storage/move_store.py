"""Moves a home's adapters and files into an object store. The home is held to the store once all is found there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.database.postgresql import PostgresServer
from adapters.errors import AdapterError
from adapters.store import CONFIG_FILE, WEIGHTS_FILE, Store
from service.config import Settings
from service.errors import SettingsError, StoreUnavailable
from service.files import blob_store
from service.objects.adapters import object_names, put_adapter
from service.objects.client import ObjectStore
from service.objects.marker import has_content, mark, marked_url
from service.objects.owner import claim, take_over
from service.server.instance import InstanceLock
from service.storage import layout
from service.storage.agreement import require_own
from service.storage.archive import Progress
from service.storage.errors import BackupError
from service.storage.objects import Listing, listed, opened
from service.storage.references import References, references

MAX_SHOWN: Final = 5
"""Problems that are named; of more there is the number."""


@dataclass(frozen=True, slots=True)
class MovedContent:
    """What is in the object store now; ``copied`` of these were not there before. Sizes in bytes.

    ``missing``: objects that the database names and that a store which was taken over does not have.
    """

    url: str
    adapters: int
    files: int
    bytes: int
    copied: int
    missing: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    """An adapter (the paths of config and weights), or a file (its path and SHA-256), that the database names."""

    name: str
    paths: tuple[Path, ...]
    objects: tuple[str, ...]
    sha256: str | None = None


def move_content(settings: Settings, progress: Progress, *, takes_over: bool = False) -> MovedContent:
    """Copy what the database names from the home's folders into the object store of the settings.

    It may be killed and run again: what is there already, in its size, is not copied again.

    Args:
        takes_over: Take the prefix from the installation that it belongs to. Where this home's content is there
            already, or it has none, that is all that is done.

    Raises:
        BackupError: A gateway runs, the content is elsewhere already, the store does not answer or belongs to another
            installation, or something is missing or damaged here. The home is as it was.
    """
    objects = opened(settings)
    if objects is None:
        raise BackupError("HATRACK_STORE_URL is not set; it says where adapters and files shall go")
    try:
        lock = InstanceLock(settings.home, "hatrack move-store")
        try:
            if takes_over and (taken := _taken_over(settings, objects)) is not None:
                return taken
            _refuse_marked(settings.home, objects.url)
            (take_over if takes_over else claim)(objects, settings.home)
            return _move(settings, objects, progress)
        finally:
            lock.release()
    except SettingsError as error:
        raise BackupError(str(error)) from error
    except StoreUnavailable as error:
        raise BackupError(f"the object store {objects.url} does not take the content: {error.reason}") from error


def _taken_over(settings: Settings, objects: ObjectStore) -> MovedContent | None:
    """Take a store that has this home's content already; None: it has to be moved there."""
    home = settings.home
    marked = marked_url(home)
    if marked != objects.url and (marked is not None or has_content(settings)):
        return None
    named = _named(settings)
    listing = listed(objects)
    take_over(objects, home)
    mark(home, objects.url)
    missing = len(listing.missing(named))
    return MovedContent(objects.url, len(named.digests), len(named.files), 0, 0, missing)


def _refuse_marked(home: Path, url: str) -> None:
    marked = marked_url(home)
    if marked is not None:
        where = "there already" if marked == url else f"in the object store {marked}"
        raise BackupError(f"the adapters and files of {home} are {where}; nothing was moved")


def _move(settings: Settings, objects: ObjectStore, progress: Progress) -> MovedContent:
    named, before = _named(settings), listed(objects)
    items = list(_items(settings, named))
    sizes = {item: _size(item) for item in items}
    total, done, copied = sum(sizes.values()), 0, 0
    problems = []
    for item in items:
        progress(done, total, f"copying {item.name[:20]}")
        done += sizes[item]
        if not _is_there(item, before):
            try:
                _copy(settings, item, objects)
                copied += 1
            except (AdapterError, OSError) as error:
                problems.append(f"{item.name}: {error}")
    if problems:
        more = f", and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise BackupError(
            f"missing or damaged here: {'; '.join(problems[:MAX_SHOWN])}{more}. Restore them, or start the gateway "
            "without HATRACK_STORE_URL and delete them, and run this again: the rest is copied, and the home still "
            "uses its folders"
        )
    missing = listed(objects).missing(named)
    if missing:
        raise BackupError(
            f"{len(missing)} objects did not arrive, such as {missing[0]}; the home still uses its folders"
        )
    mark(settings.home, objects.url)
    progress(total, total, "copied")
    return MovedContent(objects.url, len(named.digests), len(named.files), total, copied)


def _named(settings: Settings) -> References:
    require_own(settings)
    database, _ = layout.databases(settings)[layout.DATABASE]
    source = database if isinstance(database, PostgresServer) else settings.home / layout.DATABASE
    if isinstance(source, Path) and not source.is_file():
        raise BackupError(f"there is nothing to move: {source} does not exist (HATRACK_HOME)")
    return references(source)


def _items(settings: Settings, named: References) -> Iterator[_Item]:
    for digest in sorted(named.digests):
        folder = settings.store_dir / digest
        yield _Item(digest, (folder / CONFIG_FILE, folder / WEIGHTS_FILE), object_names(digest))
    for file_id, sha256 in sorted(named.files.items()):
        yield _Item(file_id, (settings.files_dir / file_id,), (blob_store.object_name(file_id),), sha256)


def _size(item: _Item) -> int:
    return sum(path.stat().st_size for path in item.paths if path.is_file())


def _is_there(item: _Item, before: Listing) -> bool:
    """Whether an earlier attempt has copied it: nothing else has written under these names."""
    objects = before.adapters.get(item.name) or [each for each in (before.files.get(item.name),) if each is not None]
    sizes = {each.name: each.bytes for each in objects}
    return all(
        path.is_file() and sizes.get(name) == path.stat().st_size
        for name, path in zip(item.objects, item.paths, strict=True)
    )


def _copy(settings: Settings, item: _Item, objects: ObjectStore) -> None:
    """Copy one, once it is verified. Raises AdapterError, OSError, StoreUnavailable."""
    if item.sha256 is None:
        Store(settings.store_dir).verify(item.name)
        config, weights = item.paths
        put_adapter(objects, item.name, config.read_bytes(), weights)
        return
    (path,), (name,) = item.paths, item.objects
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != item.sha256:
            raise OSError("it is not what was uploaded")
    objects.upload(name, path)
