"""Hierarchical start-time fair queueing over tokens: projects, their keys, the adapters that each key asks for.

Goyal, Vin and Cheng, "Start-time Fair Queueing" (SIGCOMM 1996), with the service counted in tokens, estimated when a
request is let in and corrected when it leaves, as in the Virtual Token Counter (Sheng et al., "Fairness in Serving
Large Language Models", OSDI 2024). Each node of the tree has a tag, the service that it has had in its
parent's virtual time; the child with the least tag goes first. A node that begins to wait starts beside the child that
is owed most: nobody saves up credit while idle, and a newcomer owes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from service.admission.queued import QueuedRequest

LINGER_S: Final = 5.0
"""How long an idle flow is kept, s: its debt still counts, and so does it for the reserved places."""
MAX_IDLE: Final = 4096
"""Maximum number of idle flows kept; the longest idle are dropped first."""
RATIO_WEIGHT: Final = 0.2
"""Weight of the newest request in a flow's ratio of used to estimated tokens."""
MIN_RATIO: Final = 0.01
MAX_RATIO: Final = 4.0

FEW: Final = 4
"""`first_among` looks at single flows if at most one in so many waiting ones may be eligible."""

_tag = attrgetter("tag")
_settled = attrgetter("settled")
_turn = attrgetter("tag", "in_flight")
_queued = attrgetter("queued")


class Flow:
    """A node of the tree: the root, a project, a key, or (a leaf) one adapter asked for by one key."""

    __slots__ = (
        "backlog",
        "children",
        "depth",
        "in_flight",
        "name",
        "order",
        "parent",
        "pending",
        "queue",
        "queued",
        "ratio",
        "tag",
        "virtual",
    )

    def __init__(self, name: str | None, parent: Flow | None) -> None:
        self.name = name
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[str | None, Flow] = {}
        self.backlog: dict[Flow, None] = {}
        """Children with waiting requests, the longest waiting first."""
        self.order = 0
        """When it began to wait, counted over the whole tree: the longest waiting has the least."""
        self.queue: OrderedDict[QueuedRequest, None] = OrderedDict()
        """A leaf's waiting requests, oldest first."""
        self.queued = 0
        self.in_flight = 0
        self.tag = 0.0
        """Tokens in the parent's virtual time: used by finished requests, and charged for those in the engine."""
        self.pending = 0.0
        """The part of the tag charged for requests in the engine."""
        self.virtual = 0.0
        """The children's virtual time: the maximum a child had been served when one of its requests was admitted."""
        self.ratio = 1.0
        """Tokens used per token estimated, moving average."""

    @property
    def head(self) -> QueuedRequest:
        """A leaf's oldest waiting request. Raises StopIteration where none waits."""
        return next(iter(self.queue))

    @property
    def settled(self) -> float:
        """The tag without the charges for requests in the engine."""
        return self.tag - self.pending

    @property
    def demand(self) -> int:
        """Requests in the engine and waiting."""
        return self.in_flight + self.queued

    @property
    def ahead(self) -> int:
        """About how many waiting requests go before a new one of this leaf, if those of all flows are alike: at each
        level the waiting flows take turns, so that a flood in another one counts for no more than this one's own. In
        the first round only those go before it that are owed at least as much. O(n) in the competing flows."""
        return self._ahead(_owed_as_much)

    @property
    def ahead_at_most(self) -> int:
        """`ahead` if all competing flows were owed as much; O(1)."""
        return self._ahead(lambda flow, rivals: len(rivals) - (flow in rivals))

    def _ahead(self, first: Callable[[Flow, Collection[Flow]], int]) -> int:
        ahead, flow = self.queued, self
        while flow.parent is not None:
            parent = flow.parent
            turns = len(parent.backlog) + (flow not in parent.backlog)
            ahead = min(parent.queued, ahead * turns + first(flow, parent.backlog.keys()))
            flow = parent
        return ahead

    @property
    def downwards(self) -> tuple[Flow, ...]:
        """The flows from the project down to this one."""
        return () if self.parent is None else (*self.parent.downwards, self)

    @property
    def path(self) -> tuple[str | None, ...]:
        """Names from the project down."""
        return tuple(flow.name for flow in self.downwards)

    @property
    def longest(self) -> Flow:
        """The child with most waiting requests; one waits. O(n) in the children that wait."""
        return max(self.backlog, key=_queued)


LEAF_DEPTH: Final = 3


