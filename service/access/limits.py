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
``tokens_per_day`` is refused: the budget is passed only by what estimates fall short. One above the whole of it is
refused for good.

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
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, Protocol

from service.access.buckets import Bucket, Headers, format_duration, limit_headers
from service.access.caller import NO_LIMITS, Caller, Limits
from service.errors import QuotaSpent, RateLimited, RequestOverQuota, RequestsLimited, TokensLimited

LimitName = Literal["requests_per_minute", "tokens_per_minute", "concurrent", "tokens_per_day"]
DAY_S: Final = 86_400
SOON_S: Final = 1
"""Retry-After if a request in progress has to end first, s."""
MIN_SWEEP_SIZE: Final = 1024


class Reservation(Protocol):
    """What one request takes of its key's limits, from its arrival to its end."""

    def charge(self, tokens: int) -> Awaitable[None] | None:
        """Charge the request's estimated tokens; if it returns something, that must be awaited, and raises the same.

        Raises:
            RateLimited: The key has too few tokens left.
        """

    def headers(self) -> list[tuple[bytes, str]]:
        """OpenAI's rate-limit headers, as of now; none where the key has no limits."""

    def close(self, tokens: int | None) -> None:
        """End the request with the ``tokens`` it used; None: nothing was sent to the engine, so nothing is charged."""


