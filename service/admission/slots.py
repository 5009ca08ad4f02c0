"""Who may be in the engine's LoRA slots.

vLLM runs at most `max_loras` different adapters in a step. In its own queue a request for one more waits until some
adapter has no request left, and as long as requests for the adapters in the slots keep coming that never happens. Here
an adapter's time in a slot has an end: once it has had its turn and another waits, it is not fed any more, runs empty
and leaves. Until then its requests go before those that would need one more load.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import takewhile


@dataclass(slots=True)
class SlotTenure:
    """One adapter's time in a slot."""

    project: str
    since: float
    in_flight: int = 0
    draining: bool = False


class Slots:
    """The slots and who waits for one.

    Args:
        count: How many there are; None: as many as anybody wants.
        turn_s: How long an adapter keeps its slot while another waits, s; also how long that one has waited by then.
        draining: Slots that may be running empty at once.
    """

    def __init__(self, count: int | None, turn_s: float, draining: int) -> None:
        self._count = count
        self._turn_s = turn_s
        self._draining = draining
        self.held: dict[str, SlotTenure] = {}
        self._queued: Counter[str] = Counter()
        self._waiting: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._claims: frozenset[str] = frozenset()
        """Adapters that have waited a turn and may have the slots that are free now."""

    @property
    def free(self) -> int | None:
        """Slots that nobody holds; None: there is no end of them."""
        return None if self._count is None else self._count - len(self.held)

    @property
    def waiting(self) -> int:
        """Adapters that wait for a slot."""
        return len(self._waiting)

    def queue(self, adapter: str | None, project: str, now: float) -> None:
        """A request for ``adapter`` begins to wait."""
        if adapter is None or self._count is None:
            return
        self._queued[adapter] += 1
        if adapter not in self.held and adapter not in self._waiting:
            self._waiting[adapter] = (now, project)

    def unqueue(self, adapter: str | None) -> None:
        """A request for ``adapter`` waits no longer."""
        if adapter is None or self._count is None:
            return
        self._queued[adapter] -= 1
        if not self._queued[adapter]:
            del self._queued[adapter]
            self._waiting.pop(adapter, None)
            tenure = self.held.get(adapter)
            if tenure is not None and not tenure.in_flight:
                del self.held[adapter]

    def admits(self, adapter: str | None, *, background: bool = False) -> bool:
        """Whether a request for ``adapter`` may go in now: the base needs no slot.

        Free slots are for those who have waited a turn, where there are such. A background request leaves one free.
        """
        if adapter is None or self._count is None:
            return True
        tenure = self.held.get(adapter)
        if tenure is not None:
            return not tenure.draining
        free = self._count - len(self.held) - (background and self._count > 1)
        return (adapter in self._claims and free > 0) or free > len(self._claims)

    def enter(self, adapter: str | None, project: str, now: float) -> None:
        """A request for ``adapter`` goes in; `admits` has said that it may."""
        if adapter is None or self._count is None:
            return
        tenure = self.held.get(adapter)
        if tenure is None:
            self._waiting.pop(adapter, None)
            self._claims -= {adapter}
            tenure = self.held[adapter] = SlotTenure(project, now)
        tenure.in_flight += 1

    def leave(self, adapter: str | None, now: float) -> None:
        """A request for ``adapter`` has left the engine."""
        if adapter is None or self._count is None:
            return
        tenure = self.held[adapter]
        tenure.in_flight -= 1
        if tenure.in_flight:
            return
        if tenure.draining or not self._queued[adapter]:
            del self.held[adapter]
            if self._queued[adapter]:
                self._waiting[adapter] = (now, tenure.project)

    def turn(self, now: float) -> None:
        """See who has waited a turn: they claim the free slots, and end the tenures that have had theirs."""
        if self._count is None:
            return
        overdue = self._overdue(now)
        running_empty = sum(tenure.draining for tenure in self.held.values())
        if not overdue:
            self._claims = frozenset()
            if running_empty:
                for tenure in self.held.values():
                    tenure.draining = False
            return
        wanted = min(len(overdue), self._draining) - running_empty - (self._count - len(self.held))
        for adapter in overdue:
            freed = self._slot_to_free(self._waiting[adapter][1], now) if wanted > 0 else None
            if freed is None:
                continue
            wanted -= 1
            tenure = self.held[freed]
            if tenure.in_flight:
                tenure.draining = True
            else:
                del self.held[freed]
                self._waiting[freed] = (now, tenure.project)
        self._claims = frozenset(overdue[: self._count - len(self.held)])

    def _overdue(self, now: float) -> list[str]:
        """Adapters that have waited a turn: those of projects with the fewest slots first, then the longest waiting."""
        waited = takewhile(lambda one: now - one[1][0] >= self._turn_s, self._waiting.items())
        found = [(adapter, project) for adapter, (_, project) in waited]
        if len(found) > 1:
            holds = Counter(tenure.project for tenure in self.held.values())
            found.sort(key=lambda one: holds[one[1]])
        return [adapter for adapter, _ in found]

    def _slot_to_free(self, project: str, now: float) -> str | None:
        """Whose slot goes to a waiting adapter of ``project``: one that has had its turn.

        It is one of the same project, or of a project that holds more slots, the one with most first. In a project the
        adapter with the fewest requests in flight is soonest out and leaves the least of the batch unused; but two
        turns come before one. None: all that may be taken from have had less than a turn.
        """
        holds = Counter(tenure.project for tenure in self.held.values())

        def rank(adapter: str) -> tuple[int, bool, bool, int, float]:
            tenure = self.held[adapter]
            fresh = now - tenure.since < 2 * self._turn_s
            return (-holds[tenure.project], tenure.project != project, fresh, tenure.in_flight, tenure.since)

        candidates = [
            adapter
            for adapter, tenure in self.held.items()
            if not tenure.draining
            and now - tenure.since >= self._turn_s
            and (tenure.project == project or holds[tenure.project] > holds[project])
        ]
        return min(candidates, key=rank, default=None)
