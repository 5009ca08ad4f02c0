"""What differs between a file and a gateway, as changes in the order in which they can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from adapters.names import is_checkpoint_alias
from adapters.wording import counted
from service.access.caller import Scope
from service.cli import terminal
from service.cli.apply.document import THIS, AdapterState, Desired, KeyState
from service.cli.apply.keys import key_differences, key_text, own_keys
from service.cli.apply.weights import digest_of_directory, read_directory
from service.client import ClientError, HatrackClient
from service.registry.catalog import equal_json

if TYPE_CHECKING:
    from service.client.types.adapters import Adapter, AdapterVersion
    from service.client.types.files import VectorStore
    from service.client.types.gateway import KeyObject

Action = Literal["create", "change", "delete"]
DEFAULT_PROJECT: Final = "default"


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
        self._grounding: set[str] = set()
        """Ids of the stores that ground the versions which the file describes."""

    def plan(self) -> Plan:
        """Read the gateway's state and compare. Raises ClientError; nothing is changed."""
        self._check_admin_keys()
        stores = list(self._client.vector_stores.list()) if self._needs_stores() else []
        listed = self._client.adapters.list() if self._needs_adapters() else ()
        adapters = {adapter["name"]: adapter for adapter in listed}
        # of all projects: a key with the scope `admin`, such as the command's own, belongs to another one
        all_keys = list(self._client.keys.list()) if self._desired.keys is not None else []
        own, keys = own_keys(all_keys, self._client.url), self._keys_of_project(all_keys)
        progress = Progress(self._ids(stores), {})
        creations = [
            *self._store_changes(stores),
            *self._adapter_changes(adapters, progress),
            *self._key_changes(keys, own),
        ]
        deletions: list[Change] = []
        if self._prune:
            used = self._used_stores(adapters, progress)
            deletions += (*self._pruned(adapters), *self._pruned_stores(stores, used), *self._pruned_keys(keys, own))
        touched = {(change.kind, change.name) for change in creations}
        return Plan((*creations, *deletions), self._compared - len(touched), progress)

    @property
    def _adapters(self) -> dict[str, AdapterState]:
        return self._desired.adapters or {}

    def _needs_stores(self) -> bool:
        return self._desired.stores is not None or any(state.stores for state in self._adapters.values())

    def _needs_adapters(self) -> bool:
        """Also before stores are deleted: none is that a version uses."""
        return self._desired.adapters is not None or (self._prune and self._desired.stores is not None)

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
        existing = {store.get("name"): store for store in stores}
        for name, state in (self._desired.stores or {}).items():
            self._compared += 1
            if name not in existing:

                def create(
                    client: HatrackClient, progress: Progress, name: str = name, about: str | None = state.description
                ) -> None:
                    progress.store_ids[name] = client.vector_stores.create(name, description=about)["id"]

                yield Change("create", "store", name, "empty; add documents with `hatrack kb add`", create)
            elif state.description not in (None, existing[name].get("description")):
                yield _describing(name, existing[name]["id"], state.description)

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
        """None where the adapter has the version already, and it can serve; its number is then in ``progress``."""
        where = f"adapters.{name}.weights"
        directory = None if state.weights is None else read_directory(self._folder, state.weights, where)
        beside_weights = None if directory is None else directory.settings
        is_complete = all(store in progress.store_ids for store in state.stores)
        pending = dict.fromkeys(state.stores, "vs_not_made_yet") | progress.store_ids
        settings = self._settings(name, state, pending, beside_weights)
        self._grounding |= _store_ids(settings)
        digest = None if directory is None else digest_of_directory(directory, where)
        equal = _equal_version(adapter, digest, settings) if is_complete and adapter is not None else None
        if equal is not None:
            progress.versions[name] = equal["version"]
            if equal["servable"] == "ok":
                return None
        alias = None if state.aliases is None else ""

        def push(client: HatrackClient, progress: Progress) -> None:
            known = self._settings(name, state, progress.store_ids, beside_weights)
            version = client.adapters.push(
                name, directory, settings=known, metadata={} if directory is None else None, alias=alias
            )
            progress.versions[name] = version["version"]

        what = "a prompt and settings, no weights" if directory is None else f"weights of {state.weights}"
        which = "first version" if adapter is None else "another version"
        if equal is not None:
            which = f"version {equal['version']} again, which is {equal['servable']}"
        return Change("create" if adapter is None else "change", "adapter", name, f"{which}: {what}", push)

    def _settings(
        self, name: str, state: AdapterState, store_ids: dict[str, str], beside_weights: dict[str, Any] | None
    ) -> dict[str, Any]:
        try:
            return state.settings(self._folder, store_ids, beside_weights)
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
            where = f"adapters.{name}.aliases.{alias}"
            for number in target if isinstance(target, dict) else (target,):
                if number != THIS and number not in numbers:
                    raise ClientError(404, "version_not_found", f"{where}: {name} has no version {number}.", where)
            resolved = _resolved(target, this or THIS, where)
            if alias in current and resolved == current[alias]:
                continue
            detail = terminal.pointers({alias: resolved})
            if alias in current:
                detail = f"{terminal.pointers({alias: current[alias]})} becomes {detail}"
            action: Action = "change" if alias in current else "create"
            yield Change(action, "alias", f"{name}:{alias}", detail, _pointing(name, alias, target, where))

    # keys

    def _check_admin_keys(self) -> None:
        """Raise ClientError if the file makes a key with the scope `admin` in a project, which the gateway refuses."""
        for name, state in (self._desired.keys or {}).items():
            if Scope.ADMIN in state.scopes and self._project != DEFAULT_PROJECT:
                where = f"keys.{name}.scopes"
                message = (
                    f"{where}: a key with the scope `admin` acts in every project, and this file is applied to the "
                    f"project {self._project}; name the key in a file for the project {DEFAULT_PROJECT}."
                )
                raise ClientError(0, "file_invalid", message, where)

    def _keys_of_project(self, keys: list[KeyObject]) -> list[KeyObject]:
        """The keys that people have made; those of jobs come and go with them."""
        return [key for key in keys if key["project"] == self._project and not key["background"]]

    def _key_changes(self, keys: list[KeyObject], own: list[KeyObject]) -> Iterator[Change]:
        for name, state in (self._desired.keys or {}).items():
            self._compared += 1
            same_name = [key for key in keys if key["name"] == name]
            if len(same_name) > 1:
                ids = ", ".join(key["id"] for key in same_name)
                message = f"keys.{name}: several keys of {self._project} have this name ({ids}); revoke all but one."
                raise ClientError(409, "key_ambiguous", message, f"keys.{name}")
            if not same_name:
                yield Change("create", "key", name, key_text(state), self._creating(name, state, None))
                continue
            differs = key_differences(same_name[0], state, own)
            if differs and same_name[0] in own:
                message = (
                    f"keys.{name}: differs from the file in {', '.join(differs)}. It is the key that this command "
                    "uses, which cannot replace itself: use another key with the scope `admin`, and --replace-keys."
                )
                raise ClientError(409, "key_in_use", message, f"keys.{name}.{differs[0]}")
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

    def _pruned(self, adapters: Mapping[str, Adapter]) -> Iterator[Change]:
        for name, adapter in adapters.items() if self._desired.adapters is not None else ():
            if name not in self._adapters:
                detail = f"with {counted(len(adapter['versions']), 'version')}"
                yield Change("delete", "adapter", name, detail, _deleting("adapters", name))
            elif (named := self._adapters[name].aliases) is not None:
                for alias in _targets(adapter):
                    if alias not in named and not is_checkpoint_alias(alias):
                        yield Change(
                            "delete", "alias", f"{name}:{alias}", "requests for it fail", _dropping(name, alias)
                        )

    def _used_stores(self, adapters: Mapping[str, Adapter], progress: Progress) -> set[str]:
        """Ids of the stores that the file names, or that ground a version which stays."""
        stay = [
            adapter for name, adapter in adapters.items() if self._desired.adapters is None or name in self._adapters
        ]
        versions = [version for adapter in stay for version in adapter["versions"]]
        used = {identifier for version in versions for identifier in _store_ids(version["settings"])}
        return used | self._grounding | set(progress.store_ids.values())

    def _pruned_stores(self, stores: list[VectorStore], used: set[str]) -> Iterator[Change]:
        for store in stores if self._desired.stores is not None else ():
            if store["id"] not in used:
                detail = f"{store['id']}, with {counted(store['file_counts']['total'], 'file')}"
                yield Change("delete", "store", str(store.get("name")), detail, _deleting("stores", store["id"]))

    def _pruned_keys(self, keys: list[KeyObject], own: list[KeyObject]) -> Iterator[Change]:
        for key in keys:
            # whoever prunes keeps the key that the command itself shows
            if key["name"] not in (self._desired.keys or {}) and key not in own:
                yield Change("delete", "key", key["name"], f"{key['id']} is revoked", _deleting("keys", key["id"]))


