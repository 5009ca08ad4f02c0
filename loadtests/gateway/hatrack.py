"""Hatrack in the benchmark: `hatrack serve` itself, with a home, a base, a project, a key with limits and an adapter.

The engine is the fake one, given by ``HATRACK_ENGINE_URL``; everything else is what production runs. The base is a
checkpoint of a few kilobytes and the adapter fits it; both go through the gateway's own doors, proof included.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import httpx

from loadtests.gateway.contenders import Contender, Failed, Place, free_port
from loadtests.gateway.peers import ENGINE_MODEL, MODEL
from service.config import Settings
from service.engine.assemble import describe_base
from service.engine.contract import PLUGIN_PROTOCOL
from service.engine.identity import ensure_store_id
from tests.support.adapters import describe_base as describe_small
from tests.support.adapters import make_adapter, make_base

PROJECT = "team"
SEQUENCES = 512
"""Requests that the engine is said to take at once: admission gives one key most of them, more than are ever sent."""
DEVICE: Literal["cuda"] = "cuda"
"""Admission lets in as many prompt tokens at once as suits a GPU; a CPU's 128 would be the bound of this benchmark."""
PROOF_TIMEOUT_S = 30.0
LIMITS = {
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "concurrent": 10**6,
    "tokens_per_day": 10**15,
}
"""All four are counted for each request, and none is reached."""


def settings(work: Path, sequences: int = SEQUENCES) -> Settings:
    """The settings of the benchmark's gateway, but for its port, key and engine."""
    return Settings(
        home=work / "home",
        base_model=str(work / "base"),
        base_name=ENGINE_MODEL,
        engine_device=DEVICE,
        engine_max_seqs=sequences,
    )


def plugin_report(work: Path, sequences: int = SEQUENCES) -> dict[str, Any]:
    """What the plugin of a real engine would say that serves this base and this store. Makes both."""
    if not (work / "base" / "config.json").exists():
        make_base(work / "base")
    chosen = settings(work, sequences)
    base = describe_base(chosen)
    return {
        "protocol": PLUGIN_PROTOCOL,
        "plugin": "0" * 16,
        "boot": "0" * 16,
        "signature": "0" * 16,
        "base": base.fingerprint.model_dump(),
        "hatrack": "0",
        "vllm": base.fingerprint.engine_version,
        "torch": "0",
        "store": str(chosen.store_dir),
        "store_id": ensure_store_id(chosen.store_dir),
        "model": str(chosen.base_dir),
        "names": [ENGINE_MODEL],
        "dtype": "bfloat16",
        "quantization": None,
        "context": chosen.context,
        "slots": chosen.engine_slots,
        "max_rank": chosen.engine_max_rank,
        "resident_limit": chosen.engine_resident,
        "max_sequences": sequences,
        "tasks": ["generate"],
        "asked": 0,
        "loaded": [],
    }


def hatrack(
    place: Place, *, sequences: int = SEQUENCES, admin: str | None = None, more: Mapping[str, str] | None = None
) -> Contender:
    """`hatrack serve` in front of the fake engine.

    Args:
        sequences: Requests that the engine is said to take at once.
        admin: The admin's key; None: one that nobody else knows.
        more: Settings beside the benchmark's, as environment variables.
    """
    port, chosen = free_port(), settings(place.work, sequences)
    admin = admin or "admin-" + secrets.token_hex(16)
    environment = {
        "HATRACK_HOME": str(chosen.home),
        "HATRACK_BASE_MODEL": chosen.base_model,
        "HATRACK_BASE_NAME": ENGINE_MODEL,
        "HATRACK_ENGINE_DEVICE": DEVICE,
        "HATRACK_ENGINE_MAX_SEQS": str(sequences),
        "HATRACK_ENGINE_URL": place.upstream,
        "HATRACK_PORT": str(port),
        "HATRACK_ADMIN_KEY": admin,
        **(more or {}),
    }
    command = [sys.executable, "-m", "service.cli", "serve"]
    server = place.server("hatrack", command, port, environment=environment, ready_path="/readyz")
    what = "`hatrack serve`: keys, four limits, usage, metrics, admission and its log on; an adapter through its alias"
    return Contender("Hatrack", what, server, prepare=lambda contender: _prepare(contender, admin, place.work))


def _prepare(contender: Contender, admin: str, work: Path) -> None:
    """A project's key with limits, and an adapter that it may use. Raises Failed."""
    with httpx.Client(base_url=contender.server.url, timeout=PROOF_TIMEOUT_S, trust_env=False) as client:
        wanted = {"name": "bench", "project": PROJECT, "scopes": ["infer", "adapters"], "limits": LIMITS}
        key = _ok(client.post("/v1/keys", json=wanted, headers={"authorization": f"Bearer {admin}"}))["key"]
        files = make_adapter(work / "adapter", describe_small(work / "base"))
        pushed = client.post(
            "/v1/adapters",
            headers={"authorization": f"Bearer {key}"},
            data={"name": MODEL},
            files={
                "config": ("adapter_config.json", files.config),
                "weights": ("adapter_model.safetensors", files.weights),
            },
        )
        if _ok(pushed).get("state") != "ready":
            raise Failed(f"the benchmark's adapter is not ready: {pushed.text}")
    contender.key = key


def _ok(response: httpx.Response) -> dict[str, Any]:
    if response.status_code >= 300:
        raise Failed(f"{response.request.url.path} answered {response.status_code}: {response.text[:500]}")
    answer: dict[str, Any] = response.json()
    return answer
