"""Limits: what is admitted, what is refused and with which words, and what is settled afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.buckets import format_duration
from service.access.caller import NO_LIMITS, Caller, Limits, Scope
from service.access.limits import MIN_SWEEP_SIZE, KeyLimiter, Reservation
from service.errors import QuotaSpent, RateLimited, RequestOverQuota, RequestsLimited, TokensLimited
from tests.unit.service.access.clock import Clock, caller


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> KeyLimiter:
    return limiter_of(clock)


def limiter_of(clock: Clock) -> KeyLimiter:
    return KeyLimiter(clock=clock.monotonic, wall=clock.wall)


def told(lease: Reservation) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value for name, value in lease.headers()}


def use(limiter: KeyLimiter, who: Caller, estimate: int, used: int | None = None) -> None:
    """One whole request."""
    lease = limiter.enter(who)
    try:
        lease.charge(estimate)
    except RateLimited:
        lease.close(None)
        raise
    lease.close(estimate if used is None else used)


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits()])
def test_a_key_without_limits_is_neither_counted_nor_told(limiter: KeyLimiter, limits: Limits) -> None:
    for _ in range(5):
        lease = limiter.enter(Caller("key_a", "default", frozenset({Scope.INFER}), limits=limits))
        lease.charge(10**12)
        assert lease.headers() == []
        lease.close(10**12)
    assert len(limiter) == 0


def test_requests_a_minute(limiter: KeyLimiter, clock: Clock) -> None:
    who = caller(requests_per_minute=2)
    first = limiter.enter(who)
    assert told(first) == {"limit-requests": "2", "remaining-requests": "1", "reset-requests": "30s"}
    limiter.enter(who)
    clock.pass_s(6.5)
    for _ in range(3):  # refused ones do not put it off
        with pytest.raises(RequestsLimited) as refused:
            limiter.enter(who)
    assert refused.value.payload()["error"] == {
        "message": "Rate limit reached on `requests_per_minute`: limit 2, used 2, requested 1. "
        "Please try again in 24s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert refused.value.headers == {
        "retry-after": "24",
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "54s",
    }
    assert limiter.refused["requests_per_minute"] == 3
    limiter.enter(caller("key_b", requests_per_minute=2))
    clock.pass_s(24)
    limiter.enter(who)
    with pytest.raises(RequestsLimited):
        limiter.enter(who)


def test_tokens_a_minute_are_settled_by_what_was_used(limiter: KeyLimiter) -> None:
    who = caller(tokens_per_minute=600)
    lease = limiter.enter(who)
    lease.charge(400)
    assert told(lease) == {"limit-tokens": "600", "remaining-tokens": "200", "reset-tokens": "40s"}
    lease.close(100)
    assert told(lease)["remaining-tokens"] == "500"
    use(limiter, who, 400, used=900)  # the engine counted more: the bucket owes 400
    with pytest.raises(TokensLimited) as refused:
        use(limiter, who, 100)
    assert refused.value.message == (
        "Rate limit reached on `tokens_per_minute`: limit 600, used 1000, requested 100 (prompt and answer, "
        "estimated). Please try again in 50s."
    )
    assert (refused.value.type, refused.value.code) == ("tokens", "rate_limit_exceeded")
    assert refused.value.headers["retry-after"] == "50"
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "0"
    assert limiter.refused["tokens_per_minute"] == 1


def test_what_never_reached_the_engine_is_given_back_but_counts_as_a_request(limiter: KeyLimiter) -> None:
    who = caller(tokens_per_minute=600, requests_per_minute=2)
    lease = limiter.enter(who)
    lease.charge(600)
    lease.close(None)
    lease.close(None)
    lease.close(50)  # only the first close counts
    use(limiter, who, 600)
    with pytest.raises(RequestsLimited):
        limiter.enter(who)


def test_a_request_above_the_limit_waits_for_a_full_bucket_and_leaves_a_debt(limiter: KeyLimiter, clock: Clock) -> None:
    who = caller(tokens_per_minute=60)
    use(limiter, who, 1)
    with pytest.raises(TokensLimited) as refused:
        use(limiter, who, 180)
    assert refused.value.headers["retry-after"] == "1"
    clock.pass_s(1)
    use(limiter, who, 180)
    with pytest.raises(TokensLimited) as refused:
        use(limiter, who, 1)
    assert refused.value.headers["retry-after"] == "121"
    clock.pass_s(121)
    use(limiter, who, 1)


def test_requests_at_once(limiter: KeyLimiter) -> None:
    who = caller(concurrent=2, requests_per_minute=3)
    first = limiter.enter(who)
    limiter.enter(who)
    with pytest.raises(RequestsLimited, match="`concurrent` requests: limit 2, in progress 2") as refused:
        limiter.enter(who)
    assert refused.value.headers["retry-after"] == "1"
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "1"
    assert limiter.refused["concurrent"] == 1
    first.close(None)
    limiter.enter(who)


def test_a_spent_day_refuses_until_midnight_utc(limiter: KeyLimiter, clock: Clock) -> None:
    who = caller(tokens_per_day=100)
    use(limiter, who, 80, used=70)
    with pytest.raises(QuotaSpent) as refused:
        use(limiter, who, 31)
    assert "limit 100, used 70, requested 31" in refused.value.message
    use(limiter, who, 30, used=35)
    clock.pass_s(0.5)
    with pytest.raises(QuotaSpent) as refused:
        limiter.enter(who)
    assert refused.value.payload()["error"] == {
        "message": "You exceeded your current quota, `tokens_per_day`: limit 100, used 105. "
        "A new day begins at midnight UTC, in 14h0m0s.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
    assert refused.value.headers == {
        "retry-after": str(14 * 3600),
        "x-should-retry": "false",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "14h0m0s",
    }
    use(limiter, caller("key_b", tokens_per_day=100), 100)
    clock.pass_s(14 * 3600)
    use(limiter, who, 100)


def test_a_request_above_the_whole_day_is_refused_for_good(limiter: KeyLimiter) -> None:
    who = caller(tokens_per_day=100)
    with pytest.raises(RequestOverQuota, match="limit 100, requested 101") as refused:
        use(limiter, who, 101)
    assert (refused.value.status, refused.value.code) == (429, "request_over_quota")
    assert refused.value.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.value.headers
    lease = limiter.enter(who)
    lease.charge(90)
    with pytest.raises(RequestOverQuota, match="requested 110"):  # with the passages of the same request
        lease.charge(20)
    lease.close(None)
    assert limiter.refused["tokens_per_day"] == 2
    use(limiter, who, 100)


def test_a_budget_held_by_requests_in_work_is_not_spent(limiter: KeyLimiter) -> None:
    who = caller(tokens_per_day=100)
    lease = limiter.enter(who)
    lease.charge(80)
    assert told(lease) == {"limit-tokens": "100", "remaining-tokens": "20", "reset-tokens": "14h0m0s"}
    with pytest.raises(TokensLimited, match="used 0, reserved by requests in progress 80, requested 30") as refused:
        use(limiter, who, 30)
    assert "x-should-retry" not in refused.value.headers
    assert refused.value.headers["retry-after"] == "1"
    lease.close(10)
    use(limiter, who, 30)


def test_a_request_over_midnight_belongs_to_the_day_in_which_it_ends(limiter: KeyLimiter, clock: Clock) -> None:
    who = caller(tokens_per_day=100)
    use(limiter, who, 60)
    lease = limiter.enter(who)
    lease.charge(40)
    clock.pass_s(14 * 3600)
    lease.close(40)
    use(limiter, who, 60)
    with pytest.raises(QuotaSpent, match="used 100"):
        limiter.enter(who)
    clock.unix -= 3600  # a clock set back does not give yesterday's budget again
    with pytest.raises(QuotaSpent):
        limiter.enter(who)


def test_the_days_count_goes_on_after_a_restart_and_ends_with_the_day(clock: Clock) -> None:
    who = caller(tokens_per_day=100)
    started = limiter_of(clock)
    started.restore({"key_a": 90, "key_b": 100})
    with pytest.raises(QuotaSpent, match="used 90, requested 11"):
        use(started, who, 11)
    use(started, who, 10)
    with pytest.raises(QuotaSpent):
        started.enter(who)
    clock.pass_s(86_400)
    use(started, who, 100)
    use(started, caller("key_b", tokens_per_day=100), 100)


def test_a_forgotten_key_is_gone_and_its_requests_end_in_peace(limiter: KeyLimiter) -> None:
    limiter.restore({"key_a": 100})
    limiter.forget("key_a")
    lease = limiter.enter(caller(tokens_per_day=100))
    lease.charge(100)
    limiter.forget("key_a")
    limiter.forget("never_seen")
    assert len(limiter) == 0
    lease.close(100)
    assert len(limiter) == 0


def test_idle_keys_are_dropped_and_busy_owing_or_spending_ones_are_kept(limiter: KeyLimiter, clock: Clock) -> None:
    busy = limiter.enter(caller("busy", concurrent=1))
    use(limiter, caller("spending", tokens_per_day=100), 100)
    for number in range(20 * MIN_SWEEP_SIZE):
        limiter.enter(caller(f"key_{number}", requests_per_minute=60)).close(None)
        clock.pass_s(0.001)
    # a request is made up for within a second, in which 1000 keys came: at most those and what has come since are kept
    assert len(limiter) <= 2 * MIN_SWEEP_SIZE + 2
    with pytest.raises(RequestsLimited):
        limiter.enter(caller("busy", concurrent=1))
    with pytest.raises(QuotaSpent):
        limiter.enter(caller("spending", tokens_per_day=100))
    busy.close(None)


def test_changed_limits_count_at_once_and_keep_what_is_owed(limiter: KeyLimiter) -> None:
    use(limiter, caller(tokens_per_minute=100, requests_per_minute=5), 90)
    lease = limiter.enter(caller(tokens_per_minute=200))
    assert told(lease) == {"limit-tokens": "200", "remaining-tokens": "110", "reset-tokens": "27s"}
    lease = limiter.enter(caller(tokens_per_minute=50, concurrent=3))
    assert told(lease)["remaining-tokens"] == "0"
    with pytest.raises(TokensLimited):
        lease.charge(1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.0161, "17ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (59.01, "1m0s"),
        (360, "6m0s"),
        (3661, "1h1m1s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# whatever happens


@dataclass
class Sent:
    estimate: int
    used: int
    lease: Reservation


@dataclass
class Ledger:
    """What was admitted, when, in tokens; and by how much engines' counts went beyond estimates."""

    moves: list[tuple[float, int, int]] = field(default_factory=list)

    def note(self, at: float, tokens: int, missed: int = 0) -> None:
        self.moves.append((at, tokens, missed))

    def windows(self) -> list[tuple[float, int, int]]:
        """Every window between two moves: its length in seconds, its tokens, its missed tokens."""
        found = []
        for first in range(len(self.moves)):
            tokens = missed = 0
            for at, more, also in self.moves[first:]:
                tokens, missed = tokens + more, missed + also
                found.append((at - self.moves[first][0], tokens, missed))
        return found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 45), st.just(0)),
        st.tuples(st.just("ask"), st.integers(1, 300), st.integers(0, 400)),
        st.tuples(st.just("end"), st.integers(0, 9), st.just(0)),
    ),
    max_size=60,
)


