"""Fine-tuning jobs: authorised here, created by the trainer. See `service.training.authorization`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson
import sqlalchemy as sa
from pydantic import ConfigDict, Field, ValidationError

from adapters.errors import AdapterError
from adapters.inspect import modules_in
from adapters.manifest import Manifest
from adapters.names import is_checkpoint_alias, parse_reference, suggest_name
from adapters.protocol.requests import JobFields
from adapters.protocol.runs import REPLAYED_HEADER, CreateJob, JobContext, ParentShape
from adapters.store import WEIGHTS_FILE, Store
from service.access.audit import Actor
from service.access.caller import Caller
from service.access.records import KeyDraft
from service.database import Database
from service.datasets.service import NamedFile, named_file
from service.errors import BadRequest
from service.files.purposes import Purpose
from service.files.service import Files
from service.grounding.config import GroundingSettings
from service.grounding.filters import check_filters
from service.http.body import as_model, validation_error
from service.registry import records
from service.registry.catalog import Catalog
from service.registry.upload import check_sampling
from service.training.authorization import (
    JOB_SCOPES,
    adapter_name,
    datasets_detail,
    datasets_in,
    reference,
    refuse_run_key,
    run_key,
)
from service.training.forward import kept_headers, read_bounded
from service.training.service import JSON, Answer, ProvisionRequest, Training

JOBS_PATH: Final = "/v1/fine_tuning/jobs"
REPLAY_PATH: Final = "/internal/jobs/replay"
CLAIM_PATH: Final = "/internal/jobs/claim"
CONFLICT: Final = 409
MAX_RANK: Final = 512
"""The largest rank that any engine serves; a parent was already inspected when it was pushed."""
_LOG = logging.getLogger("hatrack.training")


class JobRequest(JobFields):
    """Body of ``POST /v1/fine_tuning/jobs``, as far as the gateway checks it; the trainer checks the rest."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    hyperparameters: dict[str, Any] | None = None
    method: dict[str, Any] | None = None

    def files(self) -> dict[str, str]:
        """Ids of files, or datasets, by the request's field."""
        ids = {"training_file": self.training_file, "validation_file": self.validation_file}
        return {param: file_id for param, file_id in ids.items() if file_id is not None}

    def forwarded(self) -> dict[str, Any]:
        """The body as the client sent it."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class AuthorizedJob:
    """The adapter that a job trains, and the `name@version` that it continues from (None: the base)."""

    adapter: str
    parent: str | None

    def key(self, caller: Caller) -> KeyDraft:
        """The key that the job uses at the gateway to read its parent, push its result and have it evaluated."""
        names = {self.adapter} if self.parent is None else {self.adapter, parse_reference(self.parent).name}
        return run_key(caller, f"training {self.adapter}", JOB_SCOPES, names)

    def context(self, files: dict[str, NamedFile], parent_shape: ParentShape | None) -> JobContext:
        """The context sent to the trainer with the client's body. ``parent_shape`` is from `shape_of`."""
        validation = files.get("validation_file")
        return JobContext(
            adapter=self.adapter,
            parent=self.parent,
            parent_shape=parent_shape,
            training_file=reference(files["training_file"].file),
            validation_file=None if validation is None else reference(validation.file),
            datasets=datasets_in(files),
        )


CheckGrounding = Callable[[GroundingSettings, Caller, str], Awaitable[None]]
"""Raises HatrackError for a provider or a store that the caller may not ask; the text is the request's field."""


def requested_grounding(request: JobRequest) -> tuple[str, GroundingSettings] | None:
    """The field that holds the new version's grounding, and the grounding; None if none is requested.

    Raises:
        BadRequest: It is not allowed as a version's `settings.grounding`, or two different ones were given.
    """
    requested = _requested_object(request, "grounding")
    if requested is None:
        return None
    param, value = requested
    try:
        settings = GroundingSettings.model_validate(value)
    except ValidationError as error:
        raise validation_error(error, value, param) from None
    if settings.filters is not None:
        check_filters(settings.filters, f"{param}.filters")
    return param, settings


def check_requested_sampling(request: JobRequest) -> None:
    """Check the new version's sampling defaults.

    Raises:
        BadRequest: One is not allowed in a version's `settings.sampling`, or two different objects were given.
        UnknownField: There is no such sampling default.
    """
    param, value = _requested_object(request, "sampling") or ("", {})
    for field, given in value.items():
        check_sampling(field, given, param)


def _requested_object(request: JobRequest, name: str) -> tuple[str, dict[str, Any]] | None:
    """The field that holds an option's object, and the object; None if there is none.

    Raises:
        BadRequest: It is no object, or two different ones were given.
    """
    requested = [(param, _parsed(value)) for param, value in _options(request, name) if value is not None]
    if not requested:
        return None
    param, value = requested[0]
    for other, another in requested[1:]:
        if another != value:
            raise BadRequest(f"`{param}` and `{other}` conflict; send one", param=other)
    if not isinstance(value, dict):
        raise BadRequest(f"`{param}` must be an object", param=param)
    return param, value


