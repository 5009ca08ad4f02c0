"""A trainer in this process whose evaluations are done by stand-ins, and a project's way to it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.unit.trainer.evaluate.conftest import KEY
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import BASE, EvaluationGateway
from tests.unit.trainer.finetune.trainers import gateway_headers
from trainer.app import Trainer, create_app
from trainer.config import Settings
from trainer.finetune.capacity import BaseModelInfo
from trainer.installation import Installation

STAND_IN = Path(__file__).with_name("stand_in.py")
OVER = ("succeeded", "failed", "cancelled")
PATIENCE_S = 180.0
CONTEXT = {
    "held_out": {"id": "held", "filename": "h.jsonl", "bytes": 9, "sha256": "0"},
    "candidate": "voice@3",
    "live": "voice@2",
    "records": True,
}
BODY = {"model": "voice", "held_out": "held"}


def stand_in(folder: Path, _stage: str) -> list[str]:
    return [sys.executable, str(STAND_IN), str(folder)]


@dataclass
class Client:
    """One project's way to a trainer, as the gateway would go it."""

    http: httpx.AsyncClient

    async def create(
        self, context: dict[str, Any] | None = None, idempotency: str | None = None, key: str = KEY, **body: Any
    ) -> httpx.Response:
        headers = {"x-hatrack-job-key": key, "x-hatrack-job-key-id": "key_job"}
        headers |= {"idempotency-key": idempotency} if idempotency else {}
        sent = {"request": {**BODY, **body}, "context": CONTEXT | (context or {})}
        return await self.http.post("/v1/evaluations", json=sent, headers=headers)

    async def made(self, **body: Any) -> str:
        answer = await self.create(**body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def get(self, evaluation_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"/v1/evaluations/{evaluation_id}")).json()
        return found

    async def until(self, evaluation_id: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = await self.get(evaluation_id)
            if wanted(found):
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"it did not come; the evaluation is {found}")

    async def ended(self, evaluation_id: str) -> dict[str, Any]:
        return await self.until(evaluation_id, lambda found: found["status"] in OVER)

    async def asking(self, evaluation_id: str) -> dict[str, Any]:
        return await self.until(evaluation_id, lambda found: (found["progress"] or {}).get("stage") == "asking")


class Running:
    """A trainer that runs."""

    def __init__(self, trainer: Trainer, app: Any) -> None:
        self.trainer, self._app = trainer, app
        self.directories = trainer.evaluations.directories

    def client(self, project: str = "default") -> Client:
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app, raise_app_exceptions=False),
            base_url="http://trainer",
            headers=gateway_headers(project),
            timeout=PATIENCE_S,
        )
        return Client(http)

    async def worker(self, evaluation_id: str) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            pid = self.directories.worker(evaluation_id)
            if pid:
                return pid
            await asyncio.sleep(0.02)
        raise AssertionError("there is no worker")

    async def killed(self) -> None:
        """As kill -9 leaves it: it takes no other turn, and tells its worker nothing when it is stopped."""
        supervisor = self.trainer.supervisor
        if supervisor._loop is not None:
            supervisor._loop.cancel()  # another turn would find the worker again
            await asyncio.gather(supervisor._loop, return_exceptions=True)
        supervisor._watches.clear()


@asynccontextmanager
async def running(home: Path, base_dir: Path, gateway: EvaluationGateway, **settings: Any) -> AsyncIterator[Running]:
    values: dict[str, Any] = {"device": "cpu", "stop_s": 120.0, **settings}
    chosen = Settings(**values)
    place = Installation(home=home, gateway=gateway.url, base=base_dir, base_name=BASE, max_rank=16, context=256)
    trainer = Trainer.build(chosen, place, BaseModelInfo.read(base_dir), evaluating=stand_in)
    app = create_app(trainer, chosen)
    async with app.router.lifespan_context(app):
        yield Running(trainer, app)
