"""Small flows: those that ask for no more than their due, and so need not wait for a flood to make room.

A flow is small where it competes with others and its whole demand, in the engine and in the queue, lies below the level
up to which the width fills the demands beside it in max-min fairness (Bertsekas and Gallager, "Data Networks", section
6.5.2); or where that is so for its key, or for its project. A demand of more than ``most`` is never small. Nor do
places alone decide: a flow more than ``burst`` tokens ahead of the one that is owed most has had its part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.admission.fair import LEAF_DEPTH, Flow, in_turn


@dataclass(frozen=True, slots=True)
class Due:
    """What is due to a flow: the width that is shared, the most that a small flow asks for, its lead in tokens."""

    width: int
    most: int
    burst: int


class View:
    """Which flows are small at one moment; it remembers what it has worked out."""

    __slots__ = ("_due", "_floors", "_levels")

    def __init__(self, due: Due) -> None:
        self._due = due
        self._floors: dict[Flow, float] = {}
        self._levels: dict[Flow, float] = {}

    def is_small(self, leaf: Flow, more: int = 0) -> bool:
        """Whether ``leaf`` is small, were ``more`` requests added to it."""
        if not self._may_be(leaf):
            return False
        capacity = float(self._due.width)
        for flow in leaf.downwards:
            capacity = self._level(flow.parent or flow, capacity)
            if flow.demand + more <= min(capacity, self._due.most):
                return True
        return False

    def first(self, root: Flow, has_slot: Callable[[Flow], bool]) -> Flow | None:
        """The small leaf whose turn comes first, of those with a slot.

        O(1) where more flows wait than there are places: none of them is small then.
        """
        return self._first(root, float(self._due.width), has_slot)

    def _first(self, flow: Flow, capacity: float, has_slot: Callable[[Flow], bool]) -> Flow | None:
        """Below ``flow``, which is not small itself and among whose children ``capacity`` places are shared."""
        if flow.depth == LEAF_DEPTH or len(flow.backlog) > capacity:
            return None
        level = self._level(flow, capacity)
        most = min(level, self._due.most)
        for child in in_turn(flow):
            found = self._any(child, has_slot) if child.demand <= most else self._first(child, level, has_slot)
            if found is not None:
                return found
        return None

    def _any(self, flow: Flow, has_slot: Callable[[Flow], bool]) -> Flow | None:
        """Below ``flow``, which is small: then every leaf of it is."""
        if flow.depth == LEAF_DEPTH:
            return flow if self._may_be(flow) and has_slot(flow) else None
        for child in in_turn(flow):
            found = self._any(child, has_slot)
            if found is not None:
                return found
        return None

    def _may_be(self, leaf: Flow) -> bool:
        path = leaf.downwards
        if all(flow.parent is None or len(flow.parent.children) == 1 for flow in path):
            return False
        return all(self._lead(flow) <= self._due.burst for flow in path)

    def _lead(self, flow: Flow) -> float:
        """How far the flow is ahead of the one beside it that is owed most, tokens."""
        parent = flow.parent
        if parent is None or len(parent.backlog) < 2:
            return 0.0
        floor = self._floors.get(parent)
        if floor is None:
            floor = self._floors[parent] = min(child.tag for child in parent.backlog)
        return flow.tag - floor

    def _level(self, parent: Flow, capacity: float) -> float:
        """Up to which number of requests each child gets what it asks for."""
        found = self._levels.get(parent)
        if found is None:
            demands = sorted(child.demand for child in parent.children.values() if child.demand)
            found = self._levels[parent] = fill(demands, capacity)
        return found


def fill(demands: list[int], capacity: float) -> float:
    """The level of max-min fairness: demands below it are met in full, the others to the level.

    Args:
        demands: Ascending.
        capacity: What is shared; where it meets all demands, what is left stands above the largest.
    """
    left = len(demands)
    for demand in demands:
        if demand * left > capacity:
            return capacity / left
        capacity -= demand
        left -= 1
    return (demands[-1] if demands else 0) + capacity
