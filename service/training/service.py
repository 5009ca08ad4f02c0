"""The gateway's side of training: checks a job, creates its key, holds its files and requests it from the trainer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa

from adapters.errors import AdapterError
from adapters.inspect import modules_in
from adapters.names import parse_reference
from adapters.protocol.runs import REPLAYED_HEADER, RUN_KEY_HEADER, RUN_KEY_ID_HEADER, CreateJob, ParentShape
from adapters.store import WEIGHTS_FILE, Store
from service.access.audit import Actor, note
from service.access.caller import Caller
from service.access.records import KeyDraft
from service.access.service import Keys
from service.database import Database
from service.datasets.service import NamedFile, named_file
from service.errors import BadGateway, Forbidden, HatrackError, NotFound, TrainerUnavailable
from service.files.purposes import Purpose
from service.files.service import Files
from service.registry import records
from service.registry.catalog import Catalog
from service.training.client import TrainerClient
from service.training.forward import kept_headers, read_bounded
from service.training.jobs import AuthorizedJob, JobRequest, check, datasets_detail, shape_of

T = TypeVar("T")
JOBS_PATH: Final = "/v1/fine_tuning/jobs"
REPLAY_PATH: Final = "/internal/jobs/replay"
CLAIM_PATH: Final = "/internal/jobs/claim"
OK, NOT_FOUND, CONFLICT, SERVER_ERROR = 200, 404, 409, 500
SETTLE_S: Final = (0.5, 2.0, 10.0, 60.0)
"""Delays between attempts to find out whether a job was created, s, while the trainer is unavailable."""
JSON: Final = {"content-type": "application/json"}
_LOG = logging.getLogger("hatrack.training")


@dataclass(frozen=True, slots=True)
class Answer:
    """The trainer's response, for the client."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class ProvisionRequest:
    """A job or an evaluation to request from the trainer, with the key and the files that it needs.

    Attributes:
        path: The trainer's route that creates it.
        key: The key to create for it.
        files: Ids of the files that the key holds, by the request's field.
        headers: The request's headers, without the key.
        body: The request's body.
        action: The audit action.
        detail: Details for the audit, besides key and files.
        version: ``name@number`` whose held files may be used even if they were deleted from the list.
        claim: The trainer's route that tells what was created with a key; None if there is none.
    """

    path: str
    key: KeyDraft
    files: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    action: str
    detail: Mapping[str, Any]
    version: str | None = None
    claim: str | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """A request whose response was lost: the key that was created for it, and the actor."""

    request: ProvisionRequest
    key_id: str
    actor: Actor


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """An authorised job: its files by the request's field, and what is sent to the trainer."""

    authorized: AuthorizedJob
    files: dict[str, NamedFile]
    envelope: CreateJob


