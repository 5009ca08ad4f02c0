"""The queue of an engine that an agent keeps, as one of its users sees it: asked over the session."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any, Final

from service.admission.policy import Policy
from service.admission.request import AdmissionRequest
from service.admission.scheduler import Scheduler
from service.admission.snapshot import QueueSnapshot, take_snapshot
from service.engine.agent_link import AgentLink
from service.engine.agent_wire import QueueName
from service.engine.watched import EngineState
from service.errors import EngineUnavailable, HatrackError
from service.http.peer_errors import load_error

NO_PLACES: Final = Policy(width=0, common=0, slots=None, queue_size=0)


class RemotePermit:
    """A place in the engine. Its agent takes it back when the session ends."""

    __slots__ = ("_number", "_queue")

    def __init__(self, queue: RemoteQueue, number: int) -> None:
        self._queue = queue
        self._number = number

    def first_token(self) -> None:
        """See `Permit.first_token`."""
        self._queue.first_token(self._number)

    def leave(self, tokens: int | None, *, answered: bool = True) -> None:
        """See `Permit.leave`."""
        self._queue.leave(self._number, tokens, answered=answered)


class RemoteQueue:
    """Asks an agent for turns. It is closed while the engine is not ready.

    Args:
        link: The session with the agent.
        name: Which of its queues.
        numbers: Numbers the requests of one session, over all of its queues.
    """

    def __init__(self, link: AgentLink, name: QueueName, numbers: Iterator[int]) -> None:
        self._link = link
        self._name = name
        self._numbers = numbers
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._held: set[int] = set()
        self._closed: str | None = "not started"
        self._snapshot = take_snapshot(Scheduler(NO_PLACES))

    def try_enter(self, request: AdmissionRequest) -> RemotePermit | None:
        """None: the agent has to be asked."""
        return None

    async def enter(self, request: AdmissionRequest, deadline: float) -> RemotePermit:
        """See `Queue.enter`; what the agent refuses is raised as it refuses it."""
        self.require_open()
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        turn = self._waiting[number] = loop.create_future()
        self._link.send(
            "enter",
            number,
            {
                "queue": self._name,
                "project": request.project,
                "key": request.key_id,
                "adapter": request.adapter,
                "tokens": request.tokens,
                "prompt": request.prompt,
                "background": request.background,
                "flow": request.flow,
                "wait_s": deadline - loop.time(),
            },
        )
        try:
            await turn
        except BaseException:
            self._held.discard(number)
            # also if its turn has come meanwhile, or comes yet: what was refused here may go on waiting at the agent
            self._link.send("withdraw", number)
            raise
        finally:
            self._waiting.pop(number, None)
        return RemotePermit(self, number)

    def first_token(self, number: int) -> None:
        """See `Permit.first_token`."""
        if number in self._held:
            self._link.send("first", number)

    def leave(self, number: int, tokens: int | None, *, answered: bool) -> None:
        """See `Permit.leave`."""
        if number in self._held:
            self._held.discard(number)
            self._link.send("leave", number, tokens, answered)

    # what the agent says

    def admitted(self, number: int) -> bool:
        """A request's turn has come; False if it is none of this queue's."""
        turn = self._waiting.get(number)
        if turn is None:
            return False
        if not turn.done():
            self._held.add(number)
            turn.set_result(None)
        return True

    def refused(self, number: int, error: Any) -> bool:
        """A request gets no turn; False if it is none of this queue's."""
        turn = self._waiting.get(number)
        if turn is None:
            return False
        if not turn.done():
            turn.set_exception(load_error(error))
        return True

    def told(self, snapshot: QueueSnapshot) -> None:
        """The agent's statistics."""
        self._snapshot = snapshot

    def engine_changed(self, state: EngineState) -> None:
        """Open or close with the engine's state; those who wait are refused."""
        if state.name == "ready":
            self._closed = None
            return
        self._closed = state.reason
        for turn in self._waiting.values():
            if not turn.done():
                turn.set_exception(self._refusal())

    # for others here

    def require_open(self) -> None:
        """See `Queue.require_open`."""
        if self._closed is not None:
            raise self._refusal()

    def _refusal(self) -> HatrackError:
        return EngineUnavailable(f"the engine is not ready: {self._closed}")

    def snapshot(self) -> QueueSnapshot:
        """See `Queue.snapshot`; up to a second old."""
        return self._snapshot

    @property
    def load(self) -> int:
        """See `Queue.load`: of all users as last told, and at least what came from here."""
        return max(self._snapshot.queued + self._snapshot.in_flight, len(self._waiting) + len(self._held))

    @property
    def callers_load(self) -> tuple[int, int]:
        """See `Queue.callers_load`."""
        told = self._snapshot
        return told.queued - told.background_queued, told.in_flight - told.background_in_flight


def numbers() -> Iterator[int]:
    """Numbers for the requests of one session."""
    return itertools.count(1)