@given(steps=STEPS, tpm=st.integers(1, 200), rpm=st.integers(1, 12), most=st.integers(1, 4), day=st.integers(1, 2000))
def test_no_window_admits_more_than_the_documented_bound(
    steps: list[tuple[str, float, int]], tpm: int, rpm: int, most: int, day: int
) -> None:
    clock = Clock()
    limiter = limiter_of(clock)
    who = caller(tokens_per_minute=tpm, requests_per_minute=rpm, concurrent=most, tokens_per_day=day)
    tokens, requests, largest, spent, missed = Ledger(), Ledger(), 0, 0, 0
    open_now: list[Sent] = []
    for kind, number, used in steps:
        if kind == "wait":
            clock.pass_s(number)
        elif kind == "end" and open_now:
            sent = open_now.pop(int(number) % len(open_now))
            sent.lease.close(sent.used)
            tokens.note(clock.mono, sent.used - sent.estimate, max(0, sent.used - sent.estimate))
            spent, missed = spent + sent.used, missed + max(0, sent.used - sent.estimate)
        elif kind == "ask":
            estimate = int(number)
            try:
                lease = limiter.enter(who)
            except RateLimited:
                continue
            requests.note(clock.mono, 1)
            try:
                lease.charge(estimate)
            except RateLimited:
                lease.close(None)
                continue
            tokens.note(clock.mono, estimate)
            largest = max(largest, estimate)
            open_now.append(Sent(estimate, used, lease))
        assert len(open_now) <= most
        assert spent + sum(sent.estimate for sent in open_now) <= day + missed
    for length, count, beyond in tokens.windows():
        assert count <= tpm * (1 + length / 60) + max(0, largest - tpm) + beyond + 1e-3
    for length, count, _ in requests.windows():
        assert count <= rpm * (1 + length / 60) + 1e-3


@given(
    before=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500), st.integers(0, 900)), max_size=20),
    then=st.integers(1, 900),
    tpm=st.integers(1, 400),
    rpm=st.integers(1, 5),
)
def test_who_waits_as_long_as_it_was_told_is_admitted(
    before: list[tuple[float, int, int]], then: int, tpm: int, rpm: int
) -> None:
    clock = Clock()
    limiter = limiter_of(clock)
    who = caller(tokens_per_minute=tpm, requests_per_minute=rpm)
    for pause, estimate, used in before:
        clock.pass_s(pause)
        try:
            use(limiter, who, estimate, used)
        except RateLimited:
            continue
    for _ in range(4):  # waits for a request, for the tokens, and for the request that the second try has cost
        try:
            use(limiter, who, then)
            return
        except RateLimited as refused:
            clock.pass_s(int(refused.headers["retry-after"]))
    raise AssertionError("still refused")