class Training:
    """The gateway's side of the trainer's routes.

    Args:
        client: The trainer's client.
        database: Stores the audit.
        keys: Creates and revokes a job's key.
        files: Holds a job's files.
        catalog: The versions that a job may continue training.
        store: The versions' weights, which tell the modules that a config's patterns match.
        check_budget: Refuses a new run of a project whose budget is spent.
    """

    def __init__(
        self,
        client: TrainerClient,
        database: Database,
        keys: Keys,
        files: Files,
        catalog: Catalog,
        store: Store | None = None,
        check_budget: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.client = client
        self._database = database
        self._keys = keys
        self._files = files
        self._catalog = catalog
        self._store = store
        self.check_budget = check_budget
        self._settling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel pending settlements and close the connections to the trainer."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self.client.close()

    async def create_job(self, caller: Caller, request: JobRequest, headers: dict[str, str], *, actor: Actor) -> Answer:
        """Check the request, create the job's key, hold its files and request the job from the trainer.

        Raises:
            Forbidden: The caller is itself a job, or may not create that adapter.
            NotFound: A file, a dataset or the model does not exist for this caller.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: No response; the key is kept only if the job exists.
        """
        if caller.background:
            raise Forbidden("a job's own key cannot create jobs", code="job_key")
        replayed = await self._replay(request, headers)
        if replayed is not None:
            return replayed
        prepared = await self.prepare_job(caller, request)
        provision = ProvisionRequest(
            path=JOBS_PATH,
            key=prepared.authorized.key(caller),
            files={param: named.file.id for param, named in prepared.files.items()},
            headers=headers | JSON,
            body=orjson.dumps(prepared.envelope.model_dump()),
            action="job.create",
            claim=CLAIM_PATH,
            detail={"adapter": prepared.authorized.adapter, "model": request.model, **datasets_detail(prepared.files)},
        )
        return await self.provision(provision, actor)

    async def prepare_job(self, caller: Caller, request: JobRequest) -> PreparedJob:
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
        async with self.client.open("POST", REPLAY_PATH, headers | JSON, body) as response:
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
            return frozenset() if self._store is None else modules_in(self._store.path(digest) / WEIGHTS_FILE)
        except (OSError, AdapterError):
            _LOG.exception("cannot read the weights of a job's parent", extra={"digest": digest})
            return frozenset()

    async def provision(self, request: ProvisionRequest, actor: Actor) -> Answer:
        """Create the key, hold the files and send the request to the trainer.

        Runs to completion even if the client disconnects: no job is left without a key and, once the trainer could be
        asked, no key without a job.

        Raises:
            NotFound: A file no longer exists.
            Forbidden, Unauthenticated: The key would exceed its creator's rights, or the creator's key is gone.
            QuotaSpent: The project's budget is spent.
            TrainerUnavailable, BadGateway, Timeout: No response; the key is kept only if the job exists.
        """
        if self.check_budget is not None:
            await self.check_budget(request.key.project)
        return await _run_to_completion(self._provision(request, actor))

    async def _provision(self, request: ProvisionRequest, actor: Actor) -> Answer:
        minted, key = await self._keys.mint(actor, request.key)
        key_id = str(minted["id"])
        created = lost = False
        try:
            await self._files.hold(request.key.project, key_id, dict(request.files), version=request.version)
            headers = {**request.headers, RUN_KEY_HEADER: key, RUN_KEY_ID_HEADER: key_id}
            lost = True  # from here on only the trainer knows whether the job exists
            async with self.client.open("POST", request.path, headers, request.body) as response:
                answer = Answer(response.status, kept_headers(response), await read_bounded(response))
                lost = response.status >= SERVER_ERROR
                created = response.status < 400 and response.headers.get(REPLAYED_HEADER, "") != "true"
        except TrainerUnavailable:
            lost = False  # it was never reached
            raise
        finally:
            if lost and request.claim is not None:
                self._settle_later(Settlement(request, key_id, actor))
            elif not created:
                await self._revoke(key_id, actor)
        if created:
            await self._record_created(request, key_id, actor, answer.body)
        return answer

    async def _record_created(self, request: ProvisionRequest, key_id: str, actor: Actor, body: bytes) -> None:
        detail = {**request.detail, "key": key_id, **request.files}
        await self.record_audit(actor, request.action, _id_in(body), detail)

    def _settle_later(self, settlement: Settlement) -> None:
        task = asyncio.create_task(self._settle(settlement), name="settle a job's key")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, settlement: Settlement) -> None:
        """Find out whether a job whose response was lost was created; revoke its key only if it was not.

        Revoking the key of an existing job would fail the job; a key without a job is known to nobody meanwhile.
        """
        request, key_id, actor = settlement.request, settlement.key_id, settlement.actor
        for tries in count():
            try:
                body = await self._claimed(request, key_id)
            except HatrackError as error:
                _LOG.warning("cannot tell yet whether a job was created", extra={"reason": error.message})
                await asyncio.sleep(SETTLE_S[min(tries, len(SETTLE_S) - 1)])
                continue
            if body is None:
                await self._revoke(key_id, actor)
            else:
                await self._record_created(request, key_id, actor, body)
            return

    async def _claimed(self, request: ProvisionRequest, key_id: str) -> bytes | None:
        """The job that was created with a key, as JSON; None if there is none. Raises HatrackError."""
        async with self.client.open("POST", f"{request.claim}/{key_id}", dict(request.headers), b"") as response:
            content = await read_bounded(response)
        if response.status == NOT_FOUND:
            return None  # an older trainer without this route
        claim = _object_in(content)
        if response.status != OK or "job" not in claim:
            raise BadGateway(f"the trainer answered {response.status}", code="trainer_answer")
        return orjson.dumps(claim["job"]) if claim["job"] is not None else None

    async def _revoke(self, key_id: str, actor: Actor) -> None:
        """Revoke a key that no job uses."""
        try:
            await self._keys.delete(actor, key_id)
        except NotFound:
            pass  # already revoked together with its parent
        except HatrackError:
            _LOG.exception("cannot revoke the key of a job that was not created", extra={"key_id": key_id})

    async def record_audit(self, actor: Actor, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
        """Record in the audit a change that the trainer has made; a failure is logged, since the change stands."""
        try:
            await self._database.run(lambda db: note(db, actor, action, target, detail))
        except HatrackError:
            _LOG.exception("cannot record a change in the audit", extra={"action": action, "target": target})


def _object_in(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _id_in(body: bytes) -> str:
    return str(_object_in(body).get("id", ""))


async def _run_to_completion(change: Coroutine[Any, Any, T]) -> T:
    return await asyncio.shield(asyncio.ensure_future(change))
