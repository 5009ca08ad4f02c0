"""The data path's view of the registry: an immutable snapshot in memory, replaced as a whole on every change.

Resolving a model name reads no disk and takes no lock, and a request sees one consistent state of the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from adapters.errors import AdapterError
from adapters.names import DEFAULT_ALIAS, MAX_NAME_LENGTH, parse_reference
from service.access.caller import Caller
from service.errors import BadRequest, Conflict, ModelNotFound, NoLiveVersion
from service.grounding.config import GroundingSettings
from service.grounding.template import FRAME_TOKENS, token_upper_bound
from service.registry.split import AliasTarget, position_of, share_of
from service.registry.suggest import FEW, closest, one_character_off


class Servable(StrEnum):
    """Whether a ready version can serve now, or why not; computed, never stored."""

    OK = "ok"
    OTHER_BASE = "other_base"
    DAMAGED = "damaged"
    CORRUPT = "corrupt"

    @property
    def reason(self) -> str:
        """Why it cannot serve, and what to do about it, for an error message; empty if it can."""
        return _REASONS[self]


_REASONS: Final[Mapping[Servable, str]] = {
    Servable.OK: "",
    Servable.OTHER_BASE: (
        "it was proven on a base model that is not served now (`other_base`); train or push it for one that is"
    ),
    Servable.DAMAGED: "its files in the store are missing or damaged (`damaged`); push the same files again",
    Servable.CORRUPT: "it failed in the engine (`corrupt`); use another version, or push it again to prove it again",
}


MAX_TARGETS: Final = 4096
"""Resolved names that are kept until the next change."""
MAX_PROMPT_CHARS: Final = 32_768
"""Characters of a system prompt, or of one text of an example."""
MAX_EXAMPLES: Final = 64
"""Examples in a version's prompt; how many tokens they may have, the base's context decides (`readiness`)."""
ExampleText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS, pattern=r"\S")]


class PromptExample(BaseModel):
    """A question and its answer, shown to the model in every prompt of a version as an earlier turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: ExampleText
    assistant: ExampleText


class VersionSettings(BaseModel):
    """Settings of a version beside its weights; changed settings make a new version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system_prompt: str | None = Field(None, min_length=1, max_length=MAX_PROMPT_CHARS)
    examples: tuple[PromptExample, ...] = Field((), max_length=MAX_EXAMPLES)
    """Turns that stand before the request's own, after its system message (few-shot examples)."""
    sampling: Mapping[str, Any] = Field(default_factory=dict)
    """Defaults of request fields (temperature, top_p …); the request's own values win."""
    grounding: GroundingSettings | None = None
    """The default retrieval for requests without their own grounding field."""

    def stored(self) -> dict[str, Any]:
        """As JSON; what is not set of examples, grounding and its later members is left out, as in versions older than
        it."""
        unset: dict[str, Any] = {name: True for name in ("examples", "grounding") if not getattr(self, name)}
        if self.grounding is not None:
            unset["grounding"] = self.grounding.unset()
        return self.model_dump(mode="json", exclude=unset)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is set: the version would answer as the base does."""
        return not (self.system_prompt or self.examples or self.sampling or self.grounding)

    # made once for each version, not for each request

    @cached_property
    def example_messages(self) -> tuple[dict[str, str], ...]:
        """The examples as chat messages, oldest first; shared by all requests, which must not change them."""
        return tuple(
            {"role": role, "content": text}
            for example in self.examples
            for role, text in (("user", example.user), ("assistant", example.assistant))
        )

    @cached_property
    def example_tokens(self) -> int:
        """An upper bound on the tokens of the examples that holds for nearly all texts; 0 where there are none."""
        return sum(token_upper_bound(message["content"]) + FRAME_TOKENS for message in self.example_messages)


NO_SETTINGS = VersionSettings()


def equal_json(first: object, second: object) -> bool:
    """Whether two parsed JSON values are equal: 1 and 1.0 are, 1 and true are not, which Python takes for equal."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal_json(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(equal_json, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and first == second


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A ready version, as the data path sees it.

    ``digest`` is None for a version without weights. Such a one has a ``flow``: the name under which admission counts
    its requests, unique among all projects; others are counted by their digest. ``base`` is the served name of the base
    that it serves on; empty: the default, or none.
    """

    number: int
    digest: str | None
    settings: VersionSettings
    servable: Servable
    created_at: int
    flow: str | None = None
    base: str = ""


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """An adapter's name with its ready versions and its aliases (alias → version number, or a split over several).

    ``pinned_at`` is the Unix time since which its live version is kept loaded; None: it is not pinned.
    """

    name: str
    created_at: int
    versions: Mapping[int, VersionEntry]
    aliases: Mapping[str, AliasTarget]
    pinned_at: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's model name resolves to.

    ``engine_model`` is the model name sent to the engine: the digest, or the base's served name for the base and for
    versions without weights, whose ``digest`` is None. ``flow``: see `VersionEntry`. ``embeds``: it is the embedder,
    which the engine does not know. ``base`` is the served name of the base that answers; empty: the default.
    """

    label: str
    engine_model: str
    adapter: str | None = None
    version: int | None = None
    digest: str | None = None
    settings: VersionSettings = NO_SETTINGS
    flow: str | None = None
    embeds: bool = False
    base: str = ""

    @property
    def counted_as(self) -> str | None:
        """What admission counts its requests under; None: the base."""
        return self.digest or self.flow

    @property
    def name(self) -> str:
        """``brand-voice@3``, or the base's or the embedder's name."""
        return f"{self.adapter}@{self.version}" if self.adapter else self.label


