"""What differs between a file and a gateway, as changes in the order in which they can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from adapters.errors import AdapterError
from adapters.names import is_checkpoint_alias
from service.cli import terminal
from service.cli.apply.document import THIS, AdapterState, Desired, KeyState
from service.client import AdapterDirectory, ClientError, HatrackClient
from service.client.settings import ClientSettings
from service.client.upload import file_sha256

if TYPE_CHECKING:
    from service.client.types.adapters import Adapter, AdapterVersion
    from service.client.types.files import VectorStore
    from service.client.types.gateway import KeyObject

Action = Literal["create", "change", "delete"]
DEFAULT_PROJECT: Final = "default"
ANY_RANK: Final = 1 << 16


@dataclass
class Progress:
    """What the changes that were made have yielded, for those that follow."""

    store_ids: dict[str, str]
    versions: dict[str, int]
    """The version of each adapter that the file describes, once it is there."""
    secrets: dict[str, str] = field(default_factory=dict)
    """The new keys, by name."""
    made: int = 0
    """How many changes were made."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, and how it is made to go away: ``make`` raises ClientError."""

    action: Action
    kind: Literal["store", "adapter", "alias", "pin", "key"]
    name: str
    detail: str
    make: Callable[[HatrackClient, Progress], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes, and how many things are as they should be."""

    changes: tuple[Change, ...]
    unchanged: int
    progress: Progress


class Planner:
    """Compares a file with what a gateway has.

    Args:
        folder: What paths in the file are relative to.
        prune: Also delete what the file's sections do not name.
        replace_keys: Replace keys that differ, which cannot be changed; otherwise they are an error.
    """

    def __init__(
        self, client: HatrackClient, desired: Desired, folder: Path, *, prune: bool, replace_keys: bool
    ) -> None:
        self._client, self._desired, self._folder = client, desired, folder
        self._prune, self._replace_keys = prune, replace_keys
        self._project = desired.project or client.project or DEFAULT_PROJECT
        self._compared = 0
        self._changed: set[tuple[str, str]] = set()

    def plan(self) -> Plan:
        """Read the gateway's state and compare. Raises ClientError; nothing is changed."""
        stores = list(self._client.vector_stores.list()) if self._needs_stores() else []
        listed = self._client.adapters.list() if self._desired.adapters is not None else ()
        adapters = {adapter["name"]: adapter for adapter in listed}
        keys = self._keys_of_project() if self._desired.keys is not None else []
        progress = Progress(self._ids(stores), {})
        creations = [*self._store_changes(stores), *self._adapter_changes(adapters, progress), *self._key_changes(keys)]
        deletions = [*self._pruned(stores, adapters, keys)] if self._prune else []
        changes = (*creations, *deletions)
        touched = {(change.kind, change.name) for change in creations}
        return Plan(changes, self._compared - len(touched), progress)

    @property
    def _adapters(self) -> dict[str, AdapterState]:
        return self._desired.adapters or {}

    def _needs_stores(self) -> bool:
        return self._desired.stores is not None or any(state.stores for state in self._adapters.values())

    def _ids(self, stores: list[VectorStore]) -> dict[str, str]:
        """The ids of the stores that the file names; raises ClientError where a name is not one store's."""
        named = {*(self._desired.stores or {}), *(store for state in self._adapters.values() for store in state.stores)}
        ids: dict[str, str] = {}
        for name in sorted(named):
            found = [store["id"] for store in stores if store.get("name") == name]
            if len(found) > 1:
                message = f"stores.{name}: several stores have this name ({', '.join(found)}); delete all but one."
                raise ClientError(409, "vector_store_ambiguous", message, f"stores.{name}")
            if not found and name not in (self._desired.stores or {}):
                message = f"adapters: no store is named {name}; name it under `stores` to create it."
                raise ClientError(404, "vector_store_not_found", message, "adapters")
            ids |= {name: found[0]} if found else {}
        return ids

    # stores

    def _store_changes(self, stores: list[VectorStore]) -> Iterator[Change]:
        existing = {store.get("name") for store in stores}
        for name, state in (self._desired.stores or {}).items():
            self._compared += 1
            if name not in existing:

                def create(
                    client: HatrackClient, progress: Progress, name: str = name, about: str | None = state.description
                ) -> None:
                    progress.store_ids[name] = client.vector_stores.create(name, description=about)["id"]

                yield Change("create", "store", name, "empty; add documents with `hatrack kb add`", create)

    # adapters

    def _adapter_changes(self, adapters: Mapping[str, Adapter], progress: Progress) -> Iterator[Change]:
        for name, state in self._adapters.items():
            adapter = adapters.get(name)
            if adapter is None and not state.describes_a_version:
                message = f"adapters.{name}: there is no such adapter; describe a version by weights or settings."
                raise ClientError(404, "adapter_not_found", message, f"adapters.{name}")
            if state.describes_a_version:
                self._compared += 1
                pushed = self._version_change(name, state, adapter, progress)
                if pushed is not None:
                    yield pushed
            yield from self._alias_changes(name, state, adapter, progress)
            if state.pinned is not None:
                self._compared += 1
                if state.pinned != bool(adapter and adapter["pinned"]):
                    yield _pin_change(name, state.pinned)

    def _version_change(
        self, name: str, state: AdapterState, adapter: Adapter | None, progress: Progress
    ) -> Change | None:
        """None where the adapter has the version already, whose number is then in ``progress``."""
        directory = None if state.weights is None else AdapterDirectory.read(self._folder / state.weights)
        is_complete = all(store in progress.store_ids for store in state.stores)
        pending = dict.fromkeys(state.stores, "vs_not_made_yet") | progress.store_ids
        settings = self._settings(name, state, pending)
        digest = None if directory is None else _digest(directory, f"adapters.{name}.weights")
        if is_complete and adapter is not None:
            number = _equal_version(adapter, digest, settings)
            if number is not None:
                progress.versions[name] = number
                return None
        alias = None if state.aliases is None else ""

        def push(client: HatrackClient, progress: Progress) -> None:
            known = self._settings(name, state, progress.store_ids)
            version = client.adapters.push(
                name, directory, settings=known, metadata={} if directory is None else None, alias=alias
            )
            progress.versions[name] = version["version"]

        what = "a prompt and settings, no weights" if directory is None else f"weights of {state.weights}"
        first = "first version: " if adapter is None else "another version: "
        return Change("create" if adapter is None else "change", "adapter", name, first + what, push)

    def _settings(self, name: str, state: AdapterState, store_ids: dict[str, str]) -> dict[str, Any]:
        try:
            return state.settings(self._folder, store_ids)
        except ClientError as error:
            param = f"adapters.{name}.{error.param}" if error.param else f"adapters.{name}"
            raise ClientError(0, error.code, f"adapters.{name}: {error.message}", param) from error

    def _alias_changes(
        self, name: str, state: AdapterState, adapter: Adapter | None, progress: Progress
    ) -> Iterator[Change]:
        current = _targets(adapter)
        numbers = {version["version"] for version in adapter["versions"]} if adapter else set()
        this = progress.versions.get(name)
        for alias, target in (state.aliases or {}).items():
            self._compared += 1
            for number in target if isinstance(target, dict) else (target,):
                if number != THIS and number not in numbers:
                    where = f"adapters.{name}.aliases.{alias}"
                    raise ClientError(404, "version_not_found", f"{where}: {name} has no version {number}.", where)
            if alias in current and _resolved(target, this or THIS) == current[alias]:
                continue
            detail = terminal.pointers({alias: _resolved(target, this or THIS)})
            if alias in current:
                detail = f"{terminal.pointers({alias: current[alias]})} becomes {detail}"
            action: Action = "change" if alias in current else "create"
            yield Change(action, "alias", f"{name}:{alias}", detail, _pointing(name, alias, target))

    # keys

    def _keys_of_project(self) -> list[KeyObject]:
        """The keys that people have made; those of jobs come and go with them."""
        return [key for key in self._client.keys.list(self._project) if not key["background"]]

    def _key_changes(self, keys: list[KeyObject]) -> Iterator[Change]:
        for name, state in (self._desired.keys or {}).items():
            self._compared += 1
            same_name = [key for key in keys if key["name"] == name]
            if len(same_name) > 1:
                ids = ", ".join(key["id"] for key in same_name)
                message = f"keys.{name}: several keys of {self._project} have this name ({ids}); revoke all but one."
                raise ClientError(409, "key_ambiguous", message, f"keys.{name}")
            if not same_name:
                yield Change("create", "key", name, _key_text(state), self._creating(name, state, None))
                continue
            differs = _key_differences(same_name[0], state)
            if differs and not self._replace_keys:
                message = (
                    f"keys.{name}: differs from the file in {', '.join(differs)}. A key cannot be changed: with "
                    "--replace-keys it is revoked, and another takes its place."
                )
                raise ClientError(409, "key_differs", message, f"keys.{name}.{differs[0]}")
            if differs:
                detail = f"revoked and replaced, for its {', '.join(differs)}; whoever uses it needs the new one"
                yield Change("change", "key", name, detail, self._creating(name, state, same_name[0]["id"]))

    def _creating(self, name: str, state: KeyState, replaced: str | None) -> Callable[[HatrackClient, Progress], None]:
        def create(client: HatrackClient, progress: Progress) -> None:
            made = client.keys.create(
                name,
                project=self._project,
                scopes=[scope.value for scope in state.scopes],
                adapters=None if state.adapters is None else list(state.adapters),
                stores=None if state.stores is None else list(state.stores),
                filters=state.filters or None,
                limits=state.limits.model_dump(exclude_none=True) or None,
                expires_at=state.expires_at_s,
            )
            progress.secrets[name] = made["key"]
            if replaced is not None:
                client.keys.delete(replaced)

        return create

    # what the file does not name

    def _pruned(
        self, stores: list[VectorStore], adapters: Mapping[str, Adapter], keys: list[KeyObject]
    ) -> Iterator[Change]:
        for name, adapter in adapters.items():
            if name not in self._adapters:
                detail = f"with {len(adapter['versions'])} versions"
                yield Change("delete", "adapter", name, detail, _deleting("adapters", name))
            elif (named := self._adapters[name].aliases) is not None:
                for alias in _targets(adapter):
                    if alias not in named and not is_checkpoint_alias(alias):
                        yield Change(
                            "delete", "alias", f"{name}:{alias}", "requests for it fail", _dropping(name, alias)
                        )
        for store in stores:
            if self._desired.stores is not None and store.get("name") not in self._desired.stores:
                detail = f"{store['id']}, with {store['file_counts']['total']} files"
                yield Change("delete", "store", str(store.get("name")), detail, _deleting("stores", store["id"]))
        own = ClientSettings().gateway_key(self._client.url) or ""
        for key in keys:
            # whoever prunes keeps the key that the command itself shows
            if key["name"] not in (self._desired.keys or {}) and not own.startswith(key["hint"].rstrip("…")):
                yield Change("delete", "key", key["name"], f"{key['id']} is revoked", _deleting("keys", key["id"]))


def _equal_version(adapter: Adapter, digest: str | None, settings: dict[str, Any]) -> int | None:
    """The newest version of these weights and settings that this base can serve, as the gateway tells equal ones."""
    equal = [version["version"] for version in adapter["versions"] if _is_equal(version, digest, settings)]
    return max(equal, default=None)


def _is_equal(version: AdapterVersion, digest: str | None, settings: dict[str, Any]) -> bool:
    same = version["digest"] == digest and version["settings"] == settings
    return same and version["servable"] != "other_base" and version["state"] != "rejected"


def _digest(directory: AdapterDirectory, field_name: str) -> str:
    """The digest that the gateway will give to these weights. Raises ClientError."""
    from adapters.inspect import modules_in  # numpy
    from adapters.manifest import Manifest
    from adapters.store import digest_of

    try:
        manifest = Manifest.parse(directory.config.read_bytes(), max_rank=ANY_RANK)
        return digest_of(manifest.resolve(modules_in(directory.weights)).canonical(), file_sha256(directory.weights))
    except AdapterError as error:
        raise ClientError(0, error.code, f"{field_name}: {error.message}", field_name) from error
    except OSError as error:
        raise ClientError(
            0, "not_readable", f"{field_name}: {error.filename}: {error.strerror}.", field_name
        ) from error


def _targets(adapter: Adapter | None) -> dict[str, Any]:
    """Where each alias points: a number, or a split as `{3: 90, 4: 10}`."""
    if adapter is None:
        return {}
    splits = {alias: {int(n): w for n, w in split.items()} for alias, split in adapter["splits"].items()}
    return {**adapter["aliases"], **splits}


def _resolved(target: Any, this: int | str | None) -> Any:
    """A target with `this` replaced by a version's number."""
    if isinstance(target, dict):
        return {this if number == THIS else number: weight for number, weight in target.items()}
    return this if target == THIS else target


def _pointing(name: str, alias: str, target: Any) -> Callable[[HatrackClient, Progress], None]:
    def point(client: HatrackClient, progress: Progress) -> None:
        resolved = _resolved(target, progress.versions.get(name))
        if isinstance(resolved, dict):
            client.adapters.split(name, resolved, alias)
        else:
            client.adapters.promote(f"{name}@{resolved}", alias)

    return point


def _pin_change(name: str, pinned: bool) -> Change:
    def pin(client: HatrackClient, _progress: Progress) -> None:
        (client.adapters.pin if pinned else client.adapters.unpin)(name)

    return Change("change", "pin", name, "pinned" if pinned else "no longer pinned", pin)


def _deleting(
    group: Literal["keys", "adapters", "stores"], identifier: str
) -> Callable[[HatrackClient, Progress], None]:
    def delete(client: HatrackClient, _progress: Progress) -> None:
        if group == "keys":
            client.keys.delete(identifier)
        elif group == "stores":
            client.vector_stores.delete(identifier)
        else:
            client.adapters.delete(identifier, force=True)

    return delete


def _dropping(name: str, alias: str) -> Callable[[HatrackClient, Progress], None]:
    def drop(client: HatrackClient, _progress: Progress) -> None:
        client.adapters.delete_alias(name, alias)

    return drop


def _key_text(state: KeyState) -> str:
    words = [" ".join(scope.value for scope in state.scopes)]
    words += [f"{name}={value}" for name, value in state.limits.model_dump(exclude_none=True).items()]
    words += [f"expires {state.expires_at}"] if state.expires_at else []
    return ", ".join(words)


def _key_differences(key: KeyObject, state: KeyState) -> list[str]:
    """The fields in which a key is not what the file says."""
    globs = {name: None if key[name] is None else tuple(key[name] or ()) for name in ("adapters", "stores")}
    has = {
        "scopes": set(key["scopes"]),
        **globs,
        "filters": dict(key["filters"] or {}),
        "limits": {name: limit for name, limit in (key["limits"] or {}).items() if limit is not None},
        "expires_at": key["expires_at"],
    }
    wants = {
        "scopes": {scope.value for scope in state.scopes},
        "adapters": state.adapters,
        "stores": state.stores,
        "filters": state.filters,
        "limits": state.limits.model_dump(exclude_none=True),
        "expires_at": state.expires_at_s,
    }
    return [name for name, wanted in wants.items() if has[name] != wanted]
