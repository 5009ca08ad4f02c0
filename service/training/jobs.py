"""What a fine-tuning job's creation is checked for, before the trainer hears of it.

The trainer trusts what reaches it: that the caller may do all that the job will do, that every file, model and name in
the body is the caller's to use, and that the key it gets can do no more than the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import ConfigDict, Field

from adapters.errors import AdapterError
from adapters.manifest import Manifest
from adapters.names import parse_name, parse_reference, suggest_name
from adapters.protocol.requests import JobFields
from adapters.protocol.runs import FileRef, JobContext, ParentShape
from service.access.caller import Caller, Scope
from service.access.records import KeyDraft
from service.errors import BadRequest, Forbidden
from service.files.records import FileRow
from service.registry.catalog import Catalog

JOB_SCOPES: Final = frozenset({Scope.INFER, Scope.ADAPTERS, Scope.TRAIN})
MAX_RANK: Final = 512
"""The largest that any engine serves; a parent was inspected when it was pushed."""


class JobRequest(JobFields):
    """Body of ``POST /v1/fine_tuning/jobs``, as far as the gateway looks into it; the trainer looks at the rest."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True)

    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    hyperparameters: dict[str, Any] | None = None
    method: dict[str, Any] | None = None

    def files(self) -> dict[str, str]:
        """The ids of the files by the field that names them."""
        named = {"training_file": self.training_file, "validation_file": self.validation_file}
        return {param: file_id for param, file_id in named.items() if file_id is not None}

    def forwarded(self) -> dict[str, Any]:
        """The body as the client sent it."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a job's body stands for: the adapter to be, and `name@version` to train on from (None: the base)."""

    adapter: str
    parent: str | None

    def key(self, caller: Caller) -> KeyDraft:
        """The key that the job shows the gateway: it reads its parent, pushes its result, and has that judged with the
        caller's stores."""
        globs = {self.adapter} if self.parent is None else {self.adapter, parse_reference(self.parent).name}
        return KeyDraft(
            name=f"training {self.adapter}",
            project=caller.project,
            scopes=JOB_SCOPES,
            adapters=tuple(sorted(globs)),
            stores=None,  # the caller's: versions are compared with the grounding that they serve with
            background=True,
            parent_key_id=caller.key_id,
        )

    def context(self, files: dict[str, FileRow], parent_shape: ParentShape | None) -> JobContext:
        """What the trainer is told beside the client's body. ``parent_shape`` is from `shape_of`."""
        validation = files.get("validation_file")
        return JobContext(
            adapter=self.adapter,
            parent=self.parent,
            parent_shape=parent_shape,
            training_file=reference(files["training_file"]),
            validation_file=None if validation is None else reference(validation),
        )


def check(request: JobRequest, caller: Caller, catalog: Catalog) -> Checked:
    """What the job is to train, from what, and under which name.

    Raises:
        ModelNotFound: There is no such model for this caller.
        Conflict: It cannot serve now.
        BadRequest: ``model`` is no version, or names of the adapter contradict each other.
        AdapterError: The adapter's name is not valid.
        Forbidden: The key's globs do not match the adapter's name, whether or not there is one of that name.
    """
    parent = _parent(request.model, caller, catalog)
    param, name = _name(request, parent)
    try:
        name = parse_name(name, base_name=catalog.base_name)
    except AdapterError as error:
        raise BadRequest(error.message, param=param, code=error.code) from None
    if not caller.may_use(name):
        globs = ", ".join(f"`{glob}`" for glob in caller.adapters or ()) or "none"
        raise Forbidden(
            f"the API key may train adapters whose names match {globs}; found `{name}`",
            param=param,
            code="adapter_not_allowed",
        )
    return Checked(name, parent)


def _parent(model: str, caller: Caller, catalog: Catalog) -> str | None:
    if model == catalog.base_name:
        return None
    found = catalog.find(caller, model)
    if found.alias:
        raise BadRequest(
            f"`model` is {model[:100]!r}, an alias, which may move while the job waits: name a version, such as "
            f"`{found.entry.name}@{max(found.entry.versions)}`, or the base, `{catalog.base_name}`",
            param="model",
        )
    return catalog.resolve(caller, model).name


def _name(request: JobRequest, parent: str | None) -> tuple[str, str]:
    """The adapter's name, and the field that it comes from."""
    given = {param: value for param, value in _given_names(request) if value is not None}
    for param, value in given.items():
        if not isinstance(value, str):
            raise BadRequest(f"`{param}` must be a string", param=param)
    if len(set(given.values())) > 1:
        raise BadRequest(f"{' and '.join(f'`{param}`' for param in given)} name two adapters", param=next(iter(given)))
    if given:
        return next(iter(given.items()))
    if request.suffix is not None:
        return "suffix", suggest_name(request.suffix)
    if parent is not None:
        return "model", parse_reference(parent).name
    # nobody named it: the same data gives the same name, so that trying again makes a version and not a new adapter
    return "suffix", f"ft-{hashlib.sha256(request.training_file.encode()).hexdigest()[:8]}"


def _given_names(request: JobRequest) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [
        ("metadata.adapter", (request.metadata or {}).get("adapter")),
        ("hyperparameters.adapter", (request.hyperparameters or {}).get("adapter")),
    ]
    for kind, options in (request.method or {}).items():
        inner = options.get("hyperparameters") if isinstance(options, dict) else None
        if isinstance(inner, dict):
            found.append((f"method.{kind[:32]}.hyperparameters.adapter", inner.get("adapter")))
    return found


def shape_of(parent: str, config: bytes, modules: Collection[str]) -> ParentShape:
    """What of the parent stays as it is.

    Args:
        parent: Its ``name@version``.
        config: Its adapter_config.json, as it was uploaded.
        modules: Those that its weights have tensors of, which say what the config's expressions came to; none where
            that is not known.

    Raises:
        BadRequest: Its modules have several ranks or alphas, and a training has one of each.
    """
    manifest = Manifest.parse(config, max_rank=MAX_RANK)
    if modules:
        manifest = manifest.resolve(modules)
    for name, pattern in (("rank_pattern", manifest.rank_pattern), ("alpha_pattern", manifest.alpha_pattern)):
        if pattern:
            shown = ", ".join(f"{key[:100]} {value:g}" for key, value in list(pattern.items())[:3])
            raise BadRequest(
                f"`model` is `{parent}`, whose modules differ by its `{name}` ({shown}); a version is trained on from "
                "where all of its modules have one rank and one alpha",
                param="model",
                code="parent_unsupported",
            )
    targets = manifest.target_modules
    names = [targets] if isinstance(targets, str) else list(targets)
    return ParentShape(
        rank=manifest.rank,
        alpha=float(manifest.alpha),
        rslora=manifest.use_rslora,
        target_modules=tuple(names),
        modules=len(modules) or None,
    )


def reference(row: FileRow) -> FileRef:
    """A file as the trainer knows it."""
    return FileRef(id=row.id, filename=row.filename, bytes=row.bytes, sha256=row.sha256)