def _parsed(value: Any) -> Any:
    """A value of the metadata, which is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """An authorised job: its files by the request's field, and what is sent to the trainer."""

    authorized: AuthorizedJob
    files: dict[str, NamedFile]
    envelope: CreateJob


class JobService:
    """Creates fine-tuning jobs.

    Args:
        training: Requests them from the trainer.
        files: Holds their files.
        catalog: The versions that a job may continue training.
        database: The parents' configurations.
        store: The versions' weights, which tell the modules that a config's patterns match.
        check_grounding: Whether a version's grounding can be asked for; None: not checked before the job's end.
    """

    def __init__(
        self,
        training: Training,
        files: Files,
        catalog: Catalog,
        database: Database,
        store: Store,
        check_grounding: CheckGrounding | None = None,
    ) -> None:
        self._training = training
        self._files = files
        self._catalog = catalog
        self._database = database
        self._store = store
        self._check_grounding = check_grounding

    async def create(self, caller: Caller, body: dict[str, Any], headers: dict[str, str], *, actor: Actor) -> Answer:
        """Check the request, create the job's key, hold its files and request the job from the trainer.

        Raises:
            Forbidden: The caller is itself a job, or may not create that adapter.
            NotFound: A file, a dataset or the model does not exist for this caller.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: No response; the key is kept only if the job exists.
        """
        request = as_model(body, JobRequest)
        refuse_run_key(caller, "jobs")
        replayed = await self._replay(request, headers)
        if replayed is not None:
            return replayed
        prepared = await self.prepare(caller, request)
        authorized, files = prepared.authorized, prepared.files
        provision = ProvisionRequest(
            path=JOBS_PATH,
            key=authorized.key(caller),
            files={param: named.file.id for param, named in files.items()},
            headers=headers,
            envelope=prepared.envelope,
            action="job.create",
            claim=CLAIM_PATH,
            detail={"adapter": authorized.adapter, "model": request.model, **datasets_detail(files)},
        )
        return await self._training.provision(provision, actor)

    async def prepare(self, caller: Caller, request: JobRequest) -> PreparedJob:
        """Authorise everything that a job's body names, and make what is sent to the trainer.

        Raises:
            Forbidden: The caller may not create that adapter.
            NotFound: A file, a dataset or the model does not exist for this caller.
            BadRequest: A field's value is not allowed.
        """
        files = {
            param: await named_file(self._database, self._files, caller, text, (Purpose.FINE_TUNE,), param)
            for param, text in request.files().items()
        }
        authorized = check(request, caller, self._catalog)
        check_requested_sampling(request)
        grounding = requested_grounding(request)
        if grounding is not None and self._check_grounding is not None:
            param, settings = grounding
            await self._check_grounding(settings, caller, param)
        shape = await self._parent_shape(caller, authorized.parent)
        envelope = CreateJob(request=request.forwarded(), context=authorized.context(files, shape))
        return PreparedJob(authorized, files, envelope)

    async def _replay(self, request: JobRequest, headers: dict[str, str]) -> Answer | None:
        """The response to an earlier request with the same Idempotency-Key, even if its files or parent are gone.

        Raises:
            TrainerUnavailable, BadGateway, Timeout: No response.
        """
        if "idempotency-key" not in headers:
            return None
        body = orjson.dumps(request.forwarded())
        async with self._training.client.open("POST", REPLAY_PATH, headers | JSON, body) as response:
            answer = Answer(response.status, kept_headers(response), await read_bounded(response))
            replayed = response.headers.get(REPLAYED_HEADER, "") == "true"
        return answer if replayed or answer.status == CONFLICT else None

    async def _parent_shape(self, caller: Caller, parent: str | None) -> ParentShape | None:
        """The parent's LoRA shape, which the job must keep; None without a parent, or if it was just deleted.

        Raises:
            BadRequest: Training cannot continue from it.
        """
        if parent is None:
            return None
        reference = parse_reference(parent)

        def read(db: sa.Connection) -> tuple[str, bytes | None] | None:
            adapter = records.find(db, caller.project, reference.name)
            if adapter is None or reference.version is None:
                return None
            row = adapter.version(reference.version)
            if row is None or row.digest is None:
                return None
            return row.digest, records.version_file(db, row.id, "config")

        row = await self._database.run(read)
        digest, config = row if row is not None else ("", None)
        if config is None:
            return None
        return shape_of(parent, config, await asyncio.to_thread(self._modules, digest))

    def _modules(self, digest: str) -> frozenset[str]:
        """The modules that an adapter's weights have tensors for; empty if the weights cannot be read."""
        try:
            return modules_in(self._store.path(digest) / WEIGHTS_FILE)
        except (OSError, AdapterError):
            _LOG.exception("cannot read the weights of a job's parent", extra={"digest": digest})
            return frozenset()