class ResolvedName(NamedTuple):
    """An adapter and what the requested name points to; ``alias`` is empty if a version was named."""

    entry: AdapterEntry
    alias: str
    target: AliasTarget


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """All adapters by (project, name)."""

    adapters: Mapping[tuple[str, str], AdapterEntry] = field(default_factory=lambda: MappingProxyType({}))


class Catalog:
    """Holds the current snapshot: the registry replaces it, the data path reads it.

    Args:
        base_name: The default base's served name.
        base_created_at: Unix seconds.
        embedder_name: The embedder's served name; None: it answers no requests.
        other_bases: Served names of further bases, and their Unix seconds.
    """

    def __init__(
        self,
        base_name: str,
        base_created_at: int,
        embedder_name: str | None = None,
        other_bases: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.base_name = base_name
        self.bases: Mapping[str, int] = MappingProxyType({base_name: base_created_at, **other_bases})
        """When each base was made (Unix seconds), by its served name; the default first."""
        self.embedder_name = embedder_name
        self.snapshot = CatalogSnapshot()
        self._targets: dict[tuple[str, str], Target] = {}  # of the snapshot, by project and requested model
        self._listeners: list[Callable[[Collection[tuple[str, str]] | None], None]] = []

    def replace(self, snapshot: CatalogSnapshot, changed: Collection[tuple[str, str]] | None = None) -> None:
        """Replace the snapshot, from the next request on.

        Args:
            changed: The adapters (project, name) that are others in it, or not in it any more; None: any may be.
        """
        self.snapshot = snapshot
        self._targets = {}  # after the snapshot: whoever took it before still fills the former
        for listener in self._listeners:
            listener(changed)

    def on_change(self, listener: Callable[[Collection[tuple[str, str]] | None], None]) -> None:
        """Call ``listener`` with what has changed after each change; it must be quick and must not raise."""
        self._listeners.append(listener)

    def resolved(self, caller: Caller, model: str) -> Target | None:
        """What `resolve` returned for the same model, if it would return that again whatever ``sticky`` is."""
        target = self._targets.get((caller.project, model))
        return target if target is None or target.adapter is None or caller.may_use(target.adapter) else None

    def resolve(self, caller: Caller, model: str, adapter: str | None = None, *, sticky: str | None = None) -> Target:
        """Resolve a request's ``model`` (and ``adapter``).

        Globs do not restrict the base and the embedder: every key may use them.

        Args:
            caller: Its project and globs apply.
            sticky: An id that always gets the same version of a split alias; None: a random one.

        Raises:
            BadRequest: ``adapter`` is given with a model that is not the base.
            ModelNotFound: The model does not exist or the caller may not use it.
            NoLiveVersion: The adapter has no ``live`` alias.
            Conflict: The version (of a split, the chosen one) cannot serve now; the message says why.
        """
        param, name, targets = "model", model, self._targets
        if adapter is not None:
            if model not in self.bases:
                bases = " or ".join(repr(base) for base in self.bases)
                raise BadRequest(
                    f"with `adapter`, `model` must be the base model {bases}; got {model[:100]!r}", param="adapter"
                )
            param, name = "adapter", adapter
        elif model in self.bases:
            return Target(label=model, engine_model=model, base=model)
        elif self.is_embedder(caller, model):
            return Target(label=model, engine_model=model, embeds=True)
        resolved = self.find(caller, name, param=param)
        number = resolved.target
        if not isinstance(number, int):
            number = share_of(number, position_of(caller.project, resolved.entry.name, resolved.alias, sticky))
        target = self._target(resolved.entry, number, label=name, param=param)
        if adapter is not None and target.base != model:
            raise BadRequest(
                f"`adapter` is {target.name!r}, which serves on the base {target.base!r}, and `model` is {model!r}",
                param="adapter",
            )
        if adapter is None and isinstance(resolved.target, int):  # not drawn from a split
            if len(targets) >= MAX_TARGETS:
                targets.clear()
            targets[caller.project, model] = target
        return target

    def is_embedder(self, caller: Caller, model: str) -> bool:
        """Whether a name is the embedder's for this caller.

        An adapter that had the name first, in a project where the key may use it, keeps it there.
        """
        if model != self.embedder_name:
            return False
        return (caller.project, model) not in self.snapshot.adapters or not caller.may_use(model)

    def name_for_embedder(self, project: str, name: str) -> str | None:
        """The name that no new adapter of the project can have; None if an adapter has ``name`` already."""
        return None if (project, name) in self.snapshot.adapters else self.embedder_name

    def find(self, caller: Caller, name: str, *, param: str = "model") -> ResolvedName:
        """The adapter that a name refers to for this caller, and what it points to.

        Raises:
            ModelNotFound: It does not exist, or the key's globs do not match it; the error does not reveal which.
            NoLiveVersion: It has no ``live`` alias.
        """
        try:
            reference = parse_reference(name)
        except AdapterError:
            raise _missing(name, param, self.similar(caller, name, *self._models())) from None
        entry = self.snapshot.adapters.get((caller.project, reference.name))
        if entry is None or not caller.may_use(reference.name):
            raise _missing(name, param, self.similar(caller, reference.name, *self._models()))
        if reference.version is not None:
            if reference.version not in entry.versions:
                newest = max(entry.versions, default=None)
                raise _missing(name, param, None if newest is None else f"{entry.name}@{newest}")
            return ResolvedName(entry, "", reference.version)
        alias = reference.alias or DEFAULT_ALIAS
        target = entry.aliases.get(alias)
        if target is not None:
            return ResolvedName(entry, alias, target)
        if alias == DEFAULT_ALIAS:
            raise NoLiveVersion(
                f"the adapter `{entry.name}` has no live version; request a version as `{entry.name}@<number>`, "
                "or promote one",
                param=param,
            )
        similar = closest(alias, entry.aliases)
        raise _missing(name, param, None if similar is None else f"{entry.name}:{similar}")

    def _models(self) -> tuple[str, ...]:
        """The served names of the models that are no adapters."""
        return tuple(self.bases) if self.embedder_name is None else (*self.bases, self.embedder_name)

    def similar(self, caller: Caller, name: str, *others: str) -> str | None:
        """The adapter that the caller may use, or other name, that is most like ``name``; None if none is."""
        adapters = self.snapshot.adapters
        if len(adapters) <= FEW:
            visible = [known for project, known in adapters if project == caller.project and caller.may_use(known)]
            return closest(name[: MAX_NAME_LENGTH + 1], [*others, *visible])

        def usable(edited: str) -> bool:
            return (caller.project, edited) in adapters and caller.may_use(edited)

        return one_character_off(name, usable) or closest(name[: MAX_NAME_LENGTH + 1], others)

    def _target(self, entry: AdapterEntry, number: int, *, label: str, param: str) -> Target:
        version = entry.versions.get(number)
        if version is None:
            raise _missing(label, param)
        if version.servable is not Servable.OK:
            raise Conflict(
                f"the version `{entry.name}@{version.number}` cannot serve now: {version.servable.reason}",
                param=param,
                code=f"version_{version.servable.value}",
            )
        base = version.base or self.base_name
        return Target(
            label=label,
            engine_model=version.digest or base,
            adapter=entry.name,
            version=version.number,
            digest=version.digest,
            settings=version.settings,
            flow=version.flow,
            base=base,
        )

    def served(self, caller: Caller) -> list[AdapterEntry]:
        """The adapters with a live version that the caller may use, oldest first."""
        entries = [
            entry
            for (owner, name), entry in self.snapshot.adapters.items()
            if owner == caller.project and DEFAULT_ALIAS in entry.aliases and caller.may_use(name)
        ]
        return sorted(entries, key=lambda entry: (entry.created_at, entry.name))


def _missing(name: str, param: str, similar: str | None = None) -> ModelNotFound:
    hint = "; the list of models has those that it may use" if similar is None else f"; did you mean `{similar}`?"
    return ModelNotFound(f"the model `{name[:100]}` does not exist, or the API key may not use it{hint}", param=param)
