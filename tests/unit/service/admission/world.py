"""A gate's scheduler with a clock that a test moves, and an engine that takes a token a step."""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count

from service.admission.policy import Policy
from service.admission.queued import QueuedRequest, Stage
from service.admission.request import AdmissionRequest
from service.admission.scheduler import Scheduler


def policy(**changes: object) -> Policy:
    """Two common places of four, two slots, a queue of a hundred."""
    usual: dict[str, object] = {"width": 4, "common": 2, "slots": 2, "queue_size": 100, "queue_share": 1.0}
    return Policy(**{**usual, **changes})  # type: ignore[arg-type]


def request(
    adapter: str | None = "a",
    *,
    project: str = "p",
    key: str = "k",
    tokens: int = 100,
    background: bool = False,
    prompt: int = 0,
) -> AdmissionRequest:
    return AdmissionRequest(project, key, adapter, tokens, background, prompt)


class EagerScheduler(Scheduler):
    """A scheduler as the data path uses it: whoever finds no queue is admitted without being offered to it."""

    def offer(self, request: AdmissionRequest, now: float, max_wait_s: float = math.inf) -> QueuedRequest:
        return self.try_enter(request, now) or super().offer(request, now, max_wait_s)


class ClockedScheduler:
    """A scheduler with a clock."""

    scheduler_class: type[Scheduler] = Scheduler

    def __init__(self, memory: Memory | None = None, **changes: object) -> None:
        self.now = 1000.0
        self.scheduler = self.scheduler_class(policy(**changes), memory.is_cold if memory is not None else None)

    def offer(self, adapter: str | None = "a", **fields: object) -> QueuedRequest:
        return self.scheduler.offer(request(adapter, **fields), self.now)  # type: ignore[arg-type]

    def admit(self) -> list[QueuedRequest]:
        return self.scheduler.admit(self.now)

    def start(self, *entries: QueuedRequest) -> None:
        for entry in entries:
            self.scheduler.first_token(entry, self.now)

    def leave(self, entry: QueuedRequest, tokens: int | None = 100) -> list[QueuedRequest]:
        """One leaves; who came in for it."""
        self.scheduler.leave(entry, tokens, self.now)
        return self.admit()


class Memory:
    """Knows which adapters are cold."""

    def __init__(self, *cold: str) -> None:
        self.cold = set(cold)

    def is_cold(self, adapter: str) -> bool:
        return adapter in self.cold


@dataclass(eq=False)
class Request:
    model: str
    flow: tuple[str, str]
    sent: float
    prompt: int
    answer: int
    connection: bool
    """Its sender asks again when it is answered."""
    done: int = 0
    first: float = 0.0
    end: float = 0.0
    ahead: int = 0
    """Requests that were let in between its arrival and its own entrance."""
    entry: QueuedRequest | None = None


@dataclass
class Engine:
    """An engine in simulated time: a step's length grows with its batch and with what is read in it.

    The figures are those of a 135M model on two cores. Its own queue is vLLM's: in order of arrival, past those whose
    adapter would be one too many.
    """

    scheduler: Scheduler
    slots: int = 8
    most: int = 64
    now: float = 0.0
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    most_running: int = 0
    most_adapters: int = 0
    _arrivals: list[tuple[float, int, Request]] = field(default_factory=list)
    _queued: dict[QueuedRequest, Request] = field(default_factory=dict)
    _number: count[int] = field(default_factory=count)
    _admitted: int = 0

    def send(self, request: Request) -> None:
        heapq.heappush(self._arrivals, (request.sent, next(self._number), request))

    def run(self, until: float) -> None:
        """Work until then, or until there is nothing left to do."""
        while self.now < until:
            self._arrive()
            self._schedule()
            if not self.running:
                if not self._arrivals:
                    assert not self._queued, "requests wait in front of an empty engine"
                    return
                self.now = self._arrivals[0][0]
                continue
            self._step()

    def _arrive(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self.now:
            request = heapq.heappop(self._arrivals)[2]
            show = AdmissionRequest(
                *request.flow, request.model, request.prompt + request.answer, prompt=request.prompt
            )
            request.entry = self.scheduler.offer(show, self.now)
            request.ahead = self._admitted
            if request.entry.stage is Stage.ADMITTED:
                self._enter(request)
            else:
                self._queued[request.entry] = request
                self._admit()

    def _admit(self) -> None:
        for entry in self.scheduler.admit(self.now):
            self._enter(self._queued.pop(entry))

    def _enter(self, request: Request) -> None:
        request.ahead = self._admitted - request.ahead
        self._admitted += 1
        self.waiting.append(request)

    def _schedule(self) -> None:
        adapters = {request.model for request in self.running}
        self._new = []
        for request in list(self.waiting):
            if len(self.running) == self.most:
                break
            if request.model in adapters or len(adapters) < self.slots:
                adapters.add(request.model)
                self.waiting.remove(request)
                self.running.append(request)
                self._new.append(request)
        self.most_running = max(self.most_running, len(self.running))
        self.most_adapters = max(self.most_adapters, len(adapters))

    def _step(self) -> None:
        self.now += 0.018 + 0.0037 * len(self.running) + 0.0013 * sum(request.prompt for request in self._new)
        for request in list(self.running):
            assert request.entry is not None
            request.done += 1
            if request.done == 1:
                request.first = self.now
                self.scheduler.first_token(request.entry, self.now)
            if request.done == request.answer:
                request.end = self.now
                self.running.remove(request)
                self.finished.append(request)
                self.scheduler.leave(request.entry, request.prompt + request.answer, self.now)
                if request.connection:
                    again = Request(request.model, request.flow, self.now + 0.005, request.prompt, request.answer, True)
                    self.send(again)
        self._admit()

    def service(self, model: str) -> int:
        """Tokens of prompts and answers."""
        return sum(request.prompt + request.done for request in self.finished + self.running if request.model == model)

    def tokens(self, model: str) -> int:
        """Tokens of answers."""
        return sum(request.done for request in self.finished + self.running if request.model == model)


def poisson(engine: Engine, model: str, flow: tuple[str, str], rate: float, until: float, seed: int) -> None:
    """Requests of 24 to 72 tokens at random times, ``rate`` a second."""
    rng = random.Random(seed)
    at = rng.expovariate(rate)
    while at < until:
        engine.send(Request(model, flow, at, 42, rng.randint(24, 72), False))
        at += rng.expovariate(rate)


def by_model(requests: list[Request]) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        found[request.model].append(request)
    return found
