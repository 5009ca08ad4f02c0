"""What one replica does: it runs `hatrack agent` as a child process, and says how that is.

No request of a caller passes through here: the agent announces itself to the gateway, which speaks HTTP to it. Ray
places the replica, restarts it and decides how many there are. This module imports nothing of Ray's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from service.config import Settings, inherited_environment

LOOK_S: Final = 0.25
ANSWER_S: Final = 5.0
"""How long the agent may take to say how it is, s."""
END_S: Final = 25.0
"""How long it may take to end once its requests have, s: its engine does."""
TARGET: Final = 0.8
"""Share of an engine's places, and of its LoRA slots, that shall be in use: the rest is for what comes while another
engine starts."""
BOUND_TO_PARENT: Final = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h; survives exec
if os.getppid() != parent:
    sys.exit("the replica has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Starts a command that gets SIGTERM when the process that has started it is gone, however that ended."""


class Arguments(BaseModel):
    """`args` of an application in the Serve config.

    Attributes:
        environment: HATRACK_* settings of its agents, beside those of the node: the base, and how its engine runs.
        command: Starts an agent, such as that of another Python environment.
        start_s: How long an agent may take until its engine answers and the gateway sends it requests, s.
        unready_s: How long its engine may be away afterwards before the replica is replaced, s. The agent itself
            restarts an engine that fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: dict[str, str] = Field(default_factory=dict)
    command: tuple[str, ...] = Field((sys.executable, "-m", "service.cli", "agent"), min_length=1)
    start_s: float = Field(1200, gt=0)
    unready_s: float = Field(300, gt=0)

    @property
    def drain_s(self) -> float:
        """HATRACK_DRAIN_S of its agents, s; the default, where that is none: an agent refuses to start with it."""
        given = (_environment() | self.environment).get("HATRACK_DRAIN_S", "")
        default: float = Settings.model_fields["drain_s"].default
        try:
            return float(given)
        except ValueError:
            return default


class AgentFailed(Exception):
    """The agent has ended, or does not answer as it should; the message says which."""


class AgentReplica:
    """One agent.

    Args:
        arguments: How it is run.
        host: Address of this node, on which it listens.
    """

    def __init__(self, arguments: Arguments, host: str) -> None:
        self._arguments = arguments
        self._host = host
        self._process: asyncio.subprocess.Process | None = None
        self._address = ""
        self._ready_at = time.monotonic()
        self._shown: dict[str, Any] = {}

    async def start(self) -> None:
        """Start the agent, and wait until its engine answers and the gateway uses it.

        Raises:
            AgentFailed: It has ended, or took too long.
        """
        own = self._arguments
        with tempfile.TemporaryDirectory(prefix="hatrack-") as directory:
            file = Path(directory) / "address"
            listen = ("--host", self._host, "--port", "0", "--address-file", str(file))
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", BOUND_TO_PARENT, str(os.getpid()), *own.command, *listen),
                env=_environment() | own.environment,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(own.start_s):
                    await self._until_listening(file)
                    while not await self._is_used():  # noqa: ASYNC110 (a state of another process)
                        await asyncio.sleep(LOOK_S)
            except TimeoutError:
                await self.stop()
                announced = self._shown.get("announced") or {}
                gateway = announced.get("trouble") or announced.get("unused") or "uses it"
                raise AgentFailed(
                    f"the agent was not in use after {own.start_s:g} s: its engine is "
                    f"{self._shown.get('status', 'not there')}; the gateway: {gateway}"
                ) from None
            except BaseException:
                await self.stop()
                raise
        self._ready_at = time.monotonic()

    async def _until_listening(self, file: Path) -> None:
        while not file.exists():
            self._check_process()
            await asyncio.sleep(LOOK_S)
        self._address = file.read_text()

    async def _is_used(self) -> bool:
        """Whether the engine answers and the gateway sends it requests.

        That it has a name there is not enough: it may have other settings than the gateway needs, or be out of its
        reach, and an update would go on to replace those that work.
        """
        self._check_process()
        try:
            self._shown = await self._readiness()
        except AgentFailed:
            return False
        announced = self._shown.get("announced")
        if announced is None:
            raise AgentFailed("HATRACK_AGENT_ANNOUNCE must be set: the gateway that the agent announces itself to")
        is_used = announced["engine"] is not None and announced["unused"] is None
        return self._shown["status"] == "ready" and is_used

    async def check_health(self) -> None:
        """Raise AgentFailed if the agent has ended, does not answer, or its engine has been away for too long.

        The engine is "ready" as long as it generates: the agent looks at its answers, not at its port.
        """
        self._check_process()
        self._shown = await self._readiness()
        now = time.monotonic()
        if self._shown["status"] == "ready":
            self._ready_at = now
        elif now - self._ready_at > self._arguments.unready_s:
            raise AgentFailed(
                f"the engine has been {self._shown['status']} for {now - self._ready_at:.0f} s: "
                f"{self._shown['engine']['reason']}"
            )

    async def load(self) -> dict[str, float]:
        """What ``engines_for`` decides by; empty while the agent does not say."""
        with suppress(AgentFailed, KeyError):
            shown = await self._readiness()
            return {
                "requests": float(shown["queued"] + shown["in_flight"]),
                "places": float(shown["width"]),
                "adapters": float(shown["slots_in_use"] + shown["adapters_waiting"]),
                "slots": float(shown["slots"]),
            }
        return {}

    def status(self) -> dict[str, Any]:
        """Where the agent is, and how it was when it was last looked at."""
        return {"address": self._address, **self._shown}

    async def stop(self) -> None:
        """End the agent: its requests may end, others go elsewhere meanwhile."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._arguments.drain_s + END_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _check_process(self) -> None:
        if self._process is None or self._process.returncode is not None:
            code = None if self._process is None else self._process.returncode
            raise AgentFailed(f"the agent has ended with exit code {code}; the replica's log has its output")

    async def _readiness(self) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.get(f"{self._address}/readyz") as answer,
            ):
                told: dict[str, Any] = await answer.json()
                return told
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            host = urlsplit(self._address).netloc
            raise AgentFailed(f"the agent at {host} does not answer: {type(error).__name__}") from error


def _environment() -> dict[str, str]:
    """This replica's, without what only concerns Ray: its token would reach as far as the engine."""
    return {name: value for name, value in inherited_environment().items() if not name.startswith("RAY_")}


class Load(Protocol):
    """What Ray Serve's autoscaling tells a policy (``ray.serve.config.AutoscalingContext``)."""

    target_num_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


def engines_for(load: Load) -> tuple[float, dict[str, Any]]:
    """How many engines the requests and the adapters want, as a policy of Ray Serve's autoscaling.

    An engine has places for requests and slots for adapters; of each, TARGET shall be in use. Serve rounds up, holds it
    to `min_replicas` and `max_replicas`, and waits `upscale_delay_s` and `downscale_delay_s`.
    """
    told = load.aggregated_metrics or {}
    wanted = [_engines(told, *names) for names in (("requests", "places"), ("adapters", "slots"))]
    known = [engines for engines in wanted if engines is not None]
    return (max(known) if known else float(load.target_num_replicas)), {}


def _engines(told: Mapping[str, Mapping[Any, float]], used: str, of: str) -> float | None:
    """How many engines have what is used of something; None: no replica has said."""
    capacities: Sequence[float] = [value for value in told.get(of, {}).values() if value > 0]
    if not capacities:
        return None
    return sum(told.get(used, {}).values()) / (TARGET * sum(capacities) / len(capacities))