def _newest(flow: Flow) -> QueuedRequest:
    """The last request of the longest queue below ``flow``."""
    while not flow.queue:
        flow = flow.longest
    return next(reversed(flow.queue))


class FlowTree:
    """The flows of one class of requests."""

    def __init__(self) -> None:
        self.root = Flow(None, None)
        self.ratio = 1.0
        """The initial ratio of new flows."""
        self._idle: OrderedDict[Flow, float] = OrderedDict()
        self._waiting: dict[str | None, dict[Flow, None]] = {}
        """The leaves with waiting requests, by the adapter that these are for."""
        self._waiting_leaves = 0
        self._begun = 0

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self.root.queued

    def newest_of_longest(self, leaf: Flow) -> QueuedRequest | None:
        """The newest request of the longest queue that is longer than that of ``leaf`` will be; None: there is none.

        The queues compared are those of projects; where no project's is longer, those of the keys in the project of
        ``leaf``, and so on. Dropping from the longest queue bounds what each may hold without a share for those who are
        not there (McKenney, "Stochastic Fairness Queueing", 1991).
        """
        flow = self.root
        for own in leaf.downwards:
            if not flow.queued:
                return None
            longest = flow.longest
            if longest is not own and longest.queued > own.queued + 1:
                return _newest(longest)
            flow = own  # no other has more: those who wait beside it within its own
        return None

    @property
    def in_flight(self) -> int:
        """Requests in the engine."""
        return self.root.in_flight

    @property
    def idle(self) -> int:
        """Number of idle leaves."""
        return len(self._idle)

    def leaf(self, project: str, key: str, adapter: str | None) -> Flow:
        """The leaf, created if needed; if it gets no request, it must be passed to `rest`."""
        flow = self.root
        for name in (project, key, adapter):
            child = flow.children.get(name)
            if child is None:
                child = flow.children[name] = Flow(name, flow)
                child.ratio = self.ratio
            flow = child
        self._idle.pop(flow, None)
        return flow

    def push(self, leaf: Flow, entry: QueuedRequest) -> None:
        """Append ``entry`` to its flow's queue."""
        leaf.queue[entry] = None
        _lift_tag(leaf)
        self._begun += 1
        flow: Flow | None = leaf
        while flow is not None:
            flow.queued += 1
            if flow.parent is not None and flow.queued == 1:
                flow.parent.backlog[flow] = None
                flow.order = self._begun
            flow = flow.parent
        if leaf.queued == 1:
            self._waiting.setdefault(entry.request.adapter, {})[leaf] = None
            self._waiting_leaves += 1

    def remove(self, entry: QueuedRequest) -> None:
        """Remove a waiting request."""
        leaf = entry.leaf
        del leaf.queue[entry]
        flow: Flow | None = leaf
        while flow is not None:
            flow.queued -= 1
            if flow.parent is not None and flow.queued == 0:
                del flow.parent.backlog[flow]
            flow = flow.parent
        if not leaf.queued:
            self._waiting_leaves -= 1
            adapter = entry.request.adapter
            del self._waiting[adapter][leaf]
            if not self._waiting[adapter]:
                del self._waiting[adapter]

    def serve(self, entry: QueuedRequest, *, waited: bool) -> None:
        """Admit a request: its flow and all flows above it are charged for its expected tokens.

        Args:
            waited: Whether it was just taken from the queue, so that its flow's tag must not be lifted.
        """
        flow = entry.leaf
        charge = entry.request.tokens * flow.ratio
        if charge < 1.0:
            charge = 1.0
        entry.charge = charge
        lifts = not waited
        while (parent := flow.parent) is not None:
            settled = flow.tag - flow.pending
            # as `_lift_tag`: the lift of a level reads nothing that the levels below it change
            if lifts and (lifts := not flow.queued):
                siblings = parent.backlog
                floor = min(map(_settled, siblings)) if siblings else parent.virtual
                if floor > settled:
                    flow.tag += floor - settled
                    settled = flow.tag - flow.pending
            flow.in_flight += 1
            if settled > parent.virtual:
                parent.virtual = settled
            flow.tag += charge
            flow.pending += charge
            flow = parent
        flow.in_flight += 1

    def settle(self, entry: QueuedRequest, tokens: int | None) -> None:
        """Finish an admitted request: replace its charge by the ``tokens`` it used (None: 0)."""
        leaf = flow = entry.leaf
        charge = entry.charge
        correction = (tokens or 0) - charge
        while (parent := flow.parent) is not None:
            flow.in_flight -= 1
            flow.tag += correction
            flow.pending -= charge
            flow = parent
        flow.in_flight -= 1
        if tokens is not None:
            estimate = entry.request.tokens
            used = tokens / estimate if estimate > 1 else tokens
            used = MIN_RATIO if used < MIN_RATIO else MAX_RATIO if used > MAX_RATIO else used
            leaf.ratio += RATIO_WEIGHT * (used - leaf.ratio)
            self.ratio += RATIO_WEIGHT * RATIO_WEIGHT * (used - self.ratio)

    def first(self, eligible: Callable[[Flow], bool]) -> Flow | None:
        """The leaf whose head is next: the smallest tag at each level, among flows with an eligible leaf.

        O(1) without competing flows, else O(n log n) in the number of waiting flows.
        """
        return _first(self.root, eligible)

    def first_among(
        self, adapters: Sequence[str | None], eligible: Callable[[Flow], bool], *, few: int = FEW
    ) -> Flow | None:
        """What `first` finds if no flow is eligible but those that ask for one of ``adapters`` (None: for the base).

        O(m) in the number of these flows if they are few: most others wait for a slot, and need not be looked at.
        """
        count = sum(len(self._waiting.get(adapter, ())) for adapter in adapters)
        if count * few > self._waiting_leaves:
            return self.first(eligible)
        leaves = [leaf for adapter in adapters for leaf in self._waiting.get(adapter, ()) if eligible(leaf)]
        return min(leaves, key=_turn_from_root, default=None)

    def rest(self, leaf: Flow, now: float) -> None:
        """Mark ``leaf`` idle if it has no requests, and drop flows that have been idle for long."""
        if not leaf.queued and not leaf.in_flight:
            self._idle[leaf] = now
            self._idle.move_to_end(leaf)
        while self._idle:
            oldest, since = next(iter(self._idle.items()))
            if now - since <= LINGER_S and len(self._idle) <= MAX_IDLE:
                return
            del self._idle[oldest]
            _remove(oldest)

    def leaves(self) -> list[Flow]:
        """Every leaf, idle ones too."""
        return [
            leaf
            for project in self.root.children.values()
            for key in project.children.values()
            for leaf in key.children.values()
        ]


