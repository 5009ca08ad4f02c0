"""One engine under its own supervisor, with few slots and few resident adapters; tests put adapters into its store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from adapters.base import BaseDescription
from service.config import Settings
from service.engine.client import EngineClient
from service.engine.config import EngineConfig
from service.engine.process import members
from service.engine.supervisor import Supervisor
from tests.support.adapters import Variant, describe_base, make_adapter

SLOTS, RESIDENT = 6, 6
READY_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 300.0
JSON = {"content-type": "application/json"}
EVERY_MODULE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Engine:
    """A running engine, and the means to put adapters into its store without any inspection."""

    supervisor: Supervisor
    client: EngineClient
    store: Path
    base: BaseDescription
    base_name: str

    def put(self, name: str, *, variant: Variant = "sound", **options: Any) -> str:
        """Write an adapter straight into the store; returns its digest."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        made: dict[str, Any] = {"rank": 8, "alpha": 16, "modules": EVERY_MODULE, **options}
        make_adapter(self.store / digest, self.base, variant=variant, **made)
        return digest

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the engine's answer."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            with closing(await self.client.send(path, orjson.dumps(body), JSON)) as response:
                return response.status, await response.read()

    async def complete(self, model: str, prompt: str, **more: Any) -> tuple[int, Any]:
        """A short greedy completion with its token ids and the two likeliest tokens of each step."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": 10,
            "temperature": 0,
            "logprobs": 2,
            "return_token_ids": True,
            **more,
        }
        status, data = await self.post("/v1/completions", body)
        return status, orjson.loads(data)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def engine(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """The real engine; started once for this package."""
    home = tmp_path_factory.mktemp("engine")
    settings = Settings(
        home=home, base_model=str(base_dir), engine_slots=SLOTS, engine_resident=RESIDENT, engine_device="cpu"
    )
    config = EngineConfig.from_settings(settings)
    supervisor = Supervisor(config)
    await supervisor.start()
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not supervisor.ready:
            assert supervisor.state.name == "starting", config.log.read_text(errors="replace")[-4000:]
            await asyncio.sleep(0.2)
    token = str(orjson.loads(config.record.read_bytes())["token"])
    assert len(members(token)) >= 3, "API server, engine core and worker all carry the mark"
    base = describe_base(base_dir, served_name=config.base_name, cache_dir=home / "base-cache")
    yield Engine(supervisor, supervisor.client, config.store, base, config.base_name)
    await supervisor.stop()
    assert members(token) == [], "processes of the engine outlived the supervisor"
