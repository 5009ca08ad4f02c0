"""A trainer in this process with stand-in workers, and the official client in front of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.through_gateway import CONTEXT_HEADER, ThroughGateway
from trainer.app import Trainer, create_app
from trainer.config import Settings
from trainer.finetune.capacity import BaseModelInfo
from trainer.installation import Installation, OtherBase

STAND_IN = Path(__file__).with_name("stand_in.py")
OVER = ("succeeded", "failed", "cancelled")
PATIENCE_S = 180.0


def stand_in(folder: Path, stage: str) -> list[str]:
    return [sys.executable, str(STAND_IN), str(folder), "--stage", stage]


def context(adapter: str = "voice", content: bytes = b"{}", **more: Any) -> str:
    file = {"id": "train", "filename": "t.jsonl", "bytes": 4096, "sha256": hashlib.sha256(content).hexdigest()}
    told = {"adapter": adapter, "parent": None, "training_file": file, "validation_file": None}
    return base64.urlsafe_b64encode(json.dumps(told | more).encode()).decode()


def gateway_headers(project: str = "default", secret: str | None = None) -> dict[str, str]:
    found = {"x-hatrack-project": project, "x-hatrack-key-id": "key_creator", "x-request-id": "r1"}
    return found | ({"x-hatrack-trainer-secret": secret} if secret else {})


@dataclass
class Client:
    """One project's way to a trainer, as the gateway would go it."""

    http: httpx.AsyncClient
    openai: AsyncOpenAI

    async def create(self, headers: dict[str, str] | None = None, key: str = KEY, **body: Any) -> Any:
        told = {"x-hatrack-job-key": key, "x-hatrack-job-key-id": "key_job", CONTEXT_HEADER: context()}
        values: dict[str, Any] = {"model": "tiny", "training_file": "train"} | body
        return await self.openai.fine_tuning.jobs.create(**values, extra_headers=told | (headers or {}))

    async def until(self, job_id: str, wanted: Callable[[Any], bool], what: str = "it") -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            job = await self.openai.fine_tuning.jobs.retrieve(job_id)
            if wanted(job):
                return job
            await asyncio.sleep(0.05)
        raise AssertionError(f"{what} did not come; the job is {job}, its events {await self.messages(job_id)}")

    async def ended(self, job_id: str) -> Any:
        return await self.until(job_id, lambda job: job.status in OVER, "the end")

    async def at_step(self, job_id: str, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if max(await self.steps(job_id), default=0) >= step:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"step {step} did not come: {await self.messages(job_id)}")

    async def steps(self, job_id: str) -> list[int]:
        """Those that it told of, in their order."""
        return [event.data["step"] for event in await self.events(job_id) if event.type == "metrics"]

    async def events(self, job_id: str) -> list[Any]:
        """All of them, oldest first."""
        found = [event async for event in self.openai.fine_tuning.jobs.list_events(job_id, limit=100)]
        return found[::-1]

    async def messages(self, job_id: str) -> list[str]:
        return [event.message for event in await self.events(job_id)]


class Running:
    """A trainer that runs."""

    def __init__(self, trainer: Trainer, app: Any, secret: str | None) -> None:
        self.trainer, self.app, self._secret = trainer, app, secret

    def client(self, project: str = "default") -> Client:
        http = httpx.AsyncClient(
            transport=ThroughGateway(httpx.ASGITransport(self.app, raise_app_exceptions=False)),
            base_url="http://trainer",
            headers=gateway_headers(project, self._secret),
            timeout=PATIENCE_S,
        )
        return Client(
            http, AsyncOpenAI(api_key="unused", base_url="http://trainer/v1", http_client=http, max_retries=0)
        )


def installation(home: Path, base_dir: Path, gateway: FakeGateway) -> Installation:
    return Installation(
        home=home, gateway=gateway.url, base=base_dir, base_name="tiny", max_rank=16, context=256, engine_device="cpu"
    )


@asynccontextmanager
async def running(
    home: Path,
    base_dir: Path,
    gateway: FakeGateway,
    command: Any = stand_in,
    others: tuple[OtherBase, ...] = (),
    **settings: Any,
) -> AsyncIterator[Running]:
    chosen = Settings(**({"device": "cpu", "checkpoint_s": 0.0, "stop_s": 120.0} | settings))
    place = replace(installation(home, base_dir, gateway), others=others)
    infos = {other.base_name: BaseModelInfo.read(other.base) for other in others}
    trainer = Trainer.build(chosen, place, BaseModelInfo.read(base_dir), command, others=infos)
    app = create_app(trainer, chosen)
    async with app.router.lifespan_context(app):
        yield Running(trainer, app, chosen.secret.get_secret_value() if chosen.secret else None)
