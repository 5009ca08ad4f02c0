"""What holds whatever happens: random arrivals, departures, clients that leave, and time that passes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.admission.fair import LINGER_S, Flow
from service.admission.queued import QueuedRequest, Stage
from service.admission.scheduler import Scheduler
from service.errors import RateLimited, Unavailable
from tests.unit.service.admission.world import ClockedScheduler, EagerScheduler, Memory, policy, request

ADAPTERS = (None, "a", "b", "c", "d", "e")


class AdmissionQueue(RuleBasedStateMachine):
    """A gate under everything that can happen to it."""

    scheduler_class: type[Scheduler] = Scheduler

    @initialize(
        width=st.integers(1, 6),
        kept=st.integers(0, 3),
        slots=st.sampled_from((None, 1, 2, 3)),
        prefill=st.sampled_from((None, 50, 300)),
        queue=st.integers(1, 12),
    )
    def begin(self, width: int, kept: int, slots: int | None, prefill: int | None, queue: int) -> None:
        common = max(1, width - kept)
        self.policy = policy(width=width, common=common, slots=slots, prefill=prefill, queue_size=queue)
        self.memory = Memory()
        self.scheduler = self.scheduler_class(self.policy, self.memory.is_cold)
        self.now = 0.0
        self.waiting: list[QueuedRequest] = []
        self.inside: list[QueuedRequest] = []
        self.offered = self.refused = self.gone = 0

    @rule(
        adapter=st.sampled_from(ADAPTERS),
        project=st.sampled_from("pq"),
        key=st.sampled_from("kl"),
        tokens=st.integers(1, 500),
        background=st.booleans(),
        prompt=st.integers(0, 200),
    )
    def offer(self, adapter: str | None, project: str, key: str, tokens: int, background: bool, prompt: int) -> None:
        show = request(adapter, project=project, key=key, tokens=tokens, background=background, prompt=prompt)
        self.offered += 1
        try:
            entry = self.scheduler.offer(show, self.now)
        except (RateLimited, Unavailable):
            self.refused += 1
            return
        while self.scheduler.displaced:
            displaced = self.scheduler.displaced.pop()
            assert displaced.stage is Stage.DONE
            assert not displaced.request.background
            self.waiting.remove(displaced)
            self.gone += 1
        (self.inside if entry.stage is Stage.ADMITTED else self.waiting).append(entry)
        self.admit()

    @rule(data=st.data(), tokens=st.one_of(st.none(), st.integers(0, 2000)))
    def leave(self, data: st.DataObject, tokens: int | None) -> None:
        if self.inside:
            entry = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
            self.scheduler.leave(entry, tokens, self.now)
            self.scheduler.leave(entry, tokens, self.now)
            self.gone += 1
            self.admit()

    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        if self.inside:
            self.scheduler.first_token(data.draw(st.sampled_from(self.inside)), self.now)
            self.admit()

    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        if self.waiting:
            entry = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
            self.scheduler.withdraw(entry, self.now)
            self.gone += 1
            self.admit()

    @rule(cold=st.sets(st.sampled_from(ADAPTERS[1:])))
    def engine_loads_and_evicts(self, cold: set[str]) -> None:
        self.memory.cold = cold

    @rule(seconds=st.sampled_from((0.01, 0.6, 3.0, 11.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.admit()

    def admit(self) -> None:
        for entry in self.scheduler.admit(self.now):
            assert entry.stage is Stage.ADMITTED
            self.waiting.remove(entry)
            self.inside.append(entry)

    @invariant()
    def whoever_may_have_a_slot_is_found_without_looking_at_the_others(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        among = self.scheduler.slots.candidates()
        if among is None:
            return

        def has_slot(leaf: Flow) -> bool:
            return self.scheduler.has_slot(leaf.head, self.now)

        tree = self.scheduler.callers
        assert tree.first_among(among, has_slot, few=0) is tree.first(has_slot)

    @invariant()
    def never_too_many(self) -> None:
        assert self.scheduler.in_flight <= self.policy.width
        assert self.scheduler.queued <= self.policy.queue_size
        adapters = {entry.request.adapter for entry in self.inside} - {None}
        assert self.policy.slots is None or len(adapters) <= self.policy.slots

    @invariant()
    def the_books_are_right(self) -> None:
        scheduler = self.scheduler
        assert self.offered == self.refused + self.gone + len(self.waiting) + len(self.inside)
        assert (scheduler.queued, scheduler.in_flight) == (len(self.waiting), len(self.inside))
        for background, tree in ((False, scheduler.callers), (True, scheduler.background)):
            mine = [entry for entry in self.waiting if entry.request.background == background]
            assert Counter(entry.leaf for entry in mine) == Counter(
                {leaf: len(leaf.queue) for leaf in tree.leaves() if leaf.queue}
            )
            _check(tree.root)
        held = Counter(entry.request.adapter for entry in self.inside if entry.request.adapter is not None)
        if self.policy.slots is not None:
            assert held == Counter({name: one.in_flight for name, one in scheduler.slots.held.items() if one.in_flight})
        assert scheduler.prefill >= 0

    @invariant()
    def an_empty_engine_means_an_empty_queue(self) -> None:
        assert self.inside or not self.waiting, "requests wait, and nothing will ever wake them"

    @invariant()
    def work_is_conserved(self) -> None:
        """With places free and nothing being read, only a slot can be what is missing."""
        scheduler = self.scheduler
        if scheduler.in_flight >= self.policy.common or scheduler.prefill:
            return
        for entry in self.waiting:
            if not entry.request.background:
                assert not scheduler.has_slot(entry, self.now)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert sorted(map(id, self.scheduler.drain(self.now))) == sorted(map(id, self.waiting))
        for entry in self.inside:
            self.scheduler.leave(entry, 1, self.now)
        scheduler = self.scheduler
        assert (scheduler.queued, scheduler.in_flight, scheduler.prefill) == (0, 0, 0)
        assert scheduler.slots.held == {}
        assert scheduler.slots.waiting == 0
        for tree in (scheduler.callers, scheduler.background):
            leaf = tree.leaf("p", "k", "last")
            tree.rest(leaf, self.now + 1)
            tree.rest(leaf, self.now + LINGER_S + 2)
            assert len(tree.leaves()) <= 1, "flows that have nothing to do are forgotten"


def _check(flow: Flow) -> None:
    children = list(flow.children.values())
    if children:
        assert flow.queued == sum(child.queued for child in children)
        assert flow.in_flight == sum(child.in_flight for child in children)
        assert set(flow.backlog) == {child for child in children if child.queued}
    for child in children:
        _check(child)


class EagerAdmissionQueue(AdmissionQueue):
    """The same, as the data path uses it."""

    scheduler_class = EagerScheduler


TestGate = AdmissionQueue.TestCase
TestGate.settings = settings(max_examples=150, stateful_step_count=40)
TestEagerGate = EagerAdmissionQueue.TestCase
TestEagerGate.settings = settings(max_examples=150, stateful_step_count=40)


@pytest.mark.parametrize("scheduler_class", [Scheduler, EagerScheduler])
@given(
    costs=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=30, max_size=120),
    width=st.integers(1, 6),
    level=st.sampled_from(("project", "key", "adapter")),
    announced=st.sampled_from((1.0, 0.5, 4.0)),
)
@settings(max_examples=150)
def test_two_flows_that_never_stop_get_the_same_tokens(
    scheduler_class: type[Scheduler], costs: list[tuple[int, int]], width: int, level: str, announced: float
) -> None:
    """Their services differ by a constant: the largest request and what is in flight, whatever they announce."""
    clocked = ClockedScheduler(width=width, common=width, slots=None, queue_size=10_000)
    clocked.scheduler = scheduler_class(clocked.scheduler.policy)
    served: Counter[str] = Counter()
    inside: list[tuple[QueuedRequest, int]] = []
    true_cost: dict[int, int] = {}
    for both in costs:
        for side, cost in zip("xy", both, strict=True):
            fields = {"adapter": "a", "key": "k", "project": "p", level: side}
            # one side announces too much or too little
            entry = clocked.offer(tokens=max(1, int(cost * (announced if side == "x" else 1.0))), **fields)
            true_cost[id(entry)] = cost
            if entry.stage is Stage.ADMITTED:
                inside.append((entry, cost))
    largest = max(max(both) for both in costs)
    bound = 2 * largest * (width + 1) * 4
    while True:
        entry, cost = inside.pop(0)
        side = {"adapter": str(entry.request.adapter), "key": entry.request.key_id, "project": entry.request.project}[
            level
        ]
        served[side] += cost
        inside += [(one, true_cost[id(one)]) for one in clocked.leave(entry, cost)]
        backlogged = [flow.name for flow in _level(clocked.scheduler, level) if flow.queued]
        if len(backlogged) < 2:
            return
        assert abs(served["x"] - served["y"]) <= bound


def _level(scheduler: Scheduler, level: str) -> list[Flow]:
    projects = list(scheduler.callers.root.children.values())
    keys = [key for project in projects for key in project.children.values()]
    return {"project": projects, "key": keys, "adapter": scheduler.callers.leaves()}[level]
