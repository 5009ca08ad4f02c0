"""Who goes to the engine next: decisions only, without a clock, a task or a socket of its own.

The caller tells the time and what happened (`offer`, `first_token`, `leave`, `withdraw`) and asks who may go now
(`admit`). `service/admission/ADMISSION.md` says why it decides as it does.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from service.admission.entry import Entry, Stage
from service.admission.fair import Flow, Tree
from service.admission.policy import Policy
from service.admission.slots import Slots
from service.admission.small import Due, View
from service.admission.ticket import Ticket
from service.errors import RateLimited, Unavailable

COLD_S: Final = 5.0
"""A cold load whose first token nobody reports (an answer in one piece) counts as over after this long, s."""
FIRST_TOKEN_S: Final = 0.5
"""Time from the gate to the first token, s, while none was seen."""
SILENT_MOST_S: Final = 5.0
RETRY_MOST_S: Final = 60
_AVERAGE: Final = 0.1


class Counts:
    """What has happened so far, for telemetry."""

    __slots__ = ("admitted", "background", "cold", "left", "overloaded", "share_full", "timeouts", "withdrawn")

    def __init__(self) -> None:
        self.admitted = 0
        self.background = 0
        """Background requests among the admitted."""
        self.cold = 0
        """Requests that were let in to load their adapter from the disk."""
        self.left = 0
        self.overloaded = 0
        self.share_full = 0
        self.timeouts = 0
        self.withdrawn = 0
        """Clients that left while they waited, and those who waited when the engine went."""


class Scheduler:
    """The queue and the places in the engine.

    Every request that was offered and not refused ends by exactly one of `withdraw` (while it waits) and `leave`.

    Args:
        policy: How it decides.
        is_cold: Whether the engine must read an adapter from the disk first, as far as is known; None: never.
    """

    def __init__(self, policy: Policy, is_cold: Callable[[str], bool] | None = None) -> None:
        self.policy = policy
        self.callers = Tree()
        self.background = Tree()
        self.slots = Slots(policy.slots, policy.turn_s, policy.draining)
        self.counts = Counts()
        self._small = Due(policy.width, max(1, policy.common // 2), policy.burst)
        self.prefill = 0
        """Prompt tokens of requests that were let in and have shown no token."""
        self.first_token_s = FIRST_TOKEN_S
        """Moving average of the time from the gate to the first token, s."""
        self._is_cold = is_cold or (lambda _: False)
        self._unstarted: OrderedDict[Entry, float] = OrderedDict()
        self._loading: dict[str, float] = {}
        self._due: Entry | None = None
        self._due_at = -math.inf
        self._left_at: float | None = None
        self._gap_s = 0.0

    @property
    def queued(self) -> int:
        """Requests that wait, of both classes."""
        return self.callers.queued + self.background.queued

    @property
    def in_flight(self) -> int:
        """Requests that are in the engine, of both classes."""
        return self.callers.in_flight + self.background.in_flight

    def offer(self, ticket: Ticket, now: float) -> Entry:
        """A request arrives; it is IN at once where nothing is before it, else it is WAITING.

        Raises:
            RateLimited: Its key or its project holds its share of the queue.
            Unavailable: The queue is full.
        """
        tree = self._tree(ticket)
        leaf = tree.leaf(ticket.project, ticket.key_id, ticket.adapter)
        entry = Entry(ticket, leaf, now)
        if self.callers.queued == 0 and tree.queued == 0 and self._may_enter(entry, now):
            self._enter(entry, now, waited=False)
            return entry
        try:
            self._check_bounds(leaf)
        except (RateLimited, Unavailable):
            tree.rest(leaf, now)
            raise
        entry.stage = Stage.WAITING
        tree.push(leaf, entry)
        if not ticket.background:
            self.slots.queue(ticket.adapter, ticket.project, now)
        return entry

    def admit(self, now: float) -> list[Entry]:
        """Everyone who may go in now, in order; they are IN."""
        found: list[Entry] = []
        self._expire(now)
        while self.queued and self.in_flight < self.policy.width:
            self.slots.turn(now)
            entry = self._next(now)
            if entry is None:
                break
            self._tree(entry.ticket).remove(entry)
            self._enter(entry, now, waited=True)
            self._leave_queue(entry, now)
            found.append(entry)
        return found

    def first_token(self, entry: Entry, now: float) -> None:
        """The engine has shown a first token of ``entry``; more calls for the same request do nothing."""
        if entry.started:
            return
        entry.started = True
        self._loaded(entry)
        self._read(entry)
        # counted also where it was given up for silent: else the average could never grow past what counts as silence
        self.first_token_s += _AVERAGE * (now - entry.entered - self.first_token_s)

    def leave(self, entry: Entry, tokens: int | None, now: float) -> None:
        """``entry`` has left the engine, having used ``tokens``; None: nothing reached it."""
        if entry.stage is not Stage.IN:
            return
        entry.stage = Stage.OUT
        self._read(entry)
        self._loaded(entry)
        self.slots.leave(entry.ticket.adapter, now)
        tree = self._tree(entry.ticket)
        tree.settle(entry, tokens)
        tree.rest(entry.leaf, now)
        self.counts.left += 1
        if self._left_at is not None:
            gap_s = now - self._left_at
            self._gap_s += _AVERAGE * (gap_s - self._gap_s) if self._gap_s else gap_s
        self._left_at = now if self.in_flight or self.queued else None  # the pause of an empty engine is no pace

    def withdraw(self, entry: Entry, now: float) -> None:
        """``entry`` does not wait any longer."""
        if entry.stage is not Stage.WAITING:
            return
        self._tree(entry.ticket).remove(entry)
        self._leave_queue(entry, now)
        entry.stage = Stage.OUT
        self._tree(entry.ticket).rest(entry.leaf, now)
        self.counts.withdrawn += 1

    def drain(self, now: float) -> list[Entry]:
        """Withdraw everyone who waits."""
        waiting = [entry for tree in (self.callers, self.background) for leaf in tree.leaves() for entry in leaf.queue]
        for entry in waiting:
            self.withdraw(entry, now)
        return waiting

    def wake_at(self) -> float | None:
        """When to ask `admit` again although nothing has happened; None: there is no need."""
        if not self.queued:
            return None
        # whoever waits for a cold load may go when that counts as over, though its answer in one piece goes on
        times = [next(iter(self._loading.values())) + COLD_S] if self._loading else []
        if self._unstarted:
            times.append(next(iter(self._unstarted.values())) + self._silent_s())
        return min(times, default=None)

    def retry_after(self, ahead: int) -> int:
        """Seconds until ``ahead`` requests have gone, at the pace of late; 1 to 60."""
        return max(1, min(RETRY_MOST_S, math.ceil(ahead * self._gap_s)))

    # deciding

    def _next(self, now: float) -> Entry | None:
        due = self._patient(now)
        if due is not None and self._may_enter(due, now):
            return due
        if self.callers.queued:
            return self._next_caller(now)
        if due is not None:
            return None
        leaf = self.background.first(lambda leaf: self._may_enter(leaf.head, now))
        return None if leaf is None else leaf.head

    def _next_caller(self, now: float) -> Entry | None:
        """Whose turn it is; or the first small flow, where there is only room for such.

        Only the first for whose adapter there is a slot may take a common place: else short prompts would for ever go
        past a long one. A small flow goes past it, unless that is what the first one is, and it waits for the same.
        """

        def has_slot(leaf: Flow) -> bool:
            return self.has_slot(leaf.head, now)

        view = View(self._small)
        if self.in_flight < self.policy.common:
            leaf = self.callers.first(has_slot)
            if leaf is None or self.fits(leaf.head):
                return None if leaf is None else leaf.head
            if view.is_small(leaf):
                return leaf.head if self.fits_reserve(leaf.head) else None
        leaf = view.first(self.callers.root, has_slot)
        return leaf.head if leaf is not None and self.fits_reserve(leaf.head) else None

    def _patient(self, now: float) -> Entry | None:
        """The one background request whose turn has come although callers wait: it has been patient."""
        tree = self.background
        if self._due is None and tree.queued and not tree.in_flight and self.callers.queued:
            leaf = tree.first(lambda leaf: now - max(leaf.head.came, self._due_at) >= self.policy.background_patience_s)
            if leaf is not None:
                self._due = leaf.head
                self.slots.queue(self._due.ticket.adapter, self._due.ticket.project, now)
        return self._due

    def _may_enter(self, entry: Entry, now: float) -> bool:
        """Whether there is room for ``entry`` where nothing waits before it."""
        if not self.has_slot(entry, now):
            return False
        if not entry.ticket.background:
            return self.fits(entry) or (self.fits_reserve(entry) and View(self._small).is_small(entry.leaf, 1))
        patient = entry is self._due
        return (patient or self.background.in_flight < self.policy.background_width) and self.fits(entry)

    def has_slot(self, entry: Entry, now: float) -> bool:
        """Whether the engine can take the adapter of ``entry``: it needs none, or has a slot or may have one."""
        adapter = entry.ticket.adapter
        if adapter is None:
            return True
        shy = entry.ticket.background and entry is not self._due
        return self.slots.admits(adapter, background=shy) and not self._waits_for_load(adapter, now)

    def fits(self, entry: Entry) -> bool:
        """Whether one of the places that are there for everybody is free, and little enough to be read before it."""
        return self.in_flight < self.policy.common and self._readable(entry, 1)

    def fits_reserve(self, entry: Entry) -> bool:
        """Whether any place is free; what is kept for small flows may be read at once with what others have sent."""
        return self.in_flight < self.policy.width and self._readable(entry, 2)

    def _readable(self, entry: Entry, times: int) -> bool:
        most = self.policy.prefill
        return most is None or not self._unstarted or self.prefill + entry.prefill <= times * most

    def _waits_for_load(self, adapter: str | None, now: float) -> bool:
        """One cold load at a time: while an adapter is read from the disk, every stream of the engine stands still."""
        if adapter is None or self.policy.slots is None or adapter in self.slots.held:
            return False
        if not self._loading or not self._is_cold(adapter):
            return False
        self._forget_loads(now)
        return bool(self._loading)

    # bookkeeping

    def _tree(self, ticket: Ticket) -> Tree:
        return self.background if ticket.background else self.callers

    def _enter(self, entry: Entry, now: float, *, waited: bool) -> None:
        ticket = entry.ticket
        entry.stage, entry.entered = Stage.IN, now
        self._tree(ticket).serve(entry, waited=waited)
        adapter = ticket.adapter
        if (
            adapter is not None
            and adapter not in self.slots.held
            and adapter not in self._loading
            and self._is_cold(adapter)
        ):
            entry.cold = True
            self._loading[adapter] = now
            self.counts.cold += 1
        self.slots.enter(ticket.adapter, ticket.project, now)
        self._unstarted[entry] = now
        self.prefill += entry.prefill
        self.counts.admitted += 1
        self.counts.background += ticket.background

    def _leave_queue(self, entry: Entry, now: float) -> None:
        if not entry.ticket.background or entry is self._due:
            self.slots.unqueue(entry.ticket.adapter)
        if entry is self._due:
            self._due, self._due_at = None, now

    def _loaded(self, entry: Entry) -> None:
        if entry.cold and entry.ticket.adapter is not None:
            entry.cold = False
            self._loading.pop(entry.ticket.adapter, None)

    def _silent_s(self) -> float:
        """How long a request that shows no token counts as being read: answers in one piece never show a first."""
        return min(SILENT_MOST_S, 2 * self.first_token_s)

    def _forget_loads(self, now: float) -> None:
        """A load that nobody has seen end counts as over."""
        if self._loading:
            self._loading = {name: since for name, since in self._loading.items() if now - since < COLD_S}

    def _expire(self, now: float) -> None:
        self._forget_loads(now)
        limit = now - self._silent_s()
        while self._unstarted:
            entry, since = next(iter(self._unstarted.items()))
            if since > limit:
                return
            self._read(entry)

    def _read(self, entry: Entry) -> None:
        """The prompt of ``entry`` counts as read, if it did not before."""
        if self._unstarted.pop(entry, None) is not None:
            self.prefill -= entry.prefill

    def _check_bounds(self, leaf: Flow) -> None:
        policy = self.policy
        if self.queued >= policy.queue_size:
            self.counts.overloaded += 1
            raise Unavailable(
                f"{self.queued} requests wait for the engine, no more may (HATRACK_QUEUE_SIZE)",
                retry_after=self.retry_after(self.queued),
                code="overloaded",
            )
        for flow, what in zip(leaf.downwards, ("project", "key"), strict=False):
            if flow.queued >= policy.share_size:
                self.counts.share_full += 1
                competing = len(self.callers.root.backlog) or 1
                raise RateLimited(
                    f"{flow.queued} requests of this {what} wait for the engine, which is its share of the queue "
                    f"(HATRACK_QUEUE_SHARE)",
                    code="queue_share_full",
                    headers={"retry-after": str(self.retry_after(flow.queued * competing))},
                )
