"""What an evaluation's creation is checked for, before the trainer hears of it.

The trainer trusts what reaches it: that every file and every model of the gateway's in the body is the caller's to
use, and that the key it gets can do no more than the caller's. What else a body names (metrics, suites, outside
endpoints, judges) is the trainer's to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import orjson
import sqlalchemy as sa
from pydantic import ConfigDict, Field

from adapters.names import DEFAULT_ALIAS
from adapters.protocol.requests import MAX_ARMS, MAX_SUITES, ArmFields, EvaluationFields, Label
from adapters.protocol.runs import CreateEvaluation, EvaluationContext
from service.access.audit import SYSTEM_ID, Actor
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.database import Database
from service.errors import BadRequest, Conflict, Forbidden, NotFound
from service.files.holds import lineage_files
from service.files.purposes import Purpose
from service.files.records import FileRow
from service.files.service import Files
from service.http.body import as_model
from service.registry import records
from service.registry.catalog import NO_SETTINGS, AdapterEntry, Catalog, Servable, VersionEntry, VersionSettings
from service.registry.split import AliasTarget
from service.registry.verdict_records import REVALIDATION
from service.training.jobs import reference
from service.training.service import JSON, Answer, Making, Training

EVALUATIONS_PATH: Final = "/v1/evaluations"
HELD_OUT: Final = (Purpose.EVALS, Purpose.FINE_TUNE)


class Arm(ArmFields):
    """One side of a comparison, as far as the gateway looks into it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    prompt: dict[str, Any] | None = None


class EvaluationRequest(EvaluationFields):
    """Body of ``POST /v1/evaluations``, as far as the gateway looks into it; the trainer looks at the rest."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    arms: list[Arm] | None = Field(None, min_length=1, max_length=MAX_ARMS)
    bases: list[Label] | None = Field(None, max_length=MAX_ARMS)
    metric: str | dict[str, Any] | None = None
    suites: list[str] | None = Field(None, max_length=MAX_SUITES)
    max_tokens: int | None = None
    repeats: int | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """What a model's name stands for: the base (no entry), or a version that can serve."""

    name: str
    entry: AdapterEntry | None = None
    version: VersionEntry | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What an evaluation's body stands for; ``models`` by the arms' labels, ``candidate`` a version that is judged."""

    candidate: Named | None
    models: dict[str, Named] = field(default_factory=dict)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all adapters that are asked."""
        named = [*self.models.values(), *([self.candidate] if self.candidate is not None else [])]
        return tuple(sorted({one.entry.name for one in named if one.entry is not None}))

    @property
    def live(self) -> str | None:
        """The version that serves under the candidate's name, if that is another one and can serve."""
        if self.candidate is None or self.candidate.entry is None:
            return None
        entry = self.candidate.entry
        number = heaviest(entry.aliases.get(DEFAULT_ALIAS))
        found = None if number is None else entry.versions.get(number)
        if found is None or found is self.candidate.version or found.servable is not Servable.OK:
            return None
        return f"{entry.name}@{number}"


class Evaluations:
    """Makes evaluations.

    Args:
        training: The way to the trainer.
        files: Whose holds keep what is held out.
        catalog: What can be asked.
        database: What versions were trained on.
    """

    def __init__(self, training: Training, files: Files, catalog: Catalog, database: Database) -> None:
        self._training = training
        self._files = files
        self._catalog = catalog
        self._database = database

    async def create(
        self, caller: Caller, body: dict[str, Any], headers: dict[str, str], *, actor: Actor, version: str | None = None
    ) -> Answer:
        """Check an evaluation's creation, make its key, hold its files, and ask the trainer for it.

        Args:
            body: The client's.
            version: The ``name@number`` that is judged again: what it holds may be named, and the evaluation is a
                revalidation, which is nobody's to ask for in a body: it is spared what a verdict else demands.

        Raises:
            Forbidden: The caller is a job itself, or lacks a scope.
            NotFound: A file, or a model, does not exist for this caller.
            Conflict: A model cannot serve now.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: There is no answer; no key of the evaluation is left.
        """
        if caller.background:
            raise Forbidden("a job's own key makes no evaluations", code="job_key")
        request = as_model(body, EvaluationRequest)
        if request.promote == "auto":
            caller.demand(Scope.ADAPTERS)
        checked = check(request, caller, self._catalog)
        held_out = await self._files.named(caller, request.held_out, HELD_OUT, "held_out", version=version)
        row = await self._row(caller, checked.candidate)
        taught = await self._taught(caller, checked.candidate, row)
        settings = _settings(checked.candidate).stored()
        context = EvaluationContext(
            held_out=reference(held_out),
            models={label: named.name for label, named in checked.models.items()},
            candidate=None if checked.candidate is None else checked.candidate.name,
            system_prompt=settings["system_prompt"],
            grounding=settings.get("grounding"),
            live=checked.live,
            records=caller.may(Scope.ADAPTERS),
            training_files=() if taught is None else (reference(taught),),
            lineage=_lineage(row),
        )
        marked = {} if version is None else {"kind": REVALIDATION}
        sent = CreateEvaluation(request=request.model_dump(exclude_unset=True) | marked, context=context)
        making = Making(
            path=EVALUATIONS_PATH,
            key=key_draft(caller, checked),
            files={"held_out": held_out.id} | ({} if taught is None else {"training_file": taught.id}),
            headers=headers | JSON,
            body=orjson.dumps(sent.model_dump()),
            action="evaluation.create",
            detail={
                "model": request.model or [arm.model for arm in request.arms or ()],
                "kind": "evaluation" if version is None else REVALIDATION,
                "promote": request.promote,
            },
            version=version or context.candidate,
        )
        return await self._training.make(making, actor)

    async def _row(self, caller: Caller, candidate: Named | None) -> records.VersionRow | None:
        if candidate is None or candidate.entry is None or candidate.version is None:
            return None
        name, number = candidate.entry.name, candidate.version.number

        def read(db: sa.Connection) -> records.VersionRow | None:
            holding = records.find(db, caller.project, name)
            return None if holding is None else holding.version(number)

        return await self._database.run(read)

    async def _taught(self, caller: Caller, candidate: Named | None, row: records.VersionRow | None) -> FileRow | None:
        """What the candidate was trained on, if the project or the version still has it."""
        named = lineage_files(row.metadata)[:1] if row is not None else []
        if candidate is None or not named:
            return None
        purposes = (Purpose.FINE_TUNE,)
        try:
            return await self._files.named(caller, named[0], purposes, "training_file", version=candidate.name)
        except (NotFound, BadRequest):
            return None


