"""Token buckets, and how OpenAI's headers tell of them."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

Headers: TypeAlias = list[tuple[bytes, str]]
Kind: TypeAlias = Literal["requests", "tokens"]
MINUTE_S: Final = 60.0
_ROUNDING: Final = 1e-6
"""Tokens that repeated additions of floats may lose: a bucket that is full but for this is full."""
_NAMES: Final[dict[Kind, tuple[bytes, bytes, bytes]]] = {
    "requests": (
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
    ),
    "tokens": (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}


class Bucket:
    """A token bucket: ``capacity`` tokens, full at first, filled at ``capacity`` a minute; may be in debt."""

    __slots__ = ("_at", "_rate", "capacity", "level")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self.level = float(capacity)
        self._rate = capacity / MINUTE_S
        self._at = now

    def fill(self, now: float) -> None:
        """Add the tokens that have accrued since the last call."""
        level = self.level + (now - self._at) * self._rate
        self.level = level if level < self.capacity else float(self.capacity)
        self._at = now

    def resize(self, capacity: int) -> None:
        """Change capacity and rate; tokens that were taken stay taken."""
        self.level += capacity - self.capacity
        self.capacity = capacity
        self._rate = capacity / MINUTE_S

    def holds(self, tokens: int) -> bool:
        """Whether so many can be taken: they are there, or more are asked for than fit and it is full."""
        return self.level + _ROUNDING >= (tokens if tokens < self.capacity else self.capacity)

    def wait_s(self, tokens: int) -> float:
        """Seconds until ``holds`` becomes true for this amount."""
        return max(0.0, (min(tokens, self.capacity) - self.level) / self._rate)

    @property
    def remaining(self) -> int:
        """Whole tokens available; negative in debt."""
        return math.floor(self.level + _ROUNDING)

    def headers(self, kind: Kind) -> Headers:
        """OpenAI's three rate-limit headers for this bucket."""
        return limit_headers(kind, self.capacity, self.remaining, (self.capacity - self.level) / self._rate)


def limit_headers(kind: Kind, limit: int, remaining: int, reset_s: float) -> Headers:
    """`x-ratelimit-{limit,remaining,reset}-<kind>`: how much, what is left, and how long until all of it is there."""
    names = _NAMES[kind]
    return [
        (names[0], str(limit)),
        (names[1], str(remaining if remaining > 0 else 0)),
        (names[2], format_duration(reset_s)),
    ]


def format_duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: `0s`, `17ms`, `1s`, `6m0s`, `1h0m0s`; rounded up."""
    if seconds < 1:
        whole_ms = math.ceil(seconds * 1000)
        return "0s" if whole_ms <= 0 else f"{whole_ms}ms" if whole_ms < 1000 else "1s"
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest}s"
    return f"{minutes // 60}h{minutes % 60}m{rest}s"
