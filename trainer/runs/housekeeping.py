"""The trainer's own requests to the gateway, made with a run's key: upload result files, revoke the key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import sqlalchemy as sa

from trainer.config import Settings
from trainer.database import Database
from trainer.runs import journal, records
from trainer.runs.directories import RunDirectories

TIMEOUT: Final = httpx.Timeout(10, connect=3)
RETRY_S: Final = (0.5, 2.0)
ROUND_S: Final = (1.0, 5.0, 15.0, 60.0)
"""Pauses between rounds of revoking while the gateway is unreachable."""
CLEARING_S: Final = 3600.0
RETRYABLE: Final = frozenset({408, 429})
PURPOSE: Final = "fine-tune-results"
_LOG = logging.getLogger("hatrack.trainer.gateway")


class Housekeeper:
    """Uploads runs' result files to the gateway, revokes the keys of finished runs, and deletes old runs' large files.

    Args:
        url: The gateway's URL.
        directories: The run directories of each kind, by the kind's name.
    """

    def __init__(
        self, url: str, settings: Settings, database: Database, directories: Mapping[str, RunDirectories]
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT)
        self._keep_s = settings.keep_days * 86400
        self._database = database
        self._directories = directories
        self._key_queued = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the background tasks."""
        self._tasks = [
            asyncio.create_task(self._revoke_all(), name="revoke-keys"),
            asyncio.create_task(self._clear_old(), name="clear-old-runs"),
        ]

    async def stop(self) -> None:
        """Stop the background tasks. Keys that are not revoked yet are revoked by the next trainer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def upload_results(self, directories: RunDirectories, run_id: str, files: dict[str, bytes]) -> list[str]:
        """Upload result files with the run's key and return their ids; stops at the first that the gateway refuses."""
        key = await asyncio.to_thread(directories.key, run_id)
        file_ids = []
        for name, content in files.items():
            file_id = await self._upload(key, name, content) if key is not None else None
            if file_id is None:
                _LOG.warning("could not upload a result file: run %s, %s", run_id, name)
                break
            file_ids.append(file_id)
        return file_ids

    async def _upload(self, key: str, name: str, content: bytes) -> str | None:
        for pause_s in (*RETRY_S, None):
            try:
                response = await self._http.post(
                    "/v1/files",
                    data={"purpose": PURPOSE},
                    files={"file": (name, content)},
                    headers={"authorization": f"Bearer {key}"},
                )
                if response.status_code < 300:
                    return str(response.json()["id"])
                if response.status_code < 500 and response.status_code not in RETRYABLE:
                    return None
            except httpx.TransportError:
                pass
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        return None

    async def revoke_key(self, directories: RunDirectories, run_id: str) -> None:
        """Have the key of a finished run revoked as soon as the gateway can be reached."""
        await asyncio.to_thread(directories.queue_key_revocation, run_id)
        self._key_queued.set()

    async def _revoke_all(self) -> None:
        tries = 0
        while True:
            self._key_queued.clear()
            queued = [
                path
                for directories in self._directories.values()
                for path in sorted(directories.keys_to_revoke.iterdir())
            ]
            left = [path for path in queued if not await self._revoke(path)]
            tries = tries + 1 if left else 0
            pause_s = ROUND_S[min(tries, len(ROUND_S)) - 1] if left else CLEARING_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._key_queued.wait()
            except TimeoutError:
                continue

    async def _revoke(self, path: Path) -> bool:
        """Revoke one key; False if it must be tried again."""
        try:
            key = path.read_text().strip()
        except OSError:
            _LOG.exception("cannot read the key of %s; it was not revoked", path.name)
            return False
        try:
            response = await self._http.delete("/v1/keys/current", headers={"authorization": f"Bearer {key}"})
        except httpx.TransportError:
            return False
        if response.status_code >= 500 or response.status_code in RETRYABLE:
            return False
        if response.status_code not in (200, 204, 401):
            _LOG.warning("the gateway refused to revoke the key of %s: status %d", path.name, response.status_code)
        path.unlink(missing_ok=True)
        return True

    async def _clear_old(self) -> None:
        while True:
            before = time.time() - self._keep_s
            for kind, directories in self._directories.items():
                try:
                    for run_id in await self._database.run(partial(records.stale, kind=kind, finished_before=before)):
                        await self._clear(directories, run_id)
                except Exception:
                    _LOG.exception("could not look for old runs of kind %s", kind)
            await asyncio.sleep(CLEARING_S)

    async def _clear(self, directories: RunDirectories, run_id: str) -> None:
        try:
            await asyncio.to_thread(directories.clear, run_id)
            await self._database.run(partial(clear_record, run_id=run_id))
        except Exception:  # one run that cannot be cleared must not block the others
            _LOG.exception("could not delete the large files of %s", run_id)


def clear_record(db: sa.Connection, run_id: str) -> None:
    """Record that a run's large files are deleted, and downsample its loss curve."""
    journal.downsample(db, run_id)
    records.change(db, run_id, cleared=True)
