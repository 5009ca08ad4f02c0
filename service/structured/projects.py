"""Per project: structured outputs that run or wait, and the CPU time charged for trials."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from service.errors import RateLimited

CPU_SHARE: Final = 0.1
"""The fraction of one core that a project's trials may use in the long run."""
MAX_CONCURRENT_PER_PROJECT: Final = 2
BUSY_RETRY_S: Final = 5


@dataclass(slots=True)
class Project:
    """The state of one project.

    Attributes:
        trials: Held by each running trial.
        users: Active requests and examinations; the state is kept while there are any.
        masks_ms: CPU time per token of the masks of its requests in the engine.
    """

    trials: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_PER_PROJECT))
    users: int = 0
    masks_ms: float = 0.0
    _debt_s: float = 0.0
    _debt_at: float = field(default_factory=time.monotonic)
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _requests: int = 0
    _examinations: int = 0

    def owed_s(self) -> float:
        """CPU time of its trials that its share has not covered yet, s."""
        now = time.monotonic()
        self._debt_s, self._debt_at = max(0.0, self._debt_s - (now - self._debt_at) * CPU_SHARE), now
        return self._debt_s

    def charge(self, cpu_s: float) -> None:
        """Charge the CPU time of a trial."""
        self._debt_s = self.owed_s() + cpu_s

    @contextmanager
    def waiting(self, max_requests: int) -> Iterator[None]:
        """Count a request that waits for a trial or its turn.

        Raises:
            RateLimited: ``max_requests`` wait already.
        """
        self._bound(self._requests, max_requests)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def waiting_for_trial(self, max_trials: int) -> Iterator[None]:
        """Count a specification that is tried or waits for its trial.

        Raises:
            RateLimited: There are ``max_trials`` already.
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
                f"this project already has {count} structured outputs waiting for their check or their turn in the "
                f"engine; at most {allowed} are allowed",
                code="too_many_grammars",
                headers={"retry-after": str(BUSY_RETRY_S)},
            )

    async def take_turn(self, cost_ms: float, allowed_ms: float) -> None:
        """Wait until the project's mask budget has room for the request; a single request always has."""
        while self.masks_ms > 1e-6 and self.masks_ms + cost_ms > allowed_ms:
            self._room.clear()
            await self._room.wait()
        self.masks_ms += cost_ms

    def leave(self, cost_ms: float) -> None:
        """End a turn."""
        self.masks_ms -= cost_ms
        self._room.set()


class Projects:
    """The projects with running or waiting structured outputs, or with charged CPU time."""

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
            asyncio.get_running_loop().call_later(owed_s / CPU_SHARE + 0.001, self._drop, name)
        else:
            del self._projects[name]
