"""Evaluations: authorised here, created by the trainer. See `service.training.authorization`.

The trainer itself checks metrics, suites, outside endpoints and judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from pydantic import ConfigDict, Field

from adapters.authorization import StoreNames
from adapters.names import DEFAULT_ALIAS
from adapters.protocol.requests import MAX_ARMS, MAX_SUITES, ArmFields, EvaluationFields, Label
from adapters.protocol.runs import CreateEvaluation, EarlierVerdict, EvaluationContext, PromptExample
from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.database import Database
from service.datasets.service import named_file
from service.errors import BadRequest, Conflict, NotFound
from service.files.holds import lineage_files
from service.files.purposes import Purpose
from service.files.records import FileRow
from service.files.service import Files
from service.http.body import as_model
from service.registry import records, verdict_records
from service.registry.catalog import NO_SETTINGS, AdapterEntry, Catalog, Servable, VersionEntry, VersionSettings
from service.registry.verdict_flags import PASSED, REVALIDATION
from service.training.authorization import datasets_detail, heaviest, reference, refuse_run_key, run_key, stores_of
from service.training.service import Answer, ProvisionRequest, Training

EVALUATIONS_PATH: Final = "/v1/evaluations"
HELD_OUT: Final = (Purpose.EVALS, Purpose.FINE_TUNE)


class Arm(ArmFields):
    """One side of a comparison, as far as the gateway checks it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    prompt: dict[str, Any] | None = None


class EvaluationRequest(EvaluationFields):
    """Body of ``POST /v1/evaluations``, as far as the gateway checks it; the trainer checks the rest."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    arms: list[Arm] | None = Field(None, min_length=1, max_length=MAX_ARMS)
    bases: list[Label] | None = Field(None, max_length=MAX_ARMS)
    metric: str | dict[str, Any] | None = None
    suites: list[str] | None = Field(None, max_length=MAX_SUITES)
    max_tokens: int | None = None
    repeats: int | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a model name resolves to: the base (no entry) or a servable version."""

    name: str
    entry: AdapterEntry | None = None
    version: VersionEntry | None = None
    base: str = ""
    """The served name of the base that it is, or serves on."""


@dataclass(frozen=True, slots=True)
class AuthorizedEvaluation:
    """The version that is judged, if any, and the models of the arms by label."""

    candidate: ResolvedModel | None
    models: dict[str, ResolvedModel] = field(default_factory=dict)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all adapters that are evaluated."""
        models = [*self.models.values(), *([self.candidate] if self.candidate is not None else [])]
        return tuple(sorted({model.entry.name for model in models if model.entry is not None}))

    @property
    def base(self) -> str | None:
        """The base that the models are compared with: the candidate's, else the first arm's."""
        first = self.candidate or next(iter(self.models.values()), None)
        return None if first is None else first.base or None

    @property
    def has_weights(self) -> bool:
        """Whether the version that is judged has weights; True if none is."""
        return self.candidate is None or self.candidate.version is None or self.candidate.version.digest is not None

    @property
    def live(self) -> ResolvedModel | None:
        """The candidate's live version; None if it is the candidate itself or cannot serve."""
        if self.candidate is None or self.candidate.entry is None:
            return None
        entry = self.candidate.entry
        number = heaviest(entry.aliases.get(DEFAULT_ALIAS))
        version = None if number is None else entry.versions.get(number)
        if version is None or version is self.candidate.version or version.servable is not Servable.OK:
            return None
        return ResolvedModel(f"{entry.name}@{number}", entry, version, version.base)

    def groundings(self) -> dict[str, dict[str, Any]]:
        """The grounding of each version that may be asked and has one, by ``name@number``."""
        versions = [model for model in (self.candidate, self.live, *self.models.values()) if model is not None]
        stored = {version.name: _settings(version).stored().get("grounding") for version in versions}
        return {name: grounding for name, grounding in stored.items() if grounding}


