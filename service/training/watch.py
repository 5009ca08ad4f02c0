"""Whether the trainer answers, and how long its jobs have stood still for callers, for `/readyz` and `/metrics`: asked
every few seconds, so that whoever looks is told at once."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import orjson

from service.errors import HatrackError
from service.training.client import TrainerClient

State = Literal["off", "starting", "up", "down"]
EVERY_S: Final = 5.0
STARTING_EVERY_S: Final = 0.5
ANSWER_S: Final = 3.0
PATH: Final = "/health"


class TrainerWatch:
    """Asks one trainer how it is.

    Args:
        client: The way to it.
        there: Whether there is to be one at all.
        every_s: Between two questions once it has answered, s; before that it is asked more often.
    """

    def __init__(self, client: TrainerClient, *, there: bool, every_s: float = EVERY_S) -> None:
        self._client = client
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self.state: State = "starting" if there else "off"
        """``off``: there is to be none; ``starting``: it has not answered yet; ``down``: it did, and does not now."""
        self.paused_s: float | None = None
        """How long its jobs have stood still for callers, all together; None until it has said it."""

    async def start(self) -> None:
        """Begin to ask."""
        if self.state != "off":
            self._task = asyncio.create_task(self._run(), name="trainer-watch")

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            if await self._answers():
                self.state = "up"
            elif self.state == "up":
                self.state = "down"
            await asyncio.sleep(STARTING_EVERY_S if self.state == "starting" else self._every_s)

    async def _answers(self) -> bool:
        try:
            async with self._client.open("GET", PATH, {}, timeout_s=ANSWER_S) as response:
                content = await response.read()
                if response.status == 200:
                    self.paused_s = _paused_s(content, self.paused_s)
                return response.status == 200
        except HatrackError:
            return False


def _paused_s(content: bytes, before: float | None) -> float | None:
    """What an answer says; one that says nothing of it, as an older trainer's, leaves what was known before."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return before
    said = found.get("paused_seconds") if isinstance(found, dict) else None
    return float(said) if isinstance(said, int | float) else before
