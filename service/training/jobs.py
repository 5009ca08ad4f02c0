"""Fine-tuning jobs: authorised here, created by the trainer. See `service.training.authorization`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from adapters.errors import AdapterError
from adapters.inspect import modules_in
from adapters.names import parse_reference
from adapters.protocol.runs import REPLAYED_HEADER, CreateJob, ParentShape
from adapters.store import WEIGHTS_FILE
from service.access.audit import Actor
from service.access.caller import Caller
from service.concurrency import in_thread
from service.database import Database
from service.datasets.service import NamedFile, named_file
from service.errors import Conflict
from service.files.purposes import Purpose
from service.files.service import Files
from service.grounding.config import GroundingSettings
from service.http.body import as_model
from service.objects.adapters import StoredAdapters
from service.registry import records
from service.registry.catalog import Catalog
from service.training.authorization import datasets_detail, live_grounding, refuse_run_key, stores_of
from service.training.forward import kept_headers, read_bounded
from service.training.job_request import (
    AuthorizedJob,
    JobRequest,
    authorize,
    check_requested_sampling,
    requested_grounding,
    shape_of,
)
from service.training.service import JSON, Answer, ProvisionRequest, Training

JOBS_PATH: Final = "/v1/fine_tuning/jobs"
REPLAY_PATH: Final = "/internal/jobs/replay"
CLAIM_PATH: Final = "/internal/jobs/claim"
CONFLICT: Final = 409
_LOG = logging.getLogger("hatrack.training")


CheckGrounding = Callable[[GroundingSettings, Caller, str], Awaitable[None]]
"""Raises HatrackError for a provider or a store that the caller may not ask; the text is the request's field."""


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """An authorised job.

    Attributes:
        authorized: What it trains.
        files: Its files, by the request's field.
        envelope: What is sent to the trainer.
        passages_by: The request's field by which passages are retrieved for its training prompts; None: none are.
    """

    authorized: AuthorizedJob
    files: dict[str, NamedFile]
    envelope: CreateJob
    passages_by: str | None = None


class JobService:
    """Creates fine-tuning jobs.

    Args:
        training: Requests them from the trainer.
        files: Holds their files.
        catalog: The versions that a job may continue training.
        database: The parents' configurations.
        adapters: The versions' weights, which tell the modules that a config's patterns match.
        check_grounding: Whether a version's grounding can be asked for; None: not checked before the job's end.
    """

    def __init__(
        self,
        training: Training,
        files: Files,
        catalog: Catalog,
        database: Database,
        adapters: StoredAdapters,
        check_grounding: CheckGrounding | None = None,
    ) -> None:
        self._training = training
        self._files = files
        self._catalog = catalog
        self._database = database
        self._adapters = adapters
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
            key=authorized.key(caller, prepared.envelope.context.stores or ()),
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
        authorized = authorize(request, caller, self._catalog)
        check_requested_sampling(request)
        grounding = requested_grounding(request)
        passages_by = self._passages_by(caller, grounding, authorized.parent)
        if grounding is not None and self._check_grounding is not None:
            param, settings = grounding
            await self._check_grounding(settings, caller, param)
        shape = await self._parent_shape(caller, authorized.parent)
        stores = await stores_of(self._database, caller.project, self._groundings(caller, authorized, grounding))
        envelope = CreateJob(request=request.forwarded(), context=authorized.context(files, shape, stores))
        return PreparedJob(authorized, files, envelope, passages_by)

    def _groundings(
        self, caller: Caller, authorized: AuthorizedJob, requested: tuple[str, GroundingSettings] | None
    ) -> list[dict[str, Any] | None]:
        """How the new version, its parent and what is live under its name are grounded."""
        own = None if requested is None else requested[1].model_dump(mode="json")
        parent = None if authorized.parent is None else self._catalog.resolve(caller, authorized.parent).settings
        of_parent = None if parent is None else parent.stored().get("grounding")
        return [own, of_parent, live_grounding(self._catalog, caller.project, authorized.adapter)]

    def _passages_by(
        self, caller: Caller, grounding: tuple[str, GroundingSettings] | None, parent: str | None
    ) -> str | None:
        """The field that names the grounding of the new version: its own, or `model` for its parent's."""
        if grounding is not None:
            param, settings = grounding
            return param if settings.model_fields_set else None
        if parent is None or self._catalog.resolve(caller, parent).settings.grounding is None:
            return None
        return "model"

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
        return shape_of(parent, config, await self._modules(digest))

    async def _modules(self, digest: str) -> frozenset[str]:
        """The modules that an adapter's weights have tensors for; empty if the weights cannot be read."""
        try:
            return await in_thread(modules_in, await self._adapters.path(digest) / WEIGHTS_FILE)
        except (OSError, AdapterError, Conflict):
            _LOG.exception("cannot read the weights of a job's parent", extra={"digest": digest})
            return frozenset()