class EvaluationService:
    """Creates evaluations.

    Args:
        training: Requests them from the trainer.
        files: Holds the held-out and training files.
        catalog: Resolves the models.
        database: The versions' lineage.
    """

    def __init__(self, training: Training, files: Files, catalog: Catalog, database: Database) -> None:
        self._training = training
        self._files = files
        self._catalog = catalog
        self._database = database

    async def create(
        self, caller: Caller, body: dict[str, Any], headers: dict[str, str], *, actor: Actor, version: str | None = None
    ) -> Answer:
        """Check the request, create the evaluation's key, hold its files and request it from the trainer.

        Args:
            body: The client's body.
            headers: Headers for the trainer, from `headers_of`.
            actor: For the audit.
            version: The ``name@number`` to revalidate; None for an ordinary evaluation. Files that this version holds
                may be used. Clients cannot request a revalidation in the body, since its verdict has fewer checks.

        Raises:
            Forbidden: The caller is itself a job, or is missing a scope.
            NotFound: A file, a dataset or a model does not exist for this caller.
            Conflict: A model cannot serve now.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: No response; the key is revoked.
        """
        refuse_run_key(caller, "evaluations")
        request = as_model(body, EvaluationRequest)
        if request.promote == "auto":
            caller.demand(Scope.ADAPTERS)
        authorized = check(request, caller, self._catalog)
        named = await named_file(
            self._database, self._files, caller, request.held_out, HELD_OUT, "held_out", version=version
        )
        context = await self._context(caller, request, authorized, named.file, version)
        kind = {} if version is None else {"kind": REVALIDATION}
        envelope = CreateEvaluation(request=request.model_dump(exclude_unset=True) | kind, context=context)
        provision = ProvisionRequest(
            path=EVALUATIONS_PATH,
            key=key_draft(caller, authorized, context.stores or ()),
            files=_held_files(context),
            headers=headers,
            envelope=envelope,
            action="evaluation.create",
            detail={
                "model": request.model or [arm.model for arm in request.arms or ()],
                "kind": "evaluation" if version is None else REVALIDATION,
                "promote": request.promote,
                **datasets_detail({"held_out": named}),
            },
            version=version or context.candidate,
        )
        return await self._training.provision(provision, actor)

    async def _context(
        self,
        caller: Caller,
        request: EvaluationRequest,
        authorized: AuthorizedEvaluation,
        held_out: FileRow,
        version: str | None,
    ) -> EvaluationContext:
        """What the trainer is told beside the client's body; ``version`` as in `create`."""
        candidate = authorized.candidate
        row = await self._row(caller, candidate)
        training_file = await self._training_file(caller, candidate, row)
        settings = _settings(candidate).stored()
        groundings = authorized.groundings()
        return EvaluationContext(
            held_out=reference(held_out),
            base=authorized.base,
            models={label: model.name for label, model in authorized.models.items()},
            candidate=None if candidate is None else candidate.name,
            system_prompt=settings["system_prompt"],
            grounding=settings.get("grounding"),
            examples=tuple(PromptExample(**example) for example in settings.get("examples", ())),
            has_weights=authorized.has_weights,
            live=None if authorized.live is None else authorized.live.name,
            groundings=groundings,
            records=caller.may(Scope.ADAPTERS),
            training_files=() if training_file is None else (reference(training_file),),
            lineage=_lineage(row),
            earlier=await self._earlier(caller, request, row, version),
            stores=await stores_of(
                self._database, caller.project, (*groundings.values(), *(arm.grounding for arm in request.arms or ()))
            ),
        )

    async def _row(self, caller: Caller, candidate: ResolvedModel | None) -> records.VersionRow | None:
        if candidate is None or candidate.entry is None or candidate.version is None:
            return None
        name, number = candidate.entry.name, candidate.version.number

        def read(db: sa.Connection) -> records.VersionRow | None:
            adapter = records.find(db, caller.project, name)
            return None if adapter is None else adapter.version(number)

        return await self._database.run(read)

    async def _training_file(
        self, caller: Caller, candidate: ResolvedModel | None, row: records.VersionRow | None
    ) -> FileRow | None:
        """The candidate's training file, if the project or the version still has it."""
        file_ids = lineage_files(row.metadata)[:1] if row is not None else []
        if candidate is None or not file_ids:
            return None
        purposes = (Purpose.FINE_TUNE,)
        try:
            return await self._files.named(caller, file_ids[0], purposes, "training_file", version=candidate.name)
        except (NotFound, BadRequest):
            return None

    async def _earlier(
        self, caller: Caller, request: EvaluationRequest, row: records.VersionRow | None, version: str | None
    ) -> EarlierVerdict | None:
        """What a revalidation of ``version`` is compared with; None for another evaluation, or if there is nothing."""
        metric = request.metric.get("name") if isinstance(request.metric, dict) else request.metric
        if version is None or row is None or not isinstance(metric, str):
            return None
        version_id, held_out = row.id, request.held_out
        verdict = await self._database.run(lambda db: verdict_records.comparable(db, version_id, held_out, metric))
        if verdict is None:
            return None
        purposes = (Purpose.RESULTS,)
        try:
            scores = await self._files.named(
                caller, verdict.files[verdict_records.SCORES], purposes, "scores", version=version
            )
        except (NotFound, BadRequest):
            return None
        return EarlierVerdict(
            id=verdict.id,
            verdict="pass" if verdict.verdict == PASSED else "not_enough_evidence",
            rule=verdict.rule,
            scores=reference(scores),
        )


