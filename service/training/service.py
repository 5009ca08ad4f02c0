"""Training, as far as it is the gateway's: a job is checked, given its key and a hold on its data, and asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
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
from service.errors import BadGateway, Forbidden, HatrackError, NotFound, TrainerUnavailable
from service.files.purposes import Purpose
from service.files.service import Files
from service.registry import records
from service.registry.catalog import Catalog
from service.training.client import TrainerClient
from service.training.forward import kept_headers, read_bounded
from service.training.jobs import JobRequest, check, shape_of

T = TypeVar("T")
JOBS_PATH: Final = "/v1/fine_tuning/jobs"
REPLAY_PATH: Final = "/internal/jobs/replay"
CLAIM_PATH: Final = "/internal/jobs/claim"
OK, NOT_FOUND, CONFLICT, SERVER_ERROR = 200, 404, 409, 500
SETTLE_S: Final = (0.5, 2.0, 10.0, 60.0)
"""Between two questions whether a job was made, s, while the trainer cannot be asked."""
JSON: Final = {"content-type": "application/json"}
_LOG = logging.getLogger("hatrack.training")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the trainer answered, for the client."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Making:
    """Something that the trainer is to make.

    Attributes:
        path: Where the trainer is asked for it.
        key: What its key may do.
        files: Ids of the files that the key holds, by the field that names them.
        headers: Of the request, but for the key.
        body: Of the request.
        action: What the audit calls it.
        detail: What the audit tells of it, beside key and files.
        version: ``name@number``; what it holds may be off the list.
        claim: Where the trainer is asked what was made with a key; None where it cannot be asked that.
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
    """A making whose answer was lost: the key that it was given, and who asked."""

    making: Making
    key_id: str
    actor: Actor


