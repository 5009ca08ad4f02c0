"""Holds each key to its limits: requests and tokens a minute, requests at once, tokens a day.

Minutes are token buckets: a bucket holds one minute's worth, fills evenly, and a request takes from it. A sliding
window of single events would need memory for each of them and could not say in one step when to come back; a bucket is
two numbers, its wait is a division, and what was taken too much or too little is settled by adding. What it allows: a
key that was idle may use a whole minute's worth at once. In any ``w`` seconds a key is admitted at most
``limit × (1 + w / 60)`` tokens, plus what one oversized request takes beyond the limit (below), plus what the estimates
of its requests fell short of the engine's counts; all of that the bucket then owes, and nothing is admitted before it
is paid back. Requests have neither of the two surpluses.

Tokens are taken by estimate when a request comes and settled by the engine's count when it ends; where there is no
count, because the engine refused the request or its client left, by the estimate of what the engine did for it. A
request that was never sent to the engine gets its tokens back; the request itself stays counted, as with OpenAI. A
refused request is counted only where another limit had let it in before: the one whose tokens were not there.

A request whose estimate alone is above ``tokens_per_minute`` would never fit: it is admitted when the bucket is full,
and the debt keeps everybody with that key waiting until it is paid. An estimate above what is left of
``tokens_per_day`` is refused: the budget is passed only by what estimates fall short.

Days are UTC days. A request's tokens belong to the day in which it ends, which is how usage is counted, too: so a start
of the gateway finds the day's count in the table of usage (``restore``). A crash forgets what was not yet written there
(``service.usage.account``: one flush interval, 2 s by default), in favour of the keys. The minutes' buckets are full
after a start.

All of it runs on the event loop's thread and takes no lock. There is one state for each key that is limited and was
used lately; idle ones are dropped, deleted keys are forgotten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from service.access.buckets import Bucket, Headers, duration, triple
from service.access.caller import NO_LIMITS, Caller, Limits
from service.errors import QuotaSpent, RateLimited, RequestsLimited, TokensLimited

LimitName = Literal["requests_per_minute", "tokens_per_minute", "concurrent", "tokens_per_day"]
DAY_S: Final = 86_400
SOON_S: Final = 1
"""Retry-After where a request in work has to end first: nobody knows when it will."""
SWEEP_AT_LEAST: Final = 1024


class Lease(Protocol):
    """One request's share of its key's limits, from its arrival to its end."""

    def charge(self, tokens: int) -> None:
        """Take the request's estimated tokens.

        Raises:
            RateLimited: The key's tokens do not reach for them.
        """

    def headers(self) -> list[tuple[bytes, str]]:
        """OpenAI's rate-limit headers, as of now; none where the key has no limits."""

    def close(self, tokens: int | None) -> None:
        """End it: ``tokens`` are owed in truth; None: nothing was sent to the engine, the charge is given back."""


class State:
    """One key's: its buckets, its requests in work and its day's tokens (settled, and held by requests in work)."""

    __slots__ = ("day", "held", "in_flight", "limits", "requests", "settled", "tokens")

    def __init__(self, limits: Limits, now: float, day: int, settled: int) -> None:
        self.in_flight = 0
        self.day = day
        self.settled = settled
        self.held = 0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.adopt(limits, now)

    def adopt(self, limits: Limits, now: float) -> None:
        """Take the key's limits, also where they are no longer those of its last request."""
        self.limits = limits
        self.requests = _fitted(self.requests, limits.requests_per_minute, now)
        self.tokens = _fitted(self.tokens, limits.tokens_per_minute, now)

    def turn(self, day: int) -> None:
        """Begin a new day, where it is one; a clock that is set back begins none."""
        if day > self.day:
            self.day = day
            self.settled = 0

    def idle(self, now: float, day: int) -> bool:
        """Whether a state made anew would be the same."""
        if self.in_flight or (self.settled and self.day >= day):
            return False
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.fill(now)
                if bucket.level < bucket.capacity:
                    return False
        return True


