"""Training, as far as it is the gateway's: a job is checked, given its key and a hold on its data, and asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from service.access.audit import Actor, note
from service.access.caller import Caller
from service.access.service import Keys
from service.database import Database
from service.errors import Forbidden, HatrackError, NotFound
from service.files.purposes import Purpose
from service.files.service import Files
from service.registry.catalog import Catalog
from service.training.client import TrainerClient
from service.training.forward import kept_headers, read_bounded
from service.training.jobs import Checked, JobRequest, check

T = TypeVar("T")
JOBS_PATH: Final = "/v1/fine_tuning/jobs"
REPLAYED: Final = "x-hatrack-replayed"
"""The trainer's word that an Idempotency-Key was known, and that the answer is about a job that was there already."""
_LOG = logging.getLogger("hatrack.training")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the trainer answered, for the client."""

    status: int
    headers: dict[str, str]
    body: bytes


class Training:
    """The gateway's side of the trainer's routes.

    Args:
        client: The trainer.
        database: For the audit.
        keys: Where a job's key is made and revoked.
        files: Whose holds keep a job's data.
        catalog: What a job may train on from.
    """

    def __init__(self, client: TrainerClient, database: Database, keys: Keys, files: Files, catalog: Catalog) -> None:
        self.client = client
        self._database = database
        self._keys = keys
        self._files = files
        self._catalog = catalog

    async def close(self) -> None:
        """Close the connections to the trainer."""
        await self.client.close()

    async def create_job(self, caller: Caller, request: JobRequest, headers: dict[str, str], *, actor: Actor) -> Answer:
        """Check a job's creation, make its key, hold its files, and ask the trainer for it.

        Raises:
            Forbidden: The caller is a job itself, or may not make that adapter.
            NotFound: A file, or the model, does not exist for this caller.
            BadRequest: A field's value is not allowed.
            TrainerUnavailable, BadGateway, Timeout: There is no answer; no key of the job is left.
        """
        if caller.background:
            raise Forbidden("a job's own key makes no jobs", code="job_key")
        files = {
            param: await self._files.named(caller, file_id, Purpose.FINE_TUNE, param)
            for param, file_id in request.files().items()
        }
        checked = check(request, caller, self._catalog)
        more = {"content-type": "application/json", "x-hatrack-job-context": checked.context(files)}
        # to the end, whoever leaves: never a job that has no key, nor a key that has no job
        return await _to_the_end(self._create(caller, request, checked, headers | more, actor))

    async def _create(
        self, caller: Caller, request: JobRequest, checked: Checked, headers: dict[str, str], actor: Actor
    ) -> Answer:
        made, key = await self._keys.mint(actor, checked.key(caller))
        key_id = str(made["id"])
        begun = False
        try:
            await self._files.hold(caller.project, key_id, request.files())
            shown = headers | {"x-hatrack-job-key": key, "x-hatrack-job-key-id": key_id}
            async with self.client.open("POST", JOBS_PATH, shown, request.forwarded()) as response:
                answer = Answer(response.status, kept_headers(response), await read_bounded(response))
                begun = response.status < 400 and response.headers.get(REPLAYED, "") != "true"
        finally:
            if not begun:
                await self._forget(key_id, actor)
        if begun:
            detail = {"adapter": checked.adapter, "model": request.model, "key": key_id, **request.files()}
            await self.noted(actor, "job.create", _id_in(answer.body), detail)
        return answer

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


def _id_in(body: bytes) -> str:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return str(found.get("id", "")) if isinstance(found, dict) else ""


async def _to_the_end(change: Coroutine[Any, Any, T]) -> T:
    return await asyncio.shield(asyncio.ensure_future(change))
