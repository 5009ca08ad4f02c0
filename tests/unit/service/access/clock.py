"""A clock that goes when it is told to, and callers with limits."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.caller import Caller, Limits, Scope

MIDNIGHT = 20_000 * 86_400


@dataclass
class Clock:
    """Both of a gateway's clocks: the one that only grows, and Unix time, which begins ten hours into a UTC day."""

    mono: float = 5.0
    unix: float = MIDNIGHT + 10 * 3600

    def pass_s(self, seconds: float) -> None:
        self.mono += seconds
        self.unix += seconds

    def monotonic(self) -> float:
        return self.mono

    def wall(self) -> float:
        return self.unix


def caller(key_id: str = "key_a", project: str = "default", /, **limits: int) -> Caller:
    return Caller(key_id, project, frozenset({Scope.INFER}), limits=Limits(**limits))
