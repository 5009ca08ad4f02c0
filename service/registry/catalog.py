"""What the data path knows of the registry: an immutable snapshot in memory, replaced whole at every change.

Resolving a model's name reads no disk and takes no lock: a request sees one state of the registry, whatever moves
meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import AdapterError
from adapters.names import DEFAULT_ALIAS, parse_reference
from service.access.caller import Caller
from service.errors import BadRequest, Conflict, ModelNotFound, NoLiveVersion
from service.grounding.config import GroundingSettings
from service.registry.split import Aim, position_of, share_of


class Servable(StrEnum):
    """Whether a ready version can serve now, and if not, why; computed, never stored."""

    OK = "ok"
    OTHER_BASE = "other_base"
    DAMAGED = "damaged"
    CORRUPT = "corrupt"


class VersionSettings(BaseModel):
    """What belongs to a version beside its weights; changed settings are a new version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system_prompt: str | None = Field(None, min_length=1, max_length=32_768)
    sampling: Mapping[str, Any] = Field(default_factory=dict)
    """Defaults of request fields (temperature, top_p …); the request's own values win."""
    grounding: GroundingSettings | None = None
    """What is retrieved for each request that does not say otherwise."""

    def stored(self) -> dict[str, Any]:
        """As JSON; a version without grounding says nothing of it, as those did that are older than grounding."""
        return self.model_dump(mode="json", exclude=None if self.grounding is not None else {"grounding"})


NO_SETTINGS = VersionSettings()


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A ready version, as the data path sees it."""

    number: int
    digest: str
    settings: VersionSettings
    servable: Servable
    created_at: int


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """An adapter's name with its ready versions and its aliases (alias → version number, or a split over several).

    ``pinned_at`` (Unix seconds) says since when its live version is kept warm; None: it is not.
    """

    name: str
    created_at: int
    versions: Mapping[int, VersionEntry]
    aliases: Mapping[str, Aim]
    pinned_at: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's model name stands for.

    ``engine_model`` is what the engine is asked for: the digest, or the base's served name.
    """

    label: str
    engine_model: str
    adapter: str | None = None
    version: int | None = None
    digest: str | None = None
    settings: VersionSettings = NO_SETTINGS

    @property
    def name(self) -> str:
        """``brand-voice@3``, or the base's name."""
        return f"{self.adapter}@{self.version}" if self.adapter else self.label


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter and what a name of it points to; ``alias`` is empty where a version was named."""

    entry: AdapterEntry
    alias: str
    aim: Aim


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All adapters by (project, name)."""

    adapters: Mapping[tuple[str, str], AdapterEntry] = field(default_factory=lambda: MappingProxyType({}))


class Catalog:
    """Holds the current snapshot; the registry replaces it, the data path reads it."""

    def __init__(self, base_name: str, base_created_at: int) -> None:
        self.base_name = base_name
        self.base_created_at = base_created_at
        self.snapshot = Snapshot()

    def replace(self, snapshot: Snapshot) -> None:
        """Make ``snapshot`` what the next request sees."""
        self.snapshot = snapshot

    def resolve(self, caller: Caller, model: str, adapter: str | None = None, *, sticky: str | None = None) -> Target:
        """The target that a request's ``model`` (and ``adapter``) names.

        The base needs no glob: a key that is bound to some adapters may ask what they stand on.

        Args:
            caller: Whose project and whose globs count.
            sticky: An id that keeps its version while an alias is split; None: the version is drawn.

        Raises:
            BadRequest: ``adapter`` stands beside a model that is not the base.
            ModelNotFound: There is no such model for this caller.
            NoLiveVersion: The adapter has no ``live`` alias.
            Conflict: The version (of a split: the one that was drawn) cannot serve now; the message says why.
        """
        param, wanted = "model", model
        if adapter is not None:
            if model != self.base_name:
                raise BadRequest(
                    f"`adapter` goes with the base's name in `model` ({self.base_name!r}), found {model[:100]!r}",
                    param="adapter",
                )
            param, wanted = "adapter", adapter
        elif model == self.base_name:
            return Target(label=model, engine_model=self.base_name)
        found = self.find(caller, wanted, param=param)
        number = found.aim
        if not isinstance(number, int):
            number = share_of(number, position_of(caller.project, found.entry.name, found.alias, sticky))
        return self._target(found.entry, number, label=wanted, param=param)

    def find(self, caller: Caller, wanted: str, *, param: str = "model") -> Found:
        """The adapter that a name means to this caller, and what it points to.

        Raises:
            ModelNotFound: There is none, or the key's globs do not match it: nobody can tell which.
            NoLiveVersion: It has no ``live`` alias.
        """
        try:
            reference = parse_reference(wanted)
        except AdapterError:
            raise _missing(wanted, param) from None
        entry = self.snapshot.adapters.get((caller.project, reference.name))
        if entry is None or not caller.may_use(reference.name):
            raise _missing(wanted, param)
        if reference.version is not None:
            if reference.version not in entry.versions:
                raise _missing(wanted, param)
            return Found(entry, "", reference.version)
        alias = reference.alias or DEFAULT_ALIAS
        aim = entry.aliases.get(alias)
        if aim is not None:
            return Found(entry, alias, aim)
        if alias == DEFAULT_ALIAS:
            raise NoLiveVersion(
                f"the adapter `{entry.name}` has no live version; ask for one as `{entry.name}@<number>` "
                "or promote one",
                param=param,
            )
        raise _missing(wanted, param)

    def _target(self, entry: AdapterEntry, number: int, *, label: str, param: str) -> Target:
        version = entry.versions.get(number)
        if version is None:
            raise _missing(label, param)
        if version.servable is not Servable.OK:
            raise Conflict(
                f"the version `{entry.name}@{version.number}` cannot serve now: {version.servable.value}",
                param=param,
                code=f"version_{version.servable.value}",
            )
        return Target(
            label=label,
            engine_model=version.digest,
            adapter=entry.name,
            version=version.number,
            digest=version.digest,
            settings=version.settings,
        )

    def served(self, caller: Caller) -> list[AdapterEntry]:
        """The adapters with a live version that the caller may use, oldest first."""
        found = [
            entry
            for (owner, name), entry in self.snapshot.adapters.items()
            if owner == caller.project and DEFAULT_ALIAS in entry.aliases and caller.may_use(name)
        ]
        return sorted(found, key=lambda entry: (entry.created_at, entry.name))


def _missing(wanted: str, param: str) -> ModelNotFound:
    return ModelNotFound(f"the model `{wanted[:100]}` does not exist or you may not use it", param=param)
