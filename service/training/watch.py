"""Polls the trainer's health and its counts (pauses for live traffic, webhook), for `/readyz` and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson

from service.errors import HatrackError
from service.training.client import TrainerClient

State = Literal["off", "starting", "up", "down"]
EVERY_S: Final = 5.0
STARTING_EVERY_S: Final = 0.5
ANSWER_S: Final = 3.0
PATH: Final = "/health"


class TrainerWatch:
    """Polls one trainer's health.

    Args:
        client: The trainer's client.
        configured: Whether there should be a trainer at all.
        every_s: Polling interval once it has answered, s; before that, ``STARTING_EVERY_S``.
    """

    def __init__(self, client: TrainerClient, *, configured: bool, every_s: float = EVERY_S) -> None:
        self._client = client
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self.state: State = "starting" if configured else "off"
        """``off``: not configured; ``starting``: it has not answered yet; ``down``: it has stopped answering."""
        self.paused_s: float | None = None
        """Total time that its jobs were paused for live traffic, s; None until it has reported one."""
        self.webhook: dict[str, int] = {}
        """Of the operator's webhook: events by `delivered`, `failed` and `waiting`; empty if it has none."""

    async def start(self) -> None:
        """Start polling."""
        if self.state != "off":
            self._task = asyncio.create_task(self._run(), name="trainer-watch")

    async def stop(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            if await self._is_healthy():
                self.state = "up"
            elif self.state == "up":
                self.state = "down"
            await asyncio.sleep(STARTING_EVERY_S if self.state == "starting" else self._every_s)

    async def _is_healthy(self) -> bool:
        try:
            async with self._client.open("GET", PATH, {}, timeout_s=ANSWER_S) as response:
                content = await response.read()
                if response.status == 200:
                    status = _object(content)
                    self.paused_s = _paused_s(status, self.paused_s)
                    self.webhook = _webhook(status)
                return response.status == 200
        except HatrackError:
            return False


def _object(content: bytes) -> dict[str, Any]:
    try:
        status = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return status if isinstance(status, dict) else {}


def _paused_s(status: Mapping[str, Any], previous: float | None) -> float | None:
    """The response's `paused_seconds`; ``previous`` if it has none, as from an older trainer."""
    seconds = status.get("paused_seconds")
    return float(seconds) if isinstance(seconds, int | float) else previous


def _webhook(status: Mapping[str, Any]) -> dict[str, int]:
    counts = status.get("webhook")
    names = ("delivered", "failed", "waiting")
    if not isinstance(counts, dict) or not all(isinstance(counts.get(name), int) for name in names):
        return {}
    return {name: counts[name] for name in names}
