"""Whether the trainer answers, for `/readyz` and `/metrics`: asked every few seconds, so that whoever looks is told
at once."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

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
                await response.read()
                return response.status == 200
        except HatrackError:
            return False