def in_turn(flow: Flow) -> Iterable[Flow]:
    """The waiting children in the order of their turns.

    With equal tags, the flow with the fewest requests in the engine comes first, then the one that has waited longest.
    """
    return flow.backlog if len(flow.backlog) == 1 else sorted(flow.backlog, key=_turn)


def _turn_from_root(leaf: Flow) -> tuple[tuple[float, int, int], ...]:
    """A leaf's place in the order of turns: its project's first, then its key's, then its own."""
    return tuple((flow.tag, flow.in_flight, flow.order) for flow in leaf.downwards)


def _owed_as_much(flow: Flow, rivals: Collection[Flow]) -> int:
    tag = flow.tag + _lift(flow)
    return sum(rival.tag <= tag for rival in rivals) - (flow in rivals)


def _lift_tag(flow: Flow) -> None:
    """Begin a time of waiting: no credit is left from the time before it (the Virtual Token Counter's lift).

    What is in the engine is left out on both sides: its charges are guesses, and a newcomer must not start behind
    those of others. So it goes first until it has as much in the engine as they have.
    """
    while flow.parent is not None and flow.queued == 0:
        flow.tag += _lift(flow)
        flow = flow.parent


def _lift(flow: Flow) -> float:
    """By how much a flow's tag is raised when it begins to wait; 0 if it waits already."""
    if flow.parent is None or flow.queued:
        return 0.0
    siblings = flow.parent.backlog
    floor = min(map(_settled, siblings)) if siblings else flow.parent.virtual
    return max(0.0, floor - flow.settled)


def _first(flow: Flow, eligible: Callable[[Flow], bool]) -> Flow | None:
    if flow.depth == LEAF_DEPTH:
        return flow if eligible(flow) else None
    if not flow.backlog:
        return None
    best = min(flow.backlog, key=_turn)
    leaf = _first(best, eligible)
    if leaf is not None or len(flow.backlog) == 1:
        return leaf
    for child in in_turn(flow):
        leaf = _first(child, eligible) if child is not best else None
        if leaf is not None:
            return leaf
    return None


def _remove(flow: Flow) -> None:
    parent = flow.parent
    if parent is None:
        return
    del parent.children[flow.name]
    if not parent.children:
        _remove(parent)
