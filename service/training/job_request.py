"""The request for a fine-tuning job: its form, and what the gateway checks of it before the trainer sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson
from pydantic import ConfigDict, Field, ValidationError

from adapters.authorization import StoreNames
from adapters.manifest import Manifest
from adapters.names import is_checkpoint_alias, parse_reference, suggest_name
from adapters.protocol.requests import JobFields
from adapters.protocol.runs import JobContext, ParentShape
from service.access.caller import Caller
from service.access.records import KeyDraft
from service.datasets.service import NamedFile
from service.errors import BadRequest
from service.grounding.config import GroundingSettings
from service.grounding.filters import check_filters
from service.http.body import validation_error
from service.registry.catalog import Catalog
from service.registry.upload import check_sampling
from service.training.authorization import JOB_SCOPES, adapter_name, datasets_in, reference, run_key

MAX_RANK: Final = 512
"""The largest rank that any engine serves; a parent was already inspected when it was pushed."""


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
    """The adapter that a job trains, the `name@version` that it continues from (None: the base), and that base."""

    adapter: str
    parent: str | None
    base: str | None = None

    def key(self, caller: Caller, stores: tuple[StoreNames, ...]) -> KeyDraft:
        """The key that the job uses at the gateway to read its parent, push its result and have it evaluated.

        ``stores``: from `stores_of`.
        """
        names = {self.adapter} if self.parent is None else {self.adapter, parse_reference(self.parent).name}
        return run_key(caller, f"training {self.adapter}", JOB_SCOPES, names, stores)

    def context(
        self, files: dict[str, NamedFile], parent_shape: ParentShape | None, stores: tuple[StoreNames, ...]
    ) -> JobContext:
        """The context sent to the trainer with the client's body. ``parent_shape`` is from `shape_of`, ``stores`` from
        `stores_of`."""
        validation = files.get("validation_file")
        return JobContext(
            adapter=self.adapter,
            base=self.base,
            parent=self.parent,
            parent_shape=parent_shape,
            training_file=reference(files["training_file"].file),
            validation_file=None if validation is None else reference(validation.file),
            datasets=datasets_in(files),
            stores=stores,
        )


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


def authorize(request: JobRequest, caller: Caller, catalog: Catalog) -> AuthorizedJob:
    """Authorise a job: which adapter it trains and what it continues from.

    Raises:
        ModelNotFound: The model does not exist for this caller.
        Conflict: The model cannot serve now.
        BadRequest: ``model`` is an alias, the adapter's name is invalid, or two different names were given.
        Forbidden: The key's globs do not match the adapter's name, whether or not that adapter exists.
    """
    base, parent = _parent(request.model, caller, catalog)
    param, name = _name(request, parent)
    name = adapter_name(caller, name, param, catalog=catalog, action="train")
    return AuthorizedJob(name, parent, base)


def _parent(model: str, caller: Caller, catalog: Catalog) -> tuple[str, str | None]:
    """The base that a job trains for, and the version that it continues from; None: the base."""
    if model in catalog.bases:
        return model, None
    match = catalog.find(caller, model)
    if match.alias and not is_checkpoint_alias(match.alias):
        pointed = match.target if isinstance(match.target, int) else max(match.entry.versions)
        raise BadRequest(
            f"`model` is {model[:100]!r}, an alias, which may move while the job is queued; use a version, such as "
            f"`{match.entry.name}@{pointed}`, or a base, {_bases(catalog)}",
            param="model",
        )
    parent = catalog.resolve(caller, model)
    if parent.digest is None:
        raise BadRequest(
            f"`model` is `{parent.name}`, which has no weights to continue training from; train from a base, "
            f"{_bases(catalog)}, and name the adapter (`suffix` or `metadata.adapter`)",
            param="model",
            code="parent_unsupported",
        )
    return parent.base, parent.name


def _bases(catalog: Catalog) -> str:
    return " or ".join(f"`{base}`" for base in catalog.bases)


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
