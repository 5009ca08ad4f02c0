"""When a batch may ask its next request: the engine is ready, its results have room, and neither a limit nor the budget
says to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from service.access.caller import Caller
from service.errors import HatrackError, QuotaSpent

ENGINE_POLL_S: Final = 0.5
MAX_POLL_S: Final = 60.0
"""How often a batch that waits looks again whether its key is valid, and whether an admin has raised the budget or a
limit, s."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a batch waits for; ``until`` is Unix seconds, None if that is not known."""

    code: str
    message: str
    until: int | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        return {"code": self.code, "message": self.message, "until": self.until}


class Pace:
    """The pace of one batch.

    Args:
        find_caller: Returns the caller that created the batch; raises Unauthenticated once the key is gone.
        check_budget: Raises QuotaSpent if the project's budget is spent.
        engine_trouble: Why the engine takes no requests; None: it takes them.
    """

    def __init__(
        self,
        find_caller: Callable[[], Caller],
        check_budget: Callable[[Caller], None],
        engine_trouble: Callable[[], str | None],
    ) -> None:
        self._find_caller = find_caller
        self._check_budget = check_budget
        self._engine_trouble = engine_trouble
        self._paused_until = 0.0
        self._pause: Waiting | None = None
        self._waiting: Waiting | None = None
        self._room: Waiting | None = None

    @property
    def waiting(self) -> Waiting | None:
        """What the batch waits for; None: it does not wait."""
        return self._room or self._waiting

    async def turn(self) -> Caller:
        """Wait until the batch may ask; returns the caller as ``now`` does."""
        while (caller := self.now()) is None:
            left_s = self._paused_until - time.monotonic()
            await asyncio.sleep(min(left_s, MAX_POLL_S) if left_s > 0 else self._poll_s)
        return caller

    def now(self) -> Caller | None:
        """The caller with whose rights the batch may ask, in the class that yields to others; None: it must wait.

        Raises:
            Unauthenticated: The key was revoked or has expired.
        """
        caller = self._find_caller()
        trouble = self._engine_trouble()
        if trouble is not None:
            self._waiting = Waiting("engine_unavailable", f"the engine is not ready: {trouble}")
            return None
        if self._room is not None:
            return None
        if self._paused_until > time.monotonic():
            self._waiting = self._pause
            return None
        try:
            # as for any other caller: an evaluation that is under way may end, a batch could spend without end
            self._check_budget(caller)
        except QuotaSpent as error:
            self._waiting = _waiting_for(error)
            return None
        self._waiting = None
        return replace(caller, background=True)

    async def until_served(self, trouble: Callable[[], str | None]) -> None:
        """Wait until ``trouble`` is over: why what is left cannot be asked, although another base has an engine.

        Raises:
            Unauthenticated: The key was revoked or has expired.
        """
        while (reason := trouble()) is not None:
            if self.now() is not None:
                self._waiting = Waiting("engine_unavailable", reason)
            await asyncio.sleep(ENGINE_POLL_S)

    @property
    def _poll_s(self) -> float:
        """Seconds until it looks again; what is known here at once is looked at often."""
        is_known_here = self._room is not None or self._engine_trouble() is not None
        return ENGINE_POLL_S if is_known_here else MAX_POLL_S

    def pause(self, after_s: float, code: str, message: str) -> None:
        """Ask nothing for some seconds, but try after MAX_POLL_S whether that still holds; a longer pause stays."""
        until = time.monotonic() + min(after_s, MAX_POLL_S)
        if until > self._paused_until:
            self._paused_until = until
            self._pause = self._waiting = Waiting(code, message, int(time.time() + after_s))

    def no_room(self, error: HatrackError | None) -> None:
        """Results cannot be written, for the disk or the project's files are full; None: they can again."""
        self._room = None if error is None else _waiting_for(error)


def _waiting_for(error: HatrackError) -> Waiting:
    retry_after = error.headers.get("retry-after", "")
    until = int(time.time()) + int(retry_after) if retry_after.isdigit() else None
    return Waiting(error.code or "unavailable", error.message, until)