def check(request: EvaluationRequest, caller: Caller, catalog: Catalog) -> AuthorizedEvaluation:
    """Resolve and authorise the models to compare.

    Raises:
        ModelNotFound, NoLiveVersion: A model does not exist for this caller.
        Conflict: A model cannot serve now.
        BadRequest: Neither or both of ``model`` and ``arms``; a split alias; a candidate that cannot be promoted.
    """
    if (request.model is None) == (request.arms is None):
        given = "neither" if request.model is None else "both"
        param = "model" if request.model is None else "arms"
        raise BadRequest(f"send either `model` or `arms`; got {given}", param=param)
    if request.model is not None:
        candidate = resolve(catalog, caller, request.model, "model")
        if candidate.entry is None:
            raise BadRequest("`model` is the base; name the version to judge against it", param="model")
        return AuthorizedEvaluation(candidate)
    models = {}
    candidate_model: ResolvedModel | None = None
    for index, arm in enumerate(request.arms or ()):
        if arm.endpoint is not None:
            continue
        models[arm.label] = resolve(catalog, caller, arm.model, f"arms.{index}.model")
        as_served = not any((arm.prompt or {}).values()) and arm.grounding is None
        if arm.label == request.candidate and as_served and models[arm.label].entry is not None:
            candidate_model = models[arm.label]
    if request.promote == "auto" and candidate_model is None:
        raise BadRequest(
            "`promote: auto` requires a candidate that is a version with its own settings: an arm with a `prompt`, "
            "`grounding` or `endpoint` cannot go live",
            param="promote",
        )
    return AuthorizedEvaluation(candidate_model, models)


def resolve(catalog: Catalog, caller: Caller, model: str, param: str) -> ResolvedModel:
    """The base or the version that a model name resolves to now.

    Raises:
        ModelNotFound, NoLiveVersion: It does not exist for this caller.
        Conflict: It cannot serve now.
        BadRequest: It is an alias that is split over several versions.
    """
    if model in catalog.bases:
        return ResolvedModel(model, base=model)
    match = catalog.find(caller, model, param=param)
    if not isinstance(match.target, int):
        raise BadRequest(
            f"`{param}` is {model[:100]!r}, an alias split over several versions; use one of them", param=param
        )
    name = f"{match.entry.name}@{match.target}"
    version = match.entry.versions.get(match.target)
    if version is None:
        catalog.find(caller, name, param=param)  # an alias of a version that does not exist raises like a missing model
        raise Conflict(f"the version `{name}` cannot serve now", param=param)
    if version.servable is not Servable.OK:
        raise Conflict(
            f"the version `{name}` cannot serve now: {version.servable.reason}",
            param=param,
            code=f"version_{version.servable.value}",
        )
    return ResolvedModel(name, match.entry, version, version.base or catalog.base_name)


def key_draft(caller: Caller, authorized: AuthorizedEvaluation, stores: tuple[StoreNames, ...]) -> KeyDraft:
    """The key that the evaluation uses at the gateway to query the models and to record the verdict."""
    scopes = {Scope.INFER, Scope.TRAIN} | ({Scope.ADAPTERS} if caller.may(Scope.ADAPTERS) else set())
    names = ", ".join(authorized.adapters) or "the base"
    return run_key(caller, f"evaluating {names}", scopes, authorized.adapters, stores)


def _held_files(context: EvaluationContext) -> dict[str, str]:
    """The ids of the files that the evaluation's key holds, by what they are."""
    files = {"held_out": context.held_out.id}
    if context.training_files:
        files["training_file"] = context.training_files[0].id
    if context.earlier is not None:
        files["scores"] = context.earlier.scores.id
    return files


def _settings(candidate: ResolvedModel | None) -> VersionSettings:
    return NO_SETTINGS if candidate is None or candidate.version is None else candidate.version.settings


def _lineage(row: records.VersionRow | None) -> dict[str, Any] | None:
    lineage = None if row is None else row.metadata.get("lineage")
    return lineage if isinstance(lineage, dict) else None
