"""Revokes the keys of runs that a former gateway was killed while it created."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import Any, Final

import orjson

from adapters.protocol.runs import UNUSED_KEYS_PATH, RunKeys
from service.access import records
from service.access.audit import SYSTEM
from service.access.service import Keys
from service.database import Database
from service.errors import HatrackError, NotFound
from service.training.client import TrainerClient
from service.training.forward import read_bounded

RETRY_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses between two questions while the trainer does not answer, s."""
NOT_FOUND: Final = 404
_LOG: Final = logging.getLogger("hatrack.training")


class LeftoverKeys:
    """Asks the trainer once which of the runs' keys that are there at the start no run has, and revokes those.

    A gateway that is killed after it has made a run's key, and before the trainer has made the run, leaves a key that
    nobody knows, and that holds the run's files.

    Args:
        client: The trainer's client.
        database: Has the keys.
        keys: Revokes them.
    """

    def __init__(self, client: TrainerClient, database: Database, keys: Keys) -> None:
        self._client, self._database, self._keys = client, database, keys
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Note which keys there are, before this gateway makes its own; the trainer is asked in the background."""
        key_ids = await self._database.run(records.run_key_ids)
        if key_ids:
            self._task = asyncio.create_task(self._revoke_unused(key_ids), name="leftover keys of runs")

    async def stop(self) -> None:
        """Stop asking; the next start asks again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _revoke_unused(self, key_ids: list[str]) -> None:
        for tries in count():
            try:
                unused = await self._unused(key_ids)
                break
            except HatrackError:
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
        for key_id in unused:
            try:
                await self._keys.delete(SYSTEM, key_id)
                _LOG.warning("revoked the key of a run that was never created", extra={"key_id": key_id})
            except NotFound:
                continue  # revoked meanwhile, with its parent
            except HatrackError:
                _LOG.exception("cannot revoke the key of a run that was never created", extra={"key_id": key_id})

    async def _unused(self, key_ids: list[str]) -> list[str]:
        """The keys that no run has; none from a trainer of an older release. Raises HatrackError: it cannot be told."""
        body = orjson.dumps(RunKeys(keys=tuple(key_ids)).model_dump())
        headers = {"content-type": "application/json"}
        async with self._client.open("POST", UNUSED_KEYS_PATH, headers, body) as response:
            content = await read_bounded(response)
        if response.status != 200:
            if response.status != NOT_FOUND:
                _LOG.warning("cannot tell which keys of runs are unused", extra={"status": response.status})
            return []
        answer: dict[str, Any] = orjson.loads(content)
        return [key_id for key_id in answer["unused"] if key_id in key_ids]
