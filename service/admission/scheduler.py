"""Decides which request goes to the engine next; it has no clock, task or socket of its own.

The caller passes the time, reports events (`offer`, `first_token`, `leave`, `withdraw`) and asks which requests may
enter (`admit`). `service/admission/ADMISSION.md` explains the decisions.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from service.admission.fair import Flow, FlowTree
from service.admission.pace import Pace
from service.admission.policy import Policy
from service.admission.queued import QueueCounts, QueuedRequest, Stage
from service.admission.request import AdmissionRequest
from service.admission.slots import Slots
from service.admission.small_flows import FairShare, SmallFlows
from service.errors import RateLimited, Unavailable

COLD_S: Final = 5.0
"""A cold load without a first token (a non-streamed answer) counts as finished after this long, s."""
FIRST_TOKEN_S: Final = 0.5
"""Initial estimate of the time from admission to the first token, s."""
MAX_SILENT_S: Final = 5.0
_AVERAGE: Final = 0.1
_FORECAST_MARGIN: Final = 1.3
"""By how much a forecast of the wait is raised: whoever is let into the queue should get its turn in time."""


class Scheduler:
    """The queue and the places in the engine.

    Every request that was offered and not rejected ends with exactly one of `withdraw` (while it waits) and `leave`.

    Args:
        policy: Its limits.
        is_cold: Whether the engine must first load an adapter from disk, as far as known; None: never.
    """

    def __init__(self, policy: Policy, is_cold: Callable[[str], bool] | None = None) -> None:
        self.policy = policy
        self.callers = FlowTree()
        self.background = FlowTree()
        self.slots = Slots(policy.slots, policy.turn_s, policy.draining)
        self.counts = QueueCounts()
        self.displaced: list[QueuedRequest] = []
        """Withdrawn to make room for others; whoever offers tells them, and empties this."""
        self._small = FairShare(policy.width, max(1, policy.common // 2), policy.burst)
        self.prefill = 0
        """Prompt tokens of admitted requests without a first token yet."""
        self.first_token_s = FIRST_TOKEN_S
        """Moving average of the time from admission to the first token, s."""
        self._is_cold = is_cold or (lambda _: False)
        self._unstarted: OrderedDict[QueuedRequest, float] = OrderedDict()
        self._loading: dict[str, float] = {}
        self._due: QueuedRequest | None = None
        self._due_at = -math.inf
        self.pace = Pace(policy.common)

    @property
    def queued(self) -> int:
        """Waiting requests of both classes."""
        return self.callers.root.queued + self.background.root.queued

    @property
    def in_flight(self) -> int:
        """Requests of both classes in the engine."""
        return self.callers.root.in_flight + self.background.root.in_flight

    def try_enter(self, request: AdmissionRequest, now: float) -> QueuedRequest | None:
        """Admit a caller's request that finds neither a queue nor a limit reached, as `offer` would.

        None, and nothing has changed, in all cases that are left to `offer`: background requests, cold adapters and the
        reserved places are among them, so that it may admit at once what this does not.
        """
        tree, root, background = self.callers, self.callers.root, self.background.root
        if request.background or root.queued or background.queued:
            return None
        prefill = self._prefill_of(request)
        if root.in_flight + background.in_flight >= self.policy.common or not self._readable(prefill, 1):
            return None
        adapter = request.adapter
        if adapter is not None:
            tenure = self.slots.held.get(adapter)
            if (not self.slots.spare or self._is_cold(adapter)) if tenure is None else tenure.draining:
                return None
        leaf = tree.leaf(request.project, request.key_id, request.flow or adapter)
        entry = QueuedRequest(request, leaf, now, prefill)
        self._take_place(tree, entry, now, waited=False)
        return entry

    def offer(self, request: AdmissionRequest, now: float, max_wait_s: float = math.inf) -> QueuedRequest:
        """Add a request; it is ADMITTED at once if nothing is ahead of it, else WAITING.

        Where the queue is full, a request whose flow has fewer waiting displaces the newest of the flow with most.

        Raises:
            RateLimited: Its key or its project has used up its share of the queue.
            Unavailable: The queue is full, or at the present pace its turn comes after ``max_wait_s``.
        """
        tree = self._tree(request)
        leaf = tree.leaf(request.project, request.key_id, request.flow or request.adapter)
        entry = QueuedRequest(request, leaf, now, self._prefill_of(request))
        if self.callers.queued == 0 and tree.queued == 0 and self._may_enter(entry, now):
            self._enter(entry, now, waited=False)
            return entry
        try:
            longest = self._check_bounds(entry)
            if not request.background:  # their turn depends on callers that have not come yet
                self._check_wait(entry, max_wait_s, now)
        except (RateLimited, Unavailable):
            tree.rest(leaf, now)
            raise
        if longest is not None:
            self.withdraw(longest, now)
            self.counts.overloaded += 1
            self.displaced.append(longest)
        entry.stage = Stage.WAITING
        tree.push(leaf, entry)
        if not request.background:
            self.slots.queue(request.adapter, request.project, now)
        return entry

    def admit(self, now: float) -> list[QueuedRequest]:
        """Admit and return every request that may enter now, in order."""
        admitted: list[QueuedRequest] = []
        self._expire(now)
        while self.queued and self.in_flight < self.policy.width:
            self.slots.turn(now)
            entry = self._next(now)
            if entry is None:
                break
            self._tree(entry.request).remove(entry)
            self._enter(entry, now, waited=True)
            self._leave_queue(entry, now)
            admitted.append(entry)
        return admitted

    def first_token(self, entry: QueuedRequest, now: float) -> None:
        """Report the first token of ``entry``; further calls for the same request do nothing."""
        if entry.started:
            return
        entry.started = True
        self._loaded(entry)
        self._read(entry)
        # counted even after the timeout, otherwise the average could never grow beyond it
        self.first_token_s += _AVERAGE * (now - entry.admitted_at - self.first_token_s)

    def leave(self, entry: QueuedRequest, tokens: int | None, now: float) -> None:
        """Report that ``entry`` has left the engine and used ``tokens``; None: nothing was sent."""
        if entry.stage is not Stage.ADMITTED:
            return
        entry.stage = Stage.DONE
        request = entry.request
        if tokens is not None and not request.background:
            callers = self.callers.root
            self.pace.learn(now - entry.admitted_at, callers.in_flight, others_wait=callers.queued > 0)
        self._read(entry)
        if entry.cold:
            self._loaded(entry)
        self.slots.leave(request.adapter, now)
        tree = self._tree(request)
        tree.settle(entry, tokens)
        tree.rest(entry.leaf, now)
        self.counts.left += 1

    def withdraw(self, entry: QueuedRequest, now: float) -> None:
        """Remove a waiting request from the queue."""
        if entry.stage is not Stage.WAITING:
            return
        self._tree(entry.request).remove(entry)
        self._leave_queue(entry, now)
        entry.stage = Stage.DONE
        self._tree(entry.request).rest(entry.leaf, now)
        self.counts.withdrawn += 1

    def drain(self, now: float) -> list[QueuedRequest]:
        """Withdraw all waiting requests and return them."""
        waiting = [entry for tree in (self.callers, self.background) for leaf in tree.leaves() for entry in leaf.queue]
        for entry in waiting:
            self.withdraw(entry, now)
        return waiting

    def wake_at(self) -> float | None:
        """When to call `admit` again even if nothing has happened; None: not needed."""
        if not self.queued:
            return None
        # requests that wait for a cold load may enter once it counts as finished
        times = [next(iter(self._loading.values())) + COLD_S] if self._loading else []
        if self._unstarted:
            times.append(next(iter(self._unstarted.values())) + self._silent_s())
        return min(times, default=None)

    def retry_after(self, ahead: int) -> int:
        """Seconds until ``ahead`` requests have left at the recent pace; 1 to 60."""
        return self.pace.retry_after(ahead, self.callers.in_flight)

    # deciding

    def _next(self, now: float) -> QueuedRequest | None:
        due = self._patient(now)
        if due is not None and self._may_enter(due, now):
            return due
        if self.callers.queued:
            return self._next_caller(now)
        if due is not None:
            return None
        leaf = self.background.first(lambda leaf: self._may_enter(leaf.head, now))
        return None if leaf is None else leaf.head

    def _next_caller(self, now: float) -> QueuedRequest | None:
        """The next caller's request; or that of the first small flow, if only reserved places are free.

        Only the first flow whose adapter has a slot may take a common place, otherwise short prompts would overtake a
        long one for ever. A small flow may overtake it, unless the first flow is itself small.
        """

        def has_slot(leaf: Flow) -> bool:
            return self.has_slot(leaf.head, now)

        view = SmallFlows(self._small)
        if self.in_flight < self.policy.common:
            among = self.slots.candidates()
            leaf = self.callers.first(has_slot) if among is None else self.callers.first_among(among, has_slot)
            if leaf is None or self.fits(leaf.head):
                return None if leaf is None else leaf.head
            if view.is_small(leaf):
                return leaf.head if self.fits_reserve(leaf.head) else None
        leaf = view.first(self.callers.root, has_slot)
        return leaf.head if leaf is not None and self.fits_reserve(leaf.head) else None

    def _patient(self, now: float) -> QueuedRequest | None:
        """The one background request that has waited long enough to be admitted ahead of callers."""
        tree = self.background
        if self._due is None and tree.queued and not tree.in_flight and self.callers.queued:
            leaf = tree.first(
                lambda leaf: now - max(leaf.head.arrived_at, self._due_at) >= self.policy.background_patience_s
            )
            if leaf is not None:
                self._due = leaf.head
                self.slots.queue(self._due.request.adapter, self._due.request.project, now)
        return self._due

    def _may_enter(self, entry: QueuedRequest, now: float) -> bool:
        """Whether there is room for ``entry``, with nothing waiting ahead of it."""
        if not self.has_slot(entry, now):
            return False
        if not entry.request.background:
            return self.fits(entry) or (self.fits_reserve(entry) and SmallFlows(self._small).is_small(entry.leaf, 1))
        patient = entry is self._due
        return (patient or self.background.in_flight < self.policy.background_width) and self.fits(entry)

    def has_slot(self, entry: QueuedRequest, now: float) -> bool:
        """Whether the adapter of ``entry`` needs no slot, has one, or may take one."""
        adapter = entry.request.adapter
        if adapter is None:
            return True
        yields = entry.request.background and entry is not self._due
        return self.slots.admits(adapter, background=yields) and not self._must_wait_for_load(adapter, now)

    def fits(self, entry: QueuedRequest) -> bool:
        """Whether a common place is free, and few enough prompt tokens are ahead of it."""
        return self.in_flight < self.policy.common and self._readable(entry.prefill, 1)

    def fits_reserve(self, entry: QueuedRequest) -> bool:
        """Whether any place is free; small flows have a prefill budget of their own on top of the common one."""
        return self.in_flight < self.policy.width and self._readable(entry.prefill, 2)

    def _prefill_of(self, request: AdmissionRequest) -> int:
        """Its prompt tokens, as far as one step may hold them."""
        prefill, chunk = request.prompt or request.tokens, self.policy.chunk
        return prefill if chunk is None or prefill < chunk else chunk

    def _readable(self, prefill: int, times: int) -> bool:
        max_prefill = self.policy.prefill
        return max_prefill is None or not self._unstarted or self.prefill + prefill <= times * max_prefill

    def _must_wait_for_load(self, adapter: str | None, now: float) -> bool:
        """Whether ``adapter`` must wait for another cold load: each stalls every stream of the engine."""
        if adapter is None or self.policy.slots is None or adapter in self.slots.held:
            return False
        if not self._loading or not self._is_cold(adapter):
            return False
        self._expire_loads(now)
        return bool(self._loading)

    # bookkeeping

    def _tree(self, request: AdmissionRequest) -> FlowTree:
        return self.background if request.background else self.callers

    def _enter(self, entry: QueuedRequest, now: float, *, waited: bool) -> None:
        adapter = entry.request.adapter
        if (
            adapter is not None
            and adapter not in self.slots.held
            and adapter not in self._loading
            and self._is_cold(adapter)
        ):
            entry.cold = True
            self._loading[adapter] = now
            self.counts.cold += 1
        self._take_place(self._tree(entry.request), entry, now, waited=waited)

    def _take_place(self, tree: FlowTree, entry: QueuedRequest, now: float, *, waited: bool) -> None:
        request = entry.request
        entry.stage, entry.admitted_at = Stage.ADMITTED, now
        tree.serve(entry, waited=waited)
        self.slots.enter(request.adapter, request.project, now)
        self._unstarted[entry] = now
        self.prefill += entry.prefill
        counts = self.counts
        counts.admitted += 1
        counts.background += request.background

    def _leave_queue(self, entry: QueuedRequest, now: float) -> None:
        if not entry.request.background or entry is self._due:
            self.slots.unqueue(entry.request.adapter)
        if entry is self._due:
            self._due, self._due_at = None, now

    def _loaded(self, entry: QueuedRequest) -> None:
        if entry.cold and entry.request.adapter is not None:
            entry.cold = False
            self._loading.pop(entry.request.adapter, None)

    def _silent_s(self) -> float:
        """How long a request without a first token counts as prefilling; non-streamed answers never report one."""
        return min(MAX_SILENT_S, 2 * self.first_token_s)

    def _expire_loads(self, now: float) -> None:
        """Drop cold loads that have exceeded COLD_S."""
        if self._loading:
            self._loading = {name: since for name, since in self._loading.items() if now - since < COLD_S}

    def _expire(self, now: float) -> None:
        self._expire_loads(now)
        limit = now - self._silent_s()
        while self._unstarted:
            entry, since = next(iter(self._unstarted.items()))
            if since > limit:
                return
            self._read(entry)

    def _read(self, entry: QueuedRequest) -> None:
        """Count the prompt of ``entry`` as prefilled."""
        if self._unstarted.pop(entry, None) is not None:
            self.prefill -= entry.prefill

    def full(self) -> Unavailable:
        """The error for a request that finds the queue full, or has to leave it for that."""
        return Unavailable(
            f"the queue is full: {self.queued} requests are waiting for {self.policy.server} (HATRACK_QUEUE_SIZE)",
            retry_after=self.retry_after(self.queued),
            code="overloaded",
        )

    def _check_bounds(self, entry: QueuedRequest) -> QueuedRequest | None:
        """The waiting request that has to make room for ``entry``, if one has to. Raises as `offer`."""
        policy, leaf, longest = self.policy, entry.leaf, None
        if self.queued >= policy.queue_size:
            longest = None if entry.request.background else self.callers.newest_of_longest(leaf)
            if longest is None:
                self.counts.overloaded += 1
                raise self.full()
        for flow, level in zip(leaf.downwards, ("project", "key"), strict=False):
            if flow.queued >= policy.share_size:
                self.counts.share_full += 1
                competing = len(self.callers.root.backlog) or 1
                raise RateLimited(
                    f"this {level} already has {flow.queued} requests in the queue, its maximum share "
                    f"(HATRACK_QUEUE_SHARE)",
                    code="queue_share_full",
                    headers={"retry-after": str(self.retry_after(flow.queued * competing))},
                )
        return longest

    def _check_wait(self, entry: QueuedRequest, max_wait_s: float, now: float) -> None:
        """Refuse at once what would be refused after ``max_wait_s``: its caller can try elsewhere, or later."""
        in_flight = self.callers.in_flight
        # places that were taken together become free together: a turn may come half a stay later than on average
        late_s = min(self.pace.stay_s, max_wait_s) / 2
        longest_s = (max_wait_s - late_s) / _FORECAST_MARGIN
        if self.pace.wait_s(entry.leaf.ahead_at_most, in_flight) <= longest_s or self._may_enter(entry, now):
            return  # if there is room for it, those who wait are waiting for something else, such as a slot
        ahead = entry.leaf.ahead
        wait_s = self.pace.wait_s(ahead, in_flight)
        if wait_s > longest_s:
            self.counts.timeouts += 1
            raise Unavailable(
                f"the request might wait {wait_s * _FORECAST_MARGIN + late_s:.3g} s for {self.policy.server}, too long "
                f"for the limit of {max_wait_s:.3g} s (HATRACK_QUEUE_TIMEOUT_S)",
                retry_after=self.retry_after(ahead),
                code="queue_timeout",
            )