class KeyState:
    """A key's buckets, requests in progress and tokens of the day (settled, and reserved by requests in progress)."""

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
        """Apply the key's limits, which may have changed since its last request."""
        self.limits = limits
        self.requests = _fitted(self.requests, limits.requests_per_minute, now)
        self.tokens = _fitted(self.tokens, limits.tokens_per_minute, now)

    def start_day(self, day: int) -> None:
        """Begin a new day if ``day`` is later; a clock that is set back does not begin one."""
        if day > self.day:
            self.day = day
            self.settled = 0

    def idle(self, now: float, day: int) -> bool:
        """Whether a fresh state would be equal, so that this one can be dropped."""
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
        clock: Monotonic seconds.
        wall: Unix time, seconds.

    ``refused`` counts the refusals by the name of the limit.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._states: dict[str, KeyState] = {}
        self._sweep_at = MIN_SWEEP_SIZE
        self._restored: dict[str, int] = {}
        self._restored_day = 0
        self.refused: dict[LimitName, int] = dict.fromkeys(
            ("requests_per_minute", "tokens_per_minute", "concurrent", "tokens_per_day"), 0
        )

    def __len__(self) -> int:
        """The number of keys with a state."""
        return len(self._states)

    def restore(self, spent: Mapping[str, int]) -> None:
        """Set the tokens that keys (by id) have used today before this start."""
        self._restored = dict(spent)
        self._restored_day = self._day()

    def forget(self, key_id: str) -> None:
        """Drop a deleted key; its requests in progress are not affected."""
        self._states.pop(key_id, None)
        self._restored.pop(key_id, None)

    def enter(self, caller: Caller) -> Reservation:
        """Count a request on arrival.

        Raises:
            RequestsLimited: Too many requests per minute, or at once.
            QuotaSpent: The day's tokens are spent.
        """
        limits = caller.limits
        if is_unlimited(limits):
            return FREE
        now = self._clock()
        # a job's key uses its parent's limits: otherwise every job would multiply them
        key_id = caller.limited_as or caller.key_id
        state = self._states.get(key_id)
        if state is None:
            state = self._admit_key(key_id, limits, now)
        elif state.limits is not limits:
            state.adopt(limits, now)
        if limits.tokens_per_day is not None:
            state.start_day(self._day())
            if state.settled >= limits.tokens_per_day:
                raise self._budget_spent(state, limits.tokens_per_day, None)
        if limits.concurrent is not None and state.in_flight >= limits.concurrent:
            raise self._over_concurrent(state, limits.concurrent, now)
        bucket = state.requests
        if bucket is not None:
            bucket.fill(now)
            if not bucket.holds(1):
                raise self._over_requests_per_minute(bucket)
            bucket.level -= 1
        state.in_flight += 1
        return KeyReservation(self, state)

    def charge(self, state: KeyState, tokens: int, charged: int = 0) -> None:
        """Charge a request's estimated tokens, all or none, after ``charged`` of the same request.

        Raises:
            TokensLimited, QuotaSpent: There are too few left now.
            RequestOverQuota: There never are as many.
        """
        budget = state.limits.tokens_per_day
        if budget is not None:
            state.start_day(self._day())
            if charged + tokens > budget:
                raise self._over_budget(state, budget, charged + tokens)
            if state.settled + tokens > budget:
                raise self._budget_spent(state, budget, tokens)
            if state.settled + state.held + tokens > budget:
                raise self._budget_reserved(state, budget, tokens)
        bucket = state.tokens
        if bucket is not None:
            bucket.fill(self._clock())
            if not bucket.holds(tokens):
                raise self._over_tokens_per_minute(bucket, tokens)
            bucket.level -= tokens
        state.held += tokens

    def settle(self, state: KeyState, charged: int, used: int) -> None:
        """End a request that was charged ``charged`` tokens and used ``used``."""
        state.in_flight -= 1
        state.held -= charged
        if state.limits.tokens_per_day is not None:
            state.start_day(self._day())
            state.settled += used
        bucket = state.tokens
        if bucket is not None and used != charged:
            bucket.fill(self._clock())
            bucket.level = min(bucket.level + charged - used, float(bucket.capacity))

    def hold(self, caller: Caller, tokens: int) -> Reservation:
        """Count a request that goes on at a front and was taken in before this start; nothing is refused."""
        limits = caller.limits
        if is_unlimited(limits):
            return FREE
        now, key_id = self._clock(), caller.limited_as or caller.key_id
        state = self._states.get(key_id) or self._admit_key(key_id, limits, now)
        state.adopt(limits, now)
        if state.tokens is not None:
            state.tokens.fill(now)
            state.tokens.level -= tokens
        state.in_flight += 1
        state.held += tokens
        return KeyReservation(self, state, tokens)

    def note_spent(self, caller: Caller, tokens: int) -> None:
        """Count a request that a front admitted by itself, and its tokens; the key may come into debt by it."""
        limits = caller.limits
        if is_unlimited(limits):
            return
        now, key_id = self._clock(), caller.limited_as or caller.key_id
        state = self._states.get(key_id) or self._admit_key(key_id, limits, now)
        state.adopt(limits, now)
        if state.requests is not None:
            state.requests.fill(now)
            state.requests.level -= 1
        state.in_flight += 1
        self.settle(state, 0, tokens)

    def headers(self, state: KeyState) -> Headers:
        """OpenAI's current rate-limit headers. Those for tokens show the day's limit if there is none per minute."""
        headers: Headers = []
        now = self._clock()
        if state.requests is not None:
            state.requests.fill(now)
            headers += state.requests.headers("requests")
        if state.tokens is not None:
            state.tokens.fill(now)
            headers += state.tokens.headers("tokens")
        elif state.limits.tokens_per_day is not None:
            headers += self._day_headers(state, state.limits.tokens_per_day)
        return headers

    def _day(self) -> int:
        return int(self._wall() // DAY_S)

    def _to_midnight_s(self) -> float:
        return DAY_S - self._wall() % DAY_S

    def _admit_key(self, key_id: str, limits: Limits, now: float) -> KeyState:
        day = self._day()
        if len(self._states) >= self._sweep_at:
            self._states = {key: state for key, state in self._states.items() if not state.idle(now, day)}
            # doubling keeps the amortised cost of sweeping constant per new key
            self._sweep_at = max(MIN_SWEEP_SIZE, 2 * len(self._states))
        if day > self._restored_day:
            self._restored = {}
        state = self._states[key_id] = KeyState(limits, now, day, self._restored.pop(key_id, 0))
        return state

    # refusals

    def _over_requests_per_minute(self, bucket: Bucket) -> RateLimited:
        self.refused["requests_per_minute"] += 1
        wait_s = _whole_seconds(bucket.wait_s(1))
        return RequestsLimited(
            f"Rate limit reached on `requests_per_minute`: limit {bucket.capacity}, used {bucket.capacity}, "
            f"requested 1. Please try again in {format_duration(wait_s)}.",
            headers=_refusal_headers(wait_s, bucket.headers("requests")),
        )

    def _over_concurrent(self, state: KeyState, limit: int, now: float) -> RateLimited:
        self.refused["concurrent"] += 1
        if state.requests is not None:
            state.requests.fill(now)
        return RequestsLimited(
            f"Rate limit reached on `concurrent` requests: limit {limit}, in progress {state.in_flight}, requested 1. "
            f"Please try again when one of them has finished.",
            headers=_refusal_headers(SOON_S, [] if state.requests is None else state.requests.headers("requests")),
        )

    def _over_tokens_per_minute(self, bucket: Bucket, tokens: int) -> RateLimited:
        self.refused["tokens_per_minute"] += 1
        wait_s = _whole_seconds(bucket.wait_s(tokens))
        used = bucket.capacity - bucket.remaining
        return TokensLimited(
            f"Rate limit reached on `tokens_per_minute`: limit {bucket.capacity}, used {used}, requested {tokens} "
            f"(prompt and answer, estimated). Please try again in {format_duration(wait_s)}.",
            headers=_refusal_headers(wait_s, bucket.headers("tokens")),
        )

    def _budget_reserved(self, state: KeyState, budget: int, tokens: int) -> RateLimited:
        self.refused["tokens_per_day"] += 1
        return TokensLimited(
            f"Rate limit reached on `tokens_per_day`: limit {budget}, used {state.settled}, "
            f"reserved by requests in progress {state.held}, requested {tokens} (prompt and answer, estimated). "
            "Please try again when they have finished.",
            headers=_refusal_headers(SOON_S, self._day_headers(state, budget)),
        )

    def _budget_spent(self, state: KeyState, budget: int, tokens: int | None) -> RateLimited:
        self.refused["tokens_per_day"] += 1
        wait_s = _whole_seconds(self._to_midnight_s())
        requested = "" if tokens is None else f", requested {tokens} (prompt and answer, estimated)"
        return QuotaSpent(
            f"You exceeded your current quota, `tokens_per_day`: limit {budget}, used {state.settled}{requested}. "
            f"A new day begins at midnight UTC, in {format_duration(wait_s)}.",
            headers=_refusal_headers(wait_s, self._day_headers(state, budget)),
        )

    def _over_budget(self, state: KeyState, budget: int, tokens: int) -> RateLimited:
        self.refused["tokens_per_day"] += 1
        return RequestOverQuota(
            f"The request is larger than a whole day's quota, `tokens_per_day`: limit {budget}, requested {tokens} "
            "(prompt and answer, estimated). Send less, lower the answer's maximum tokens, or have the limit raised.",
            headers={name.decode(): value for name, value in self._day_headers(state, budget)},
        )

    def _day_headers(self, state: KeyState, budget: int) -> Headers:
        return limit_headers("tokens", budget, budget - state.settled - state.held, self._to_midnight_s())


class KeyReservation:
    """A request of a key with limits."""

    __slots__ = ("_charged", "_limiter", "_open", "_state")

    def __init__(self, limiter: KeyLimiter, state: KeyState, charged: int = 0) -> None:
        self._limiter = limiter
        self._state = state
        self._charged = charged
        self._open = True

    def charge(self, tokens: int) -> None:
        """Charge the request's estimated tokens. Raises as ``KeyLimiter.charge``; then nothing was charged."""
        self._limiter.charge(self._state, tokens, self._charged)
        self._charged += tokens

    def headers(self) -> Headers:
        """OpenAI's rate-limit headers, as of now."""
        return self._limiter.headers(self._state)

    def close(self, tokens: int | None) -> None:
        """End the request with the ``tokens`` it used; None: nothing reached the engine. A second call does nothing."""
        if self._open:
            self._open = False
            self._limiter.settle(self._state, self._charged, tokens or 0)


class UnlimitedReservation:
    """A request of a key without limits: nothing is counted, and there are no rate-limit headers."""

    __slots__ = ()

    def charge(self, tokens: int) -> None:
        """Take nothing."""

    def headers(self) -> Headers:
        """None."""
        return []

    def close(self, tokens: int | None) -> None:
        """End it."""


FREE: Final = UnlimitedReservation()


def _fitted(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if capacity is None or bucket is None:
        return None if capacity is None else Bucket(capacity, now)
    if bucket.capacity != capacity:
        bucket.fill(now)
        bucket.resize(capacity)
    return bucket


def is_unlimited(limits: Limits) -> bool:
    """Whether nothing is limited."""
    return limits is NO_LIMITS or (
        limits.requests_per_minute is None
        and limits.tokens_per_minute is None
        and limits.concurrent is None
        and limits.tokens_per_day is None
    )


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _refusal_headers(wait_s: int, headers: Headers) -> dict[str, str]:
    return {"retry-after": str(wait_s), **{name.decode(): value for name, value in headers}}