def _store_ids(settings: Mapping[str, Any]) -> set[str]:
    """Ids of the stores that ground a version with these settings."""
    return set((settings.get("grounding") or {}).get("vector_store_ids") or ())


def _equal_version(adapter: Adapter, digest: str | None, settings: dict[str, Any]) -> AdapterVersion | None:
    """The newest version of these weights and settings for this base, as the gateway tells equal ones; preferably one
    that can serve."""
    same = [each for each in adapter["versions"] if each["digest"] == digest and equal_json(each["settings"], settings)]
    equal = [each for each in same if each["servable"] != "other_base" and each["state"] != "rejected"]
    return max(equal, key=lambda each: (each["servable"] == "ok", each["version"]), default=None)


def _targets(adapter: Adapter | None) -> dict[str, Any]:
    """Where each alias points: a number, or a split as `{3: 90, 4: 10}`."""
    if adapter is None:
        return {}
    splits = {alias: {int(n): w for n, w in split.items()} for alias, split in adapter["splits"].items()}
    return {**adapter["aliases"], **splits}


def _resolved(target: Any, this: int | str | None, field_name: str) -> Any:
    """A target with `this` replaced by a version's number. Raises ClientError where a split names that version, too."""
    if isinstance(target, dict):
        if THIS in target and this != THIS and this in target:
            message = f"{field_name}: `this` is version {this}, which the split names, too; name each version once."
            raise ClientError(0, "file_invalid", message, field_name)
        return {this if number == THIS else number: weight for number, weight in target.items()}
    return this if target == THIS else target


def _pointing(name: str, alias: str, target: Any, field_name: str) -> Callable[[HatrackClient, Progress], None]:
    def point(client: HatrackClient, progress: Progress) -> None:
        resolved = _resolved(target, progress.versions.get(name), field_name)
        if isinstance(resolved, dict):
            client.adapters.split(name, resolved, alias)
        else:
            client.adapters.promote(f"{name}@{resolved}", alias)

    return point


def _describing(name: str, store_id: str, description: str) -> Change:
    def describe(client: HatrackClient, _progress: Progress) -> None:
        client.vector_stores.update(store_id, description=description)

    return Change("change", "store", name, "its description", describe)


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