class Training:
    """The gateway's side of the trainer's routes.

    Args:
        client: The trainer.
        database: For the audit.
        keys: Where a job's key is made and revoked.
        files: Whose holds keep a job's data.
        catalog: What a job may train on from.
        store: Where the weights of that are, which say what a config's expressions came to.
    """

    def __init__(
        self,
        client: TrainerClient,
        database: Database,
        keys: Keys,
        files: Files,
        catalog: Catalog,
        store: Store | None = None,
    ) -> None:
        self.client = client
        self._database = database
        self._keys = keys
        self._files = files
        self._catalog = catalog
        self._store = store
        self._settling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close the connections to the trainer."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self.client.close()

    async def create_job(self, caller: Caller, request: JobRequest, headers: dict[str, str], *, actor: Actor) -> Answer:
        """Check a job's creation, make its key, hold its files, and ask the trainer for it.

        Raises:
            Forbidden: The caller is a job itself, or may not make that adapter.
            NotFound: A file, or the model, does not exist for this caller.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: There is no answer; a key is left only with a job.
        """
        if caller.background:
            raise Forbidden("a job's own key makes no jobs", code="job_key")
        again = await self._replay(request, headers)
        if again is not None:
            return again
        files = {
            param: await self._files.named(caller, file_id, (Purpose.FINE_TUNE,), param)
            for param, file_id in request.files().items()
        }
        checked = check(request, caller, self._catalog)
        shape = await self._parent_shape(caller, checked.parent)
        sent = CreateJob(request=request.forwarded(), context=checked.context(files, shape))
        making = Making(
            path=JOBS_PATH,
            key=checked.key(caller),
            files=request.files(),
            headers=headers | JSON,
            body=orjson.dumps(sent.model_dump()),
            action="job.create",
            claim=CLAIM_PATH,
            detail={"adapter": checked.adapter, "model": request.model},
        )
        return await self.make(making, actor)

    async def _replay(self, request: JobRequest, headers: dict[str, str]) -> Answer | None:
        """What the same request has made before, whatever has become of its files and its parent since.

        Raises:
            TrainerUnavailable, BadGateway, Timeout: There is no answer.
        """
        if "idempotency-key" not in headers:
            return None
        body = orjson.dumps(request.forwarded())
        async with self.client.open("POST", REPLAY_PATH, headers | JSON, body) as response:
            answer = Answer(response.status, kept_headers(response), await read_bounded(response))
            known = response.headers.get(REPLAYED_HEADER, "") == "true"
        return answer if known or answer.status == CONFLICT else None

    async def _parent_shape(self, caller: Caller, parent: str | None) -> ParentShape | None:
        """What of the parent stays as it is; None where there is no parent, or it was deleted this moment.

        Raises:
            BadRequest: It cannot be trained on from.
        """
        if parent is None:
            return None
        named = parse_reference(parent)

        def read(db: sa.Connection) -> tuple[str, bytes | None] | None:
            holding = records.find(db, caller.project, named.name)
            row = holding.version(named.version) if holding is not None and named.version is not None else None
            return None if row is None else (row.digest, records.version_file(db, row.id, "config"))

        found = await self._database.run(read)
        digest, config = found if found is not None else ("", None)
        if config is None:
            return None
        return shape_of(parent, config, await asyncio.to_thread(self._modules, digest))

    def _modules(self, digest: str) -> frozenset[str]:
        """The modules that an adapter's weights have tensors of; none where they cannot be read."""
        try:
            return frozenset() if self._store is None else modules_in(self._store.path(digest) / WEIGHTS_FILE)
        except (OSError, AdapterError):
            _LOG.exception("the weights of a job's parent cannot be read", extra={"digest": digest})
            return frozenset()

    async def make(self, making: Making, actor: Actor) -> Answer:
        """Make the key, hold the files, and ask the trainer; to the end, whoever leaves: there is never a job that has
        no key, nor, once the trainer could be asked for it, a key that has no job.

        Raises:
            NotFound: A file is not there any more.
            Forbidden, Unauthenticated: The key reaches further than its creator's, which may be gone.
            TrainerUnavailable, BadGateway, Timeout: There is no answer; a key is left only with a job.
        """
        return await _to_the_end(self._make(making, actor))

    async def _make(self, making: Making, actor: Actor) -> Answer:
        made, key = await self._keys.mint(actor, making.key)
        key_id = str(made["id"])
        begun = lost = False
        try:
            await self._files.hold(making.key.project, key_id, dict(making.files), version=making.version)
            shown = {**making.headers, RUN_KEY_HEADER: key, RUN_KEY_ID_HEADER: key_id}
            lost = True  # from here on only the trainer knows what was made
            async with self.client.open("POST", making.path, shown, making.body) as response:
                answer = Answer(response.status, kept_headers(response), await read_bounded(response))
                lost = response.status >= SERVER_ERROR
                begun = response.status < 400 and response.headers.get(REPLAYED_HEADER, "") != "true"
        except TrainerUnavailable:
            lost = False  # it was never reached
            raise
        finally:
            if lost and making.claim is not None:
                self._settle_later(Settlement(making, key_id, actor))
            elif not begun:
                await self._forget(key_id, actor)
        if begun:
            await self._note_made(making, key_id, actor, answer.body)
        return answer

    async def _note_made(self, making: Making, key_id: str, actor: Actor, body: bytes) -> None:
        await self.noted(actor, making.action, _id_in(body), {**making.detail, "key": key_id, **making.files})

    def _settle_later(self, settlement: Settlement) -> None:
        task = asyncio.create_task(self._settle(settlement), name="settle a job's key")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, settlement: Settlement) -> None:
        """Find out whether a job was made, whose answer was lost: its key is revoked only where there is none.

        A key that was taken from its job would fail it; one that has no job is in nobody's hands meanwhile.
        """
        making, key_id, actor = settlement.making, settlement.key_id, settlement.actor
        for tries in count():
            try:
                body = await self._claimed(making, key_id)
            except HatrackError as error:
                _LOG.warning("it is not known yet whether a job was made", extra={"reason": error.message})
                await asyncio.sleep(SETTLE_S[min(tries, len(SETTLE_S) - 1)])
                continue
            if body is None:
                await self._forget(key_id, actor)
            else:
                await self._note_made(making, key_id, actor, body)
            return

    async def _claimed(self, making: Making, key_id: str) -> bytes | None:
        """The job that was made with a key, as JSON; None where there is none. Raises HatrackError."""
        async with self.client.open("POST", f"{making.claim}/{key_id}", dict(making.headers), b"") as response:
            content = await read_bounded(response)
        if response.status == NOT_FOUND:
            return None  # a trainer that does not know the question yet
        found = _object_in(content)
        if response.status != OK or "job" not in found:
            raise BadGateway(f"the trainer answered {response.status}", code="trainer_answer")
        return orjson.dumps(found["job"]) if found["job"] is not None else None

    async def _forget(self, key_id: str, actor: Actor) -> None:
        """Revoke a key that no job needs; it was never anybody's."""
        try:
            await self._keys.delete(actor, key_id)
        except NotFound:
            pass  # it died with its parent meanwhile
        except HatrackError:
            _LOG.exception("the key of a job that was not made could not be revoked", extra={"key_id": key_id})

    async def noted(self, actor: Actor, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
        """Note in the audit what the trainer was asked for and has done; it is done, noted or not."""
        try:
            await self._database.run(lambda db: note(db, actor, action, target, detail))
        except HatrackError:
            _LOG.exception("a change could not be noted", extra={"action": action, "target": target})


def _object_in(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _id_in(body: bytes) -> str:
    return str(_object_in(body).get("id", ""))


async def _to_the_end(change: Coroutine[Any, Any, T]) -> T:
    return await asyncio.shield(asyncio.ensure_future(change))