def check(request: JobRequest, caller: Caller, catalog: Catalog) -> AuthorizedJob:
    """Authorise a job: which adapter it trains and what it continues from.

    Raises:
        ModelNotFound: The model does not exist for this caller.
        Conflict: The model cannot serve now.
        BadRequest: ``model`` is an alias, the adapter's name is invalid, or two different names were given.
        Forbidden: The key's globs do not match the adapter's name, whether or not that adapter exists.
    """
    parent = _parent(request.model, caller, catalog)
    param, name = _name(request, parent)
    name = adapter_name(caller, name, param, catalog=catalog, action="train")
    return AuthorizedJob(name, parent)


def _parent(model: str, caller: Caller, catalog: Catalog) -> str | None:
    if model == catalog.base_name:
        return None
    match = catalog.find(caller, model)
    if match.alias and not is_checkpoint_alias(match.alias):
        pointed = match.target if isinstance(match.target, int) else max(match.entry.versions)
        raise BadRequest(
            f"`model` is {model[:100]!r}, an alias, which may move while the job is queued; use a version, such as "
            f"`{match.entry.name}@{pointed}`, or the base, `{catalog.base_name}`",
            param="model",
        )
    parent = catalog.resolve(caller, model)
    if parent.digest is None:
        raise BadRequest(
            f"`model` is `{parent.name}`, which has no weights to continue training from; train from the base, "
            f"`{catalog.base_name}`, and name the adapter (`suffix` or `metadata.adapter`)",
            param="model",
            code="parent_unsupported",
        )
    return parent.name


def _name(request: JobRequest, parent: str | None) -> tuple[str, str]:
    """The field that names the adapter, and the name."""
    names = {param: value for param, value in _options(request, "adapter") if value is not None}
    for param, value in names.items():
        if not isinstance(value, str):
            raise BadRequest(f"`{param}` must be a string", param=param)
    if len(set(names.values())) > 1:
        params = " and ".join(f"`{param}`" for param in names)
        raise BadRequest(f"{params} name different adapters; send one", param=next(iter(names)))
    if names:
        return next(iter(names.items()))
    if request.suffix is not None:
        return "suffix", suggest_name(request.suffix)
    if parent is not None:
        return "model", parse_reference(parent).name
    # unnamed: derive the name from the data, so that a retry, or a dataset's next version, adds no new adapter
    source = request.training_file.partition("@")[0]
    return "suffix", f"ft-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _options(request: JobRequest, name: str) -> list[tuple[str, Any]]:
    """The places where a request may give an option, and what stands there."""
    places: list[tuple[str, Any]] = [
        (f"metadata.{name}", (request.metadata or {}).get(name)),
        (f"hyperparameters.{name}", (request.hyperparameters or {}).get(name)),
    ]
    for kind, options in (request.method or {}).items():
        inner = options.get("hyperparameters") if isinstance(options, dict) else None
        if isinstance(inner, dict):
            places.append((f"method.{kind[:32]}.hyperparameters.{name}", inner.get(name)))
    return places


def shape_of(parent: str, config: bytes, modules: Collection[str]) -> ParentShape:
    """The parent's LoRA shape, which training must keep.

    Args:
        parent: The parent's ``name@version``.
        config: Its adapter_config.json, as it was uploaded.
        modules: The modules that its weights have tensors for, used to resolve the config's patterns; empty if
            unknown.

    Raises:
        BadRequest: Its modules differ in rank or alpha; a training run has one of each.
    """
    manifest = Manifest.parse(config, max_rank=MAX_RANK)
    if modules:
        manifest = manifest.resolve(modules)
    for name, pattern in (("rank_pattern", manifest.rank_pattern), ("alpha_pattern", manifest.alpha_pattern)):
        if pattern:
            shown = ", ".join(f"{key[:100]} {value:g}" for key, value in list(pattern.items())[:3])
            raise BadRequest(
                f"`model` is `{parent}`, whose modules differ by `{name}` ({shown}); training can only continue from a "
                "version with one rank and one alpha for all modules",
                param="model",
                code="parent_unsupported",
            )
    targets = manifest.target_modules
    target_modules = (targets,) if isinstance(targets, str) else tuple(targets)
    return ParentShape(
        rank=manifest.rank,
        alpha=float(manifest.alpha),
        rslora=manifest.use_rslora,
        target_modules=target_modules,
        modules=len(modules) or None,
    )
