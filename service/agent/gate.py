"""The one gate before an engine: every gateway and front asks here for its turns, each in a session of its own."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from service.admission.admission import Admission
from service.admission.ports import Permit
from service.admission.request import AdmissionRequest
from service.engine.agent_wire import Message
from service.engine.busy import EngineClock
from service.errors import BadGateway, to_hatrack_error
from service.http.peer_errors import dump_error
from service.objects.adapters import StoredAdapters, hold_before

MAX_REQUESTS: Final = 100_000
"""Requests of one session that may wait or be in the engine at once; a gateway's own bound is far below."""
_LOG: Final = logging.getLogger("hatrack.agent")


class Gate:
    """What all sessions share.

    Args:
        admission: The engine's queues and what is known of its memory.
        clock: Measures the engine's time.
        adapters: Brings adapters' files to where the engine reads them.
        restart: Called with a reason when a user has found the engine's answers poisoned.
    """

    def __init__(
        self,
        admission: Admission,
        clock: EngineClock,
        adapters: StoredAdapters,
        restart: Callable[[str], Any],
    ) -> None:
        self.admission = admission
        self.clock = clock
        self.copies = adapters.copies
        self.restart = restart
        self.sessions: dict[str, Session] = {}

    def statistics(self) -> list[Message]:
        """What each session is told now and then."""
        queue, loaded = asdict(self.admission.queue.snapshot()), self.admission.residency.snapshot()
        for field in ("queued_by_adapter", "in_flight_by_adapter"):
            queue[field] = {adapter or "": count for adapter, count in queue[field].items()}
        return [
            ["queue", queue],
            ["loaded", loaded.known, sorted(loaded.resident), loaded.cold_loads, loaded.cold_load_s],
        ]

    def time(self) -> Message:
        """The engine's time so far."""
        return ["clock", self.clock.share_s, self.clock.busy_s, self.clock.open]


class Session:
    """The turns of one gateway or front.

    Args:
        send: Sends it a message.
        peer: Its address, for the log.
    """

    def __init__(self, gate: Gate, send: Callable[[Message], None], peer: str) -> None:
        self.id = secrets.token_hex(16)
        self.peer = peer
        self._gate = gate
        self._send = send
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, tuple[Permit, str | None]] = {}
        self.requests: set[asyncio.Task[Any]] = set()
        """What it has sent to the engine and still reads."""

    @property
    def open(self) -> tuple[int, int]:
        """Its requests that wait, and that are in the engine."""
        return len(self._waiting), len(self._held)

    def hear(self, message: Message) -> None:
        """Do what a message says. Raises BadGateway if it is none."""
        try:
            kind, *rest = message
            match kind:
                case "enter":
                    self._enter(int(rest[0]), dict(rest[1]))
                case "first":
                    self._first(rest[0])
                case "leave":
                    self._leave(rest[0], rest[1], answered=bool(rest[2]))
                case "withdraw":
                    self._withdraw(rest[0])
                case "restart":
                    _LOG.warning(
                        "a gateway asks for the engine's restart", extra={"reason": rest[0], "peer": self.peer}
                    )
                    self._gate.restart(str(rest[0]))
                case "ping":
                    pass
                case _:
                    raise BadGateway(f"the message {str(kind)[:40]!r} is not known")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadGateway(f"a malformed message: {type(error).__name__}") from error

    def close(self) -> None:
        """The session has ended: so have its turns and its requests."""
        for task in [*self._waiting.values(), *self.requests]:
            task.cancel()
        for number in list(self._held):
            self._leave(number, None, answered=False)

    def _enter(self, number: int, asked: dict[str, Any]) -> None:
        if len(self._waiting) + len(self._held) >= MAX_REQUESTS:
            raise BadGateway(f"one session has more than {MAX_REQUESTS} requests")
        if number in self._waiting or number in self._held:
            raise BadGateway(f"the request {number} is there already")
        request = AdmissionRequest(
            str(asked["project"]),
            str(asked["key"]),
            asked["adapter"],
            int(asked["tokens"]),
            bool(asked["background"]),
            int(asked["prompt"]),
            asked["flow"],
        )
        waiting = self._wait(number, request, asked["queue"], float(asked["wait_s"]))
        task = self._waiting[number] = asyncio.create_task(waiting, name="agent-turn")
        # not in the coroutine: one that is withdrawn before it ran never runs
        task.add_done_callback(lambda _: self._waiting.pop(number, None))

    async def _wait(self, number: int, request: AdmissionRequest, queue: str, wait_s: float) -> None:
        """Wait for a turn, with the adapter's files here; they stay as long as the turn does.

        ``wait_s`` is for both: a slow object store keeps nobody longer than a full queue does.
        """
        admission, copies, digest = self._gate.admission, self._gate.copies, request.adapter
        deadline = asyncio.get_running_loop().time() + wait_s
        held: str | None = None
        try:
            if copies is not None and digest is not None:
                if not copies.try_hold(digest):  # before it waits: a cold adapter takes nobody's place
                    await hold_before(copies, digest, deadline)
                held = digest
            chosen = admission.counting if queue == "tokenizer" else admission.queue
            permit = await chosen.enter(request, deadline)
        except asyncio.CancelledError:
            self._release(held)
            raise
        except Exception as error:
            self._release(held)
            self._send(["refused", number, dump_error(to_hatrack_error(error, None))])
        else:
            self._held[number] = (permit, held)
            self._send(["admitted", number])

    def _release(self, digest: str | None) -> None:
        if digest is not None and self._gate.copies is not None:
            self._gate.copies.release(digest)

    def _first(self, number: int) -> None:
        if number in self._held:
            self._held[number][0].first_token()

    def _leave(self, number: int, tokens: int | None, *, answered: bool) -> None:
        permit, digest = self._held.pop(number, (None, None))
        if permit is not None:
            permit.leave(tokens, answered=answered)
            self._release(digest)

    def _withdraw(self, number: int) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.cancel()
        self._leave(number, None, answered=False)
