"""The gateway's side of every run: creates its key, holds its files and requests it from the trainer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel

from adapters.protocol.runs import REPLAYED_HEADER, RUN_KEY_HEADER, RUN_KEY_ID_HEADER
from service.access.audit import Actor, note
from service.access.caller import Caller
from service.access.records import KeyDraft
from service.access.service import Keys
from service.database import Database
from service.errors import BadGateway, HatrackError, NotFound, TrainerUnavailable
from service.files.service import Files
from service.training.client import TrainerClient
from service.training.forward import kept_headers, read_bounded

T = TypeVar("T")
OK, NOT_FOUND, SERVER_ERROR = 200, 404, 500
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
    """A run to request from the trainer, with the key and the files that it needs.

    Attributes:
        path: The trainer's route that creates it.
        key: The key to create for it.
        files: Ids of the files that the key holds, by the request's field.
        headers: The request's headers, without the key.
        envelope: The request's body.
        action: The audit action.
        detail: Details for the audit, besides key and files.
        version: ``name@number`` whose held files may be used even if they were deleted from the list.
        claim: The trainer's route that tells what was created with a key; None if there is none.
    """

    path: str
    key: KeyDraft
    files: Mapping[str, str]
    headers: Mapping[str, str]
    envelope: BaseModel
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


class Training:
    """The gateway's side of the trainer's routes.

    Args:
        client: The trainer's client.
        database: Stores the audit.
        keys: Creates and revokes a job's key.
        files: Holds a job's files.

    ``check_budget`` refuses a new run of a project whose budget is spent; None: there are no budgets. ``check_request``
    refuses a request of a caller whose project's budget is spent.
    """

    def __init__(
        self,
        client: TrainerClient,
        database: Database,
        keys: Keys,
        files: Files,
    ) -> None:
        self.client = client
        self._database = database
        self._keys = keys
        self._files = files
        self.check_budget: Callable[[str], Awaitable[None]] | None = None
        self.check_request: Callable[[Caller], None] = lambda caller: None
        self._settling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel pending settlements and close the connections to the trainer."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        await self.client.close()

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
            headers = {**request.headers, **JSON, RUN_KEY_HEADER: key, RUN_KEY_ID_HEADER: key_id}
            body = orjson.dumps(request.envelope.model_dump())
            lost = True  # from here on only the trainer knows whether the job exists
            async with self.client.open("POST", request.path, headers, body) as response:
                answer = Answer(response.status, kept_headers(response), await read_bounded(response))
                lost = response.status >= SERVER_ERROR
                created = response.status < 400 and response.headers.get(REPLAYED_HEADER, "") != "true"
        except TrainerUnavailable:
            lost = False  # it was never reached
            raise
        finally:
            if lost and request.claim is not None:
                self._later(self._settle(Settlement(request, key_id, actor)))
            elif not created:
                await self._revoke(key_id, actor)
        if created:
            await self._record_created(request, key_id, actor, answer.body)
        return answer

    async def _record_created(self, request: ProvisionRequest, key_id: str, actor: Actor, body: bytes) -> None:
        detail = {**request.detail, "key": key_id, **request.files}
        await self.record_audit(actor, request.action, _id_in(body), detail)

    def _later(self, settling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(settling, name="settle a job's key")
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
        async with self.client.open("POST", f"{request.claim}/{key_id}", {**request.headers, **JSON}, b"") as response:
            content = await read_bounded(response)
        if response.status == NOT_FOUND:
            return None  # an older trainer without this route
        claim = _object_in(content)
        if response.status != OK or "job" not in claim:
            raise BadGateway(f"the trainer answered {response.status}", code="trainer_answer")
        return orjson.dumps(claim["job"]) if claim["job"] is not None else None

    async def _revoke(self, key_id: str, actor: Actor, tries: int = 0) -> None:
        """Revoke a key that no job uses; where that fails, as on a full disk, again later."""
        try:
            await self._keys.delete(actor, key_id)
        except NotFound:
            pass  # already revoked together with its parent
        except HatrackError:
            _LOG.exception("cannot revoke yet the key of a job that was not created", extra={"key_id": key_id})
            self._later(self._revoke_later(key_id, actor, tries))

    async def _revoke_later(self, key_id: str, actor: Actor, tries: int) -> None:
        await asyncio.sleep(SETTLE_S[min(tries, len(SETTLE_S) - 1)])
        await self._revoke(key_id, actor, tries + 1)

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
