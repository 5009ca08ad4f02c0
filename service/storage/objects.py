"""What of an object store the database names, what it misses there, and what nothing names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from adapters.names import is_digest
from service.config import Settings
from service.errors import SettingsError, StoreUnavailable
from service.files import blob_store
from service.objects import adapters as stored_adapters
from service.objects.client import NoSuchObject, ObjectStore, StoredObject, open_object_store
from service.storage.errors import BackupError
from service.storage.references import References


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a store at one moment: of adapters by digest, and files by id."""

    adapters: dict[str, list[StoredObject]]
    files: dict[str, StoredObject]

    def missing(self, named: References) -> list[str]:
        """What the database names and the store does not have, as names of objects, sorted."""
        there = {each.name for objects in self.adapters.values() for each in objects}
        wanted = {name for digest in named.digests for name in stored_adapters.object_names(digest)}
        lost = {blob_store.object_name(file_id) for file_id in named.files.keys() - self.files.keys()}
        return sorted((wanted - there) | lost)

    def unnamed(self, named: References, oldest: float) -> Iterator[tuple[str, list[StoredObject]]]:
        """What nothing names, and was last written before ``oldest`` (Unix seconds): its kind and its objects."""
        for digest, objects in sorted(self.adapters.items()):
            if digest not in named.digests and _is_older(objects, oldest):
                yield "adapter", objects
        for file_id, each in sorted(self.files.items()):
            if file_id not in named.files and _is_older([each], oldest):
                yield "file", [each]


def opened(settings: Settings) -> ObjectStore | None:
    """The object store of the settings; None if there is none. Raises BackupError."""
    try:
        return open_object_store(settings)
    except SettingsError as error:
        raise BackupError(str(error)) from error


def listed(objects: ObjectStore) -> Listing:
    """List a store. Raises BackupError where it does not answer."""
    found = Listing({}, {})
    try:
        for each in objects.list(stored_adapters.FOLDER):
            digest = each.name.split("/")[1]
            if is_digest(digest):
                found.adapters.setdefault(digest, []).append(each)
        for each in objects.list(blob_store.FOLDER):
            found.files[each.name.partition("/")[2]] = each
    except StoreUnavailable as error:
        raise BackupError(f"the object store {objects.url} cannot be listed: {error.reason}") from error
    return found


def remove_if_older(objects: ObjectStore, names: Collection[str], oldest: float) -> bool:
    """Remove what nothing names, unless it was written again since it was listed: a push of the same adapter.

    Of an adapter the config goes first: without it, there is none. Each object is looked at again right before it goes,
    as a push may have written it meanwhile; it writes again what went before (``put_adapter``).

    Raises:
        BackupError: The store does not answer.
    """
    try:
        if not all(_is_gone_or_older(objects, name, oldest) for name in names):
            return False
        for name in sorted(names):
            if not _is_gone_or_older(objects, name, oldest):
                return False
            objects.delete([name])
    except StoreUnavailable as error:
        raise BackupError(f"the object store {objects.url} removes nothing now: {error.reason}") from error
    return True


def _is_gone_or_older(objects: ObjectStore, name: str, oldest: float) -> bool:
    try:
        return _is_older([objects.stat(name)], oldest)
    except NoSuchObject:
        return True


def _is_older(objects: list[StoredObject], oldest: float) -> bool:
    return max(each.modified_at for each in objects) <= oldest