def check(request: EvaluationRequest, caller: Caller, catalog: Catalog) -> Checked:
    """What is compared.

    Raises:
        ModelNotFound, NoLiveVersion: There is no such model for this caller.
        Conflict: It cannot serve now.
        BadRequest: Neither ``model`` nor ``arms``, or both; an alias that is split; what cannot be promoted.
    """
    if (request.model is None) == (request.arms is None):
        found = "neither" if request.model is None else "both"
        param = "model" if request.model is None else "arms"
        raise BadRequest(f"send either `model` or `arms`, found {found}", param=param)
    if request.model is not None:
        candidate = resolve(catalog, caller, request.model, "model")
        if candidate.entry is None:
            raise BadRequest("`model` is the base: name the version that is to be judged against it", param="model")
        return Checked(candidate)
    models = {}
    judged: Named | None = None
    for index, arm in enumerate(request.arms or ()):
        if arm.endpoint is not None:
            continue
        models[arm.label] = resolve(catalog, caller, arm.model, f"arms.{index}.model")
        as_served = not any((arm.prompt or {}).values()) and arm.grounding is None
        if arm.label == request.candidate and as_served and models[arm.label].entry is not None:
            judged = models[arm.label]
    if request.promote == "auto" and judged is None:
        raise BadRequest(
            "`promote` is `auto`, and the candidate is no version as it serves: an arm with a prompt or a grounding of "
            "its own, or elsewhere, cannot go live",
            param="promote",
        )
    return Checked(judged, models)


def resolve(catalog: Catalog, caller: Caller, wanted: str, param: str) -> Named:
    """The base or the version that a name stands for at this moment.

    Raises:
        ModelNotFound, NoLiveVersion: There is none for this caller.
        Conflict: It cannot serve now.
        BadRequest: It is an alias that is split over several versions.
    """
    if wanted == catalog.base_name:
        return Named(wanted)
    found = catalog.find(caller, wanted, param=param)
    if not isinstance(found.target, int):
        raise BadRequest(
            f"`{param}` is {wanted[:100]!r}, which is split over several versions: name one of them", param=param
        )
    name = f"{found.entry.name}@{found.target}"
    version = found.entry.versions.get(found.target)
    if version is None:
        catalog.find(caller, name, param=param)  # an alias that points to what cannot be asked is like none
        raise Conflict(f"the version `{name}` cannot serve now", param=param)
    if version.servable is not Servable.OK:
        raise Conflict(
            f"the version `{name}` cannot serve now: {version.servable.value}",
            param=param,
            code=f"version_{version.servable.value}",
        )
    return Named(name, found.entry, version)


def key_draft(caller: Caller, checked: Checked) -> KeyDraft:
    """The key that the evaluation shows the gateway: it asks what is compared, and writes down what was found."""
    scopes = {Scope.INFER, Scope.TRAIN} | ({Scope.ADAPTERS} if caller.may(Scope.ADAPTERS) else set())
    named = ", ".join(checked.adapters) or "the base"
    return KeyDraft(
        name=f"evaluating {named}"[:100],
        project=caller.project,
        scopes=frozenset(scopes),
        adapters=checked.adapters,
        stores=None,  # the caller's: a version is judged with the grounding that it serves with
        background=True,
        parent_key_id=None if caller.key_id == SYSTEM_ID else caller.key_id,
    )


def heaviest(target: AliasTarget | None) -> int | None:
    """The version that an alias points to, of a split the one with the largest share."""
    if target is None or isinstance(target, int):
        return target
    shares: Mapping[str, int] = target.shown()
    return int(max(shares, key=lambda number: shares[number]))


def _settings(candidate: Named | None) -> VersionSettings:
    return NO_SETTINGS if candidate is None or candidate.version is None else candidate.version.settings


def _lineage(row: records.VersionRow | None) -> dict[str, Any] | None:
    found = None if row is None else row.metadata.get("lineage")
    return found if isinstance(found, dict) else None
