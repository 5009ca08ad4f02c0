"""Hatrack and the fake engine as processes that stay up for a load test, and what the gateway's process holds."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtests.gateway.contenders import Contender, Failed, Place, Server
from loadtests.gateway.hatrack import LIMITS, hatrack
from loadtests.gateway.run import start_upstream

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds at one moment."""

    rss_mib: float
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """The process's own, its children's aside."""
        process = psutil.Process(pid)
        with process.oneshot():
            return cls(process.memory_info().rss / 2**20, process.num_threads(), process.num_fds())

    def peak(self, other: Footprint) -> Footprint:
        """The larger of each figure."""
        return Footprint(
            max(self.rss_mib, other.rss_mib),
            max(self.threads, other.threads),
            max(self.descriptors, other.descriptors),
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """A gateway with everything on, and its engine."""

    gateway: Contender
    """Its key and its adapter belong to one project; `key` makes more."""
    engine: Server
    admin: str

    @property
    def port(self) -> int:
        return self.gateway.server.port

    def footprint(self) -> Footprint:
        """What the gateway's process holds now."""
        return Footprint.of(self.gateway.server.pid)

    def key(self, project: str) -> str:
        """A new key of a project, with all limits and none that is ever reached."""
        wanted = {"name": "load", "project": project, "scopes": ["infer"], "limits": LIMITS}
        answer = self._ask("POST", "/v1/keys", json=wanted)
        return str(answer.json()["key"])

    def metrics(self) -> dict[str, float]:
        """Every series of `/metrics` with its value."""
        lines = self._ask("GET", "/metrics").text.splitlines()
        rows = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {series: float(value) for series, _, value in rows}

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        url, headers = self.gateway.server.url + path, {"authorization": f"Bearer {self.admin}"}
        answer = httpx.request(method, url, headers=headers, timeout=TIMEOUT_S, trust_env=False, **more)
        if answer.status_code >= 300:
            raise Failed(f"{path} answered {answer.status_code}: {answer.text[:500]}")
        return answer

    def engine_load(self) -> dict[str, int]:
        """Streams at the engine, and how many of them wait."""
        load: dict[str, int] = httpx.get(self.engine.url + "/load", timeout=TIMEOUT_S, trust_env=False).json()
        return load

    def set_engine(self, *, pace_ms: float) -> None:
        """Set the time between two tokens of a stream."""
        url = f"{self.engine.url}/pace/{pace_ms:g}"
        httpx.put(url, timeout=TIMEOUT_S, trust_env=False).raise_for_status()


@contextmanager
def standing(
    *, sequences: int, pace_ms: float, core: int, settings: Mapping[str, str] | None = None
) -> Iterator[Standing]:
    """Start both on one core, with a key and an adapter.

    Args:
        sequences: Streams that the engine decodes at once, and that admission lets in.
        pace_ms: Time between two tokens of a stream.
        core: Where both run.
        settings: The gateway's, as environment variables.
    """
    with tempfile.TemporaryDirectory(prefix="gateway-load-") as work, ExitStack() as stack:
        engine = start_upstream(Path(work), stack, sequences=sequences, core=core)
        limit = f"{engine.url}/sequences/{sequences}"
        httpx.put(limit, timeout=TIMEOUT_S, trust_env=False).raise_for_status()
        admin = "admin-" + secrets.token_hex(16)
        place = Place(Path(work), engine.url, core)
        gateway = hatrack(place, sequences=sequences, admin=admin, more=settings)
        stack.callback(gateway.server.stop)
        gateway.server.start()
        gateway.prepare(gateway)
        both = Standing(gateway, engine, admin)
        both.set_engine(pace_ms=pace_ms)
        yield both
