"""Small flows: flows that ask for no more than their fair share, and so need not wait behind a flood of requests.

A flow is small if it competes with others and its whole demand, in the engine and in the queue, is below its max-min
fair share of the width (Bertsekas and Gallager, "Data Networks", section 6.5.2); or if that holds for its key or its
project. A flow with more than ``max_demand`` requests is never small, and neither is one that is more than ``burst``
tokens ahead of the sibling that is furthest behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.admission.fair import LEAF_DEPTH, Flow, in_turn


@dataclass(frozen=True, slots=True)
class FairShare:
    """Bounds of a small flow: the width that is shared, its requests at most, and its lead over others in tokens."""

    width: int
    max_demand: int
    burst: int


class SmallFlows:
    """Tells which flows are small at one moment. Caches levels, so make a new one after every change."""

    __slots__ = ("_floors", "_levels", "_share")

    def __init__(self, due: FairShare) -> None:
        self._share = due
        self._floors: dict[Flow, float] = {}
        self._levels: dict[Flow, float] = {}

    def is_small(self, leaf: Flow, more: int = 0) -> bool:
        """Whether ``leaf`` would be small with ``more`` requests added to it."""
        if not self._may_be(leaf):
            return False
        capacity = float(self._share.width)
        for flow in leaf.downwards:
            capacity = self._level(flow.parent or flow, capacity)
            if flow.demand + more <= min(capacity, self._share.max_demand):
                return True
        return False

    def first(self, root: Flow, has_slot: Callable[[Flow], bool]) -> Flow | None:
        """The small leaf with a slot whose turn comes first; None if there is none.

        O(1) where more flows wait than there are places: none of them is small then.
        """
        return self._first(root, float(self._share.width), has_slot)

    def _first(self, flow: Flow, capacity: float, has_slot: Callable[[Flow], bool]) -> Flow | None:
        """The first small leaf below ``flow``, which is not small and whose children share ``capacity`` places."""
        if flow.depth == LEAF_DEPTH or len(flow.backlog) > capacity:
            return None
        level = self._level(flow, capacity)
        max_demand = min(level, self._share.max_demand)
        for child in in_turn(flow):
            small = child.demand <= max_demand
            leaf = self._any(child, has_slot) if small else self._first(child, level, has_slot)
            if leaf is not None:
                return leaf
        return None

    def _any(self, flow: Flow, has_slot: Callable[[Flow], bool]) -> Flow | None:
        """The first leaf below ``flow``, which is small; then all its leaves are."""
        if flow.depth == LEAF_DEPTH:
            return flow if self._may_be(flow) and has_slot(flow) else None
        for child in in_turn(flow):
            leaf = self._any(child, has_slot)
            if leaf is not None:
                return leaf
        return None

    def _may_be(self, leaf: Flow) -> bool:
        path = leaf.downwards
        if all(flow.parent is None or len(flow.parent.children) == 1 for flow in path):
            return False
        return all(self._lead(flow) <= self._share.burst for flow in path)

    def _lead(self, flow: Flow) -> float:
        """How far the flow is ahead of the sibling that is furthest behind, tokens."""
        parent = flow.parent
        if parent is None or len(parent.backlog) < 2:
            return 0.0
        floor = self._floors.get(parent)
        if floor is None:
            floor = self._floors[parent] = min(child.tag for child in parent.backlog)
        return flow.tag - floor

    def _level(self, parent: Flow, capacity: float) -> float:
        """The number of requests up to which each child gets what it asks for."""
        level = self._levels.get(parent)
        if level is None:
            demands = sorted(child.demand for child in parent.children.values() if child.demand)
            level = self._levels[parent] = fill(demands, capacity)
        return level


def fill(demands: list[int], capacity: float) -> float:
    """The max-min fair level: demands below it are met in full, the others up to it.

    Args:
        demands: Ascending.
        capacity: What is shared. If it meets all demands, the level is the largest demand plus what is left over.
    """
    remaining = len(demands)
    for demand in demands:
        if demand * remaining > capacity:
            return capacity / remaining
        capacity -= demand
        remaining -= 1
    return (demands[-1] if demands else 0) + capacity