class KeyLimiter:
    """The ``Limiter`` of the data path.

    Args:
        clock: Seconds that only ever grow.
        wall: Unix time, seconds.

    ``refused`` counts the refusals by the name of the limit.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._states: dict[str, State] = {}
        self._sweep_at = SWEEP_AT_LEAST
        self._restored: dict[str, int] = {}
        self._restored_day = 0
        self.refused: dict[LimitName, int] = dict.fromkeys(
            ("requests_per_minute", "tokens_per_minute", "concurrent", "tokens_per_day"), 0
        )

    def __len__(self) -> int:
        """How many keys have a state."""
        return len(self._states)

    def restore(self, spent: Mapping[str, int]) -> None:
        """Take over what keys (by id) have used today before this start, in tokens."""
        self._restored = dict(spent)
        self._restored_day = self._day()

    def forget(self, key_id: str) -> None:
        """Drop a deleted key; its requests in work end as they would."""
        self._states.pop(key_id, None)
        self._restored.pop(key_id, None)

    def enter(self, caller: Caller) -> Lease:
        """Count a request that has just arrived.

        Raises:
            RequestsLimited: Too many a minute, or at once.
            QuotaSpent: The day's tokens are spent.
        """
        limits = caller.limits
        if limits is NO_LIMITS or _unlimited(limits):
            return _FREE
        now = self._clock()
        # a key's jobs use up its limits: else it would have them once more with each job that it makes
        key_id = caller.limited_as or caller.key_id
        state = self._states.get(key_id)
        if state is None:
            state = self._admit_key(key_id, limits, now)
        elif state.limits is not limits:
            state.adopt(limits, now)
        if limits.tokens_per_day is not None:
            state.turn(self._day())
            if state.settled >= limits.tokens_per_day:
                raise self._spent(state, limits.tokens_per_day, None)
        if limits.concurrent is not None and state.in_flight >= limits.concurrent:
            raise self._too_many(state, limits.concurrent, now)
        bucket = state.requests
        if bucket is not None:
            bucket.fill(now)
            if not bucket.holds(1):
                raise self._too_often(bucket)
            bucket.level -= 1
        state.in_flight += 1
        return KeyLease(self, state)

    def charge(self, state: State, tokens: int) -> None:
        """Take a request's estimated tokens, or none of them. Raises TokensLimited, QuotaSpent."""
        budget = state.limits.tokens_per_day
        if budget is not None:
            state.turn(self._day())
            if state.settled + tokens > budget:
                raise self._spent(state, budget, tokens)
            if state.settled + state.held + tokens > budget:
                raise self._held(state, budget, tokens)
        bucket = state.tokens
        if bucket is not None:
            bucket.fill(self._clock())
            if not bucket.holds(tokens):
                raise self._too_much(bucket, tokens)
            bucket.level -= tokens
        state.held += tokens

    def settle(self, state: State, charged: int, used: int) -> None:
        """End a request: ``charged`` tokens were taken, ``used`` in truth."""
        state.in_flight -= 1
        state.held -= charged
        if state.limits.tokens_per_day is not None:
            state.turn(self._day())
            state.settled += used
        bucket = state.tokens
        if bucket is not None and used != charged:
            bucket.fill(self._clock())
            bucket.level = min(bucket.level + charged - used, float(bucket.capacity))

    def headers(self, state: State) -> Headers:
        """OpenAI's rate-limit headers, as of now. The tokens' are the day's where no limit a minute is set."""
        found: Headers = []
        now = self._clock()
        if state.requests is not None:
            state.requests.fill(now)
            found += state.requests.headers("requests")
        if state.tokens is not None:
            state.tokens.fill(now)
            found += state.tokens.headers("tokens")
        elif state.limits.tokens_per_day is not None:
            found += self._day_headers(state, state.limits.tokens_per_day)
        return found

    def _day(self) -> int:
        return int(self._wall() // DAY_S)

    def _to_midnight_s(self) -> float:
        return DAY_S - self._wall() % DAY_S

    def _admit_key(self, key_id: str, limits: Limits, now: float) -> State:
        day = self._day()
        if len(self._states) >= self._sweep_at:
            self._states = {key: state for key, state in self._states.items() if not state.idle(now, day)}
            # twice what is left: sweeping costs each new key the same, however many there are
            self._sweep_at = max(SWEEP_AT_LEAST, 2 * len(self._states))
        if day > self._restored_day:
            self._restored = {}
        state = self._states[key_id] = State(limits, now, day, self._restored.pop(key_id, 0))
        return state

    # refusals

    def _too_often(self, bucket: Bucket) -> RateLimited:
        self.refused["requests_per_minute"] += 1
        wait_s = _whole(bucket.wait_s(1))
        return RequestsLimited(
            f"Rate limit reached on `requests_per_minute`: limit {bucket.capacity}, used {bucket.capacity}, "
            f"requested 1. Please try again in {duration(wait_s)}.",
            headers=_told(wait_s, bucket.headers("requests")),
        )

    def _too_many(self, state: State, limit: int, now: float) -> RateLimited:
        self.refused["concurrent"] += 1
        if state.requests is not None:
            state.requests.fill(now)
        return RequestsLimited(
            f"Rate limit reached on `concurrent` requests: limit {limit}, in work {state.in_flight}, requested 1. "
            f"Please try again when one of them has ended.",
            headers=_told(SOON_S, [] if state.requests is None else state.requests.headers("requests")),
        )

    def _too_much(self, bucket: Bucket, tokens: int) -> RateLimited:
        self.refused["tokens_per_minute"] += 1
        wait_s = _whole(bucket.wait_s(tokens))
        used = bucket.capacity - bucket.remaining
        return TokensLimited(
            f"Rate limit reached on `tokens_per_minute`: limit {bucket.capacity}, used {used}, requested {tokens} "
            f"(prompt and answer, estimated). Please try again in {duration(wait_s)}.",
            headers=_told(wait_s, bucket.headers("tokens")),
        )

    def _held(self, state: State, budget: int, tokens: int) -> RateLimited:
        self.refused["tokens_per_day"] += 1
        return TokensLimited(
            f"Rate limit reached on `tokens_per_day`: limit {budget}, used {state.settled}, held by requests in work "
            f"{state.held}, requested {tokens} (prompt and answer, estimated). Please try again when they have ended.",
            headers=_told(SOON_S, self._day_headers(state, budget)),
        )

    def _spent(self, state: State, budget: int, tokens: int | None) -> RateLimited:
        self.refused["tokens_per_day"] += 1
        wait_s = _whole(self._to_midnight_s())
        requested = "" if tokens is None else f", requested {tokens} (prompt and answer, estimated)"
        return QuotaSpent(
            f"You exceeded your current quota, `tokens_per_day`: limit {budget}, used {state.settled}{requested}. "
            f"A new day begins at midnight UTC, in {duration(wait_s)}.",
            headers=_told(wait_s, self._day_headers(state, budget)),
        )

    def _day_headers(self, state: State, budget: int) -> Headers:
        return triple("tokens", budget, budget - state.settled - state.held, self._to_midnight_s())


class KeyLease:
    """One request of a key that has limits."""

    __slots__ = ("_charged", "_limiter", "_open", "_state")

    def __init__(self, limiter: KeyLimiter, state: State) -> None:
        self._limiter = limiter
        self._state = state
        self._charged = 0
        self._open = True

    def charge(self, tokens: int) -> None:
        """Take the request's estimated tokens. Raises TokensLimited, QuotaSpent; then nothing was taken."""
        self._limiter.charge(self._state, tokens)
        self._charged += tokens

    def headers(self) -> Headers:
        """OpenAI's rate-limit headers, as of now."""
        return self._limiter.headers(self._state)

    def close(self, tokens: int | None) -> None:
        """End it: ``tokens`` are owed in truth; None: nothing was sent to the engine. A second call does nothing."""
        if self._open:
            self._open = False
            self._limiter.settle(self._state, self._charged, tokens or 0)


class FreeLease:
    """A request without limits: nothing is counted, and nothing is said of limits."""

    __slots__ = ()

    def charge(self, tokens: int) -> None:
        """Take nothing."""

    def headers(self) -> Headers:
        """None."""
        return []

    def close(self, tokens: int | None) -> None:
        """End it."""


_FREE: Final = FreeLease()


def _fitted(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if capacity is None or bucket is None:
        return None if capacity is None else Bucket(capacity, now)
    if bucket.capacity != capacity:
        bucket.fill(now)
        bucket.resize(capacity)
    return bucket


def _unlimited(limits: Limits) -> bool:
    return (
        limits.requests_per_minute is None
        and limits.tokens_per_minute is None
        and limits.concurrent is None
        and limits.tokens_per_day is None
    )


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _told(wait_s: int, headers: Headers) -> dict[str, str]:
    return {"retry-after": str(wait_s), **{name.decode(): value for name, value in headers}}
