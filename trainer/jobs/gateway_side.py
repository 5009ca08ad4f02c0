"""What the trainer itself asks of the gateway, with a job's key: to keep the job's result files, to revoke the key."""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import sqlalchemy as sa

from trainer.config import Settings
from trainer.jobs import records
from trainer.jobs.database import Database
from trainer.jobs.folders import Folders
from trainer.jobs.thinning import thin

TIMEOUT: Final = httpx.Timeout(10, connect=3)
RETRY_S: Final = (0.5, 2.0)
ROUND_S: Final = (1.0, 5.0, 15.0, 60.0)
"""Between two rounds of revoking while the gateway is away."""
CLEARING_S: Final = 3600.0
PASSING: Final = frozenset({408, 429})
PURPOSE: Final = "fine-tune-results"
COLUMNS: Final = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "full_valid_loss",
    "valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "tokens_per_s": "tokens_per_s",
}
"""Columns of the result file, the first five OpenAI's, and the fields of a `metrics` event that they come from."""
_LOG = logging.getLogger("hatrack.trainer.gateway")


class Rows(Protocol):
    """What has to be known of the records of jobs, or of evaluations."""

    def stale(self, db: sa.Connection, finished_before: float) -> list[str]:
        """Those that ended before then (Unix seconds) and whose big files are still there."""

    def cleared(self, db: sa.Connection, job_id: str) -> None:
        """Note that the big files of this one are gone."""


class JobRows:
    """Of jobs."""

    def stale(self, db: sa.Connection, finished_before: float) -> list[str]:
        """See Rows."""
        return records.stale(db, finished_before)

    def cleared(self, db: sa.Connection, job_id: str) -> None:
        """See Rows; of its curve, fewer points stay."""
        thin(db, job_id)
        records.change(db, job_id, cleared=True)


JOBS: Final = JobRows()


def metrics_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A job's numbers, a line a step."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([row.get(field, "") for field in COLUMNS.values()] for row in rows)
    return text.getvalue().encode()


class GatewaySide:
    """Keeps a job's results at the gateway, and keeps house: spent keys are revoked, old jobs' big files deleted.

    Args:
        url: The gateway's.
        place: The folders of what is done.
        rows: The records of what is done in them.
    """

    def __init__(self, url: str, settings: Settings, database: Database, place: Folders, rows: Rows = JOBS) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT)
        self._keep_s = settings.keep_days * 86400
        self._database = database
        self._place = place
        self._rows = rows
        self._spent = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to keep house."""
        self._tasks = [
            asyncio.create_task(self._revoke_all(), name="revoke-keys"),
            asyncio.create_task(self._clear_old(), name="clear-old-jobs"),
        ]

    async def stop(self) -> None:
        """End; keys that are left are revoked by the next trainer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def keep(self, job_id: str, files: dict[str, bytes]) -> list[str]:
        """Upload result files with the job's key; the ids of those that the gateway took."""
        key = await asyncio.to_thread(self._place.key, job_id)
        kept = []
        for name, content in files.items():
            found = await self._upload(key, name, content) if key is not None else None
            if found is None:
                _LOG.warning("a result file was not kept: job %s, %s", job_id, name)
                break
            kept.append(found)
        return kept

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
                if response.status_code < 500 and response.status_code not in PASSING:
                    return None
            except httpx.TransportError:
                pass
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        return None

    async def spend_key(self, job_id: str) -> None:
        """The job is over: its key is revoked as soon as the gateway can be reached."""
        await asyncio.to_thread(self._place.spend_key, job_id)
        self._spent.set()

    async def _revoke_all(self) -> None:
        tries = 0
        while True:
            self._spent.clear()
            left = [path for path in sorted(self._place.spent.iterdir()) if not await self._revoke(path)]
            tries = tries + 1 if left else 0
            pause_s = ROUND_S[min(tries, len(ROUND_S)) - 1] if left else CLEARING_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._spent.wait()
            except TimeoutError:
                continue

    async def _revoke(self, path: Path) -> bool:
        """Revoke one key; False where it is to be tried again."""
        key = path.read_text().strip()
        try:
            response = await self._http.delete("/v1/keys/current", headers={"authorization": f"Bearer {key}"})
        except httpx.TransportError:
            return False
        if response.status_code >= 500 or response.status_code in PASSING:
            return False
        if response.status_code not in (200, 204, 401):
            _LOG.warning("the gateway did not revoke the key of %s: status %d", path.name, response.status_code)
        path.unlink(missing_ok=True)
        return True

    async def _clear_old(self) -> None:
        while True:
            before = time.time() - self._keep_s
            for job_id in await self._database.run(partial(self._rows.stale, finished_before=before)):
                await asyncio.to_thread(self._place.clear, job_id)
                await self._database.run(partial(self._rows.cleared, job_id=job_id))
            await asyncio.sleep(CLEARING_S)
