"""Which adapters may hold the engine's LoRA slots.

vLLM runs at most `max_loras` different adapters in a step. A request for another adapter waits in
vLLM's own queue until one of these has no requests left, which never happens while requests for them keep coming. Here
an adapter's turn ends: after its turn, if another adapter waits, it gets no more requests, drains and gives up its
slot. Until then its requests go ahead of those that would need another load.
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
    """The slots, and the adapters that wait for one.

    Args:
        count: Number of slots; None: unlimited.
        turn_s: How long an adapter keeps its slot while another waits, s; also how long that one must have waited.
        draining: Maximum number of slots that drain at once.
    """

    def __init__(self, count: int | None, turn_s: float, draining: int) -> None:
        self._count = count
        self._turn_s = turn_s
        self._draining = draining
        self.held: dict[str, SlotTenure] = {}
        self._queued: Counter[str] = Counter()
        self._waiting: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._claims: frozenset[str] = frozenset()
        """Adapters that have waited a turn and may take the free slots."""

    @property
    def free(self) -> int | None:
        """Number of free slots; None: unlimited."""
        return None if self._count is None else self._count - len(self.held)

    @property
    def waiting(self) -> int:
        """Number of adapters that wait for a slot."""
        return len(self._waiting)

    def queue(self, adapter: str | None, project: str, now: float) -> None:
        """A request for ``adapter`` starts to wait."""
        if adapter is None or self._count is None:
            return
        self._queued[adapter] += 1
        if adapter not in self.held and adapter not in self._waiting:
            self._waiting[adapter] = (now, project)

    def unqueue(self, adapter: str | None) -> None:
        """A request for ``adapter`` no longer waits."""
        if adapter is None or self._count is None:
            return
        self._queued[adapter] -= 1
        if not self._queued[adapter]:
            del self._queued[adapter]
            self._waiting.pop(adapter, None)
            tenure = self.held.get(adapter)
            if tenure is not None and not tenure.in_flight:
                del self.held[adapter]

    @property
    def spare(self) -> bool:
        """Whether a slot is free and nothing claims it or waits for one."""
        return self._count is None or (not self._claims and not self._waiting and len(self.held) < self._count)

    def admits(self, adapter: str | None, *, background: bool = False) -> bool:
        """Whether a request for ``adapter`` may be admitted now; the base needs no slot.

        Adapters that have waited a turn take free slots first. A background request leaves one slot free.
        """
        if adapter is None or self._count is None:
            return True
        tenure = self.held.get(adapter)
        if tenure is not None:
            return not tenure.draining
        free = self._count - len(self.held) - (background and self._count > 1)
        return (adapter in self._claims and free > 0) or free > len(self._claims)

    def candidates(self) -> list[str | None] | None:
        """The only adapters (None: the base) that `admits` may allow to callers now; None instead of a list: any."""
        if self._count is None:
            return None
        free = self._count - len(self.held)
        if free > len(self._claims):
            return None
        held = [adapter for adapter, tenure in self.held.items() if not tenure.draining]
        return [None, *held, *(self._claims if free > 0 else ())]

    def enter(self, adapter: str | None, project: str, now: float) -> None:
        """A request for ``adapter`` is admitted, which `admits` must have allowed."""
        if adapter is None or self._count is None:
            return
        tenure = self.held.get(adapter)
        if tenure is None:
            self._waiting.pop(adapter, None)
            if self._claims:
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
        queued = adapter in self._queued
        if tenure.draining or not queued:
            del self.held[adapter]
            if queued:
                self._waiting[adapter] = (now, tenure.project)

    def turn(self, now: float) -> None:
        """Let adapters that have waited a turn claim the free slots, and make others drain that have had their turn."""
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
        needed = min(len(overdue), self._draining) - running_empty - (self._count - len(self.held))
        hopeless: set[str] = set()  # projects for which no slot can be freed now: hundreds of adapters may wait
        for adapter in overdue:
            if needed <= 0:
                break
            project = self._waiting[adapter][1]
            if project in hopeless:
                continue
            freed = self._slot_to_free(project, now)
            if freed is None:
                hopeless.add(project)
                continue
            hopeless.clear()
            needed -= 1
            tenure = self.held[freed]
            if tenure.in_flight:
                tenure.draining = True
            else:
                del self.held[freed]
                self._waiting[freed] = (now, tenure.project)
        self._claims = frozenset(overdue[: self._count - len(self.held)])

    def _overdue(self, now: float) -> list[str]:
        """Adapters that have waited a turn; those of projects with the fewest slots first, then the longest waiting."""
        waited = takewhile(lambda item: now - item[1][0] >= self._turn_s, self._waiting.items())
        overdue = [(adapter, project) for adapter, (_, project) in waited]
        if len(overdue) > 1:
            holds = Counter(tenure.project for tenure in self.held.values())
            overdue.sort(key=lambda item: holds[item[1]])
        return [adapter for adapter, _ in overdue]

    def _slot_to_free(self, project: str, now: float) -> str | None:
        """The adapter that gives up its slot to a waiting adapter of ``project``; it must have had its turn.

        It belongs to the same project, or to one that holds more slots, the one with the most first. Within a project,
        adapters that have had two turns come first, then the one with the fewest requests in flight, which drains
        soonest and leaves the least of the batch unused. None: no candidate has had a full turn.
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
