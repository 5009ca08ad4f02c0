"""What each project has running and waiting of structured outputs, and the CPU time that it owes for trials."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from service.errors import RateLimited

SHARE: Final = 0.1
"""Part of one core that a project's trials may take in the long run."""
AT_ONCE_PER_PROJECT: Final = 2
BUSY_RETRY_S: Final = 5


@dataclass(slots=True)
class Project:
    """One project.

    Attributes:
        trials: Held by each trial that runs.
        users: Requests and examinations of the project; while there are any, its state is kept.
        masks_ms: CPU time of the masks of its requests in the engine, for each token.
    """

    trials: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE_PER_PROJECT))
    users: int = 0
    masks_ms: float = 0.0
    _debt_s: float = 0.0
    _debt_at: float = field(default_factory=time.monotonic)
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _requests: int = 0
    _examinations: int = 0

    def owed_s(self) -> float:
        """CPU time of its trials that its share has not paid for yet."""
        now = time.monotonic()
        self._debt_s, self._debt_at = max(0.0, self._debt_s - (now - self._debt_at) * SHARE), now
        return self._debt_s

    def charge(self, cpu_s: float) -> None:
        """Owe for a trial."""
        self._debt_s = self.owed_s() + cpu_s

    @contextmanager
    def waiting(self, max_requests: int) -> Iterator[None]:
        """A request that waits, for a trial or for its turn.

        Raises:
            RateLimited: So many wait already.
        """
        self._bound(self._requests, max_requests)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def waiting_for_trial(self, max_trials: int) -> Iterator[None]:
        """A specification that is tried, or waits for that.

        Raises:
            RateLimited: So many are already.
        """
        self._bound(self._examinations, max_trials)
        self._examinations += 1
        try:
            yield
        finally:
            self._examinations -= 1

    def _bound(self, count: int, allowed: int) -> None:
        if count >= allowed:
            raise RateLimited(
                f"{count} structured outputs of this project wait to be checked, or for their turn in the engine; at "
                f"most {allowed} may",
                code="too_many_grammars",
                headers={"retry-after": str(BUSY_RETRY_S)},
            )

    async def take_turn(self, cost_ms: float, allowed_ms: float) -> None:
        """Wait until the masks of its requests leave room for one more; a first one always has it."""
        while self.masks_ms > 1e-6 and self.masks_ms + cost_ms > allowed_ms:
            self._room.clear()
            await self._room.wait()
        self.masks_ms += cost_ms

    def leave(self, cost_ms: float) -> None:
        """End a turn."""
        self.masks_ms -= cost_ms
        self._room.set()


class Projects:
    """The projects that have something running, waiting or owed."""

    def __init__(self) -> None:
        self._projects: dict[str, Project] = {}

    def __len__(self) -> int:
        return len(self._projects)

    @contextmanager
    def using(self, name: str) -> Iterator[Project]:
        """A project's state, which lasts at least as long as this context."""
        project = self._projects.setdefault(name, Project())
        project.users += 1
        try:
            yield project
        finally:
            project.users -= 1
            self._drop(name)

    def _drop(self, name: str) -> None:
        """Forget a project that nothing uses, once it owes nothing."""
        project = self._projects.get(name)
        if project is None or project.users:
            return
        owed_s = project.owed_s()
        if owed_s > 0:
            asyncio.get_running_loop().call_later(owed_s / SHARE + 0.001, self._drop, name)
        else:
            del self._projects[name]
