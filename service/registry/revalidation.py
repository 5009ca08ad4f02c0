"""Whether what was once found of a version still holds: computed from its verdicts and the engine, never stored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from adapters.base import Fingerprint
from service.registry.verdict_records import Judged, Tally

DAY_S: Final = 86_400
AGE: Final = "age"
RULE: Final = "rule"
"""Its pass was of an older rule of verdicts, and could not be shown again by the newer one."""
SURROUNDINGS: Final = ("tokenizer", "template", "dtype", "quantization", "engine_version")
"""The parts of a fingerprint that may change under the same weights: a version serves on, and should be judged again.
Other weights, or another config, are another base, on which it does not serve at all."""


class RevalidationState(StrEnum):
    """What a judged version's verdict is worth now."""

    FRESH = "fresh"
    DUE = "due"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Revalidation:
    """A judged version's state.

    Attributes:
        state: Failed where its latest revalidation failed it; due where something has changed since its latest verdict.
        reasons: What has changed: parts of the fingerprint (see ``SURROUNDINGS``), ``age`` and ``rule``.
    """

    state: RevalidationState
    reasons: tuple[str, ...]

    @property
    def wanted(self) -> bool:
        """Whether judging it again could say something new: also of one that failed, once something has changed.

        Of one that is due by the rule alone, the latest verdict is of the new rule and this engine already.
        """
        return any(reason != RULE for reason in self.reasons)

    def shown(self) -> dict[str, Any]:
        """In the API's form."""
        return {"state": self.state.value, "reasons": list(self.reasons)}


class Freshness:
    """Tells what verdicts are worth on the engine that runs now.

    Args:
        engine: The fingerprint of the base as it is served.
        days: After so many days a version is due; may be a fraction.
    """

    def __init__(self, engine: Fingerprint, days: float) -> None:
        self.engine = engine
        self._age_s = days * DAY_S

    def old_before(self) -> int:
        """A verdict from before that is old; Unix seconds."""
        return int(time.time() - self._age_s)

    def state(self, judged: Judged | None) -> Revalidation | None:
        """What a version's verdicts are worth now; None where it was never judged."""
        if judged is None:
            return None
        latest = judged.latest
        return self.worth(latest.base, latest.created_at, failed=judged.failed, unconfirmed=judged.unconfirmed)

    def worth(self, base: dict[str, Any], created_at: int, *, failed: bool, unconfirmed: bool) -> Revalidation:
        """What a verdict is worth now.

        Args:
            base: The fingerprint of the base that it was found on.
            created_at: When; Unix seconds.
            failed: Whether the version's latest revalidation failed it.
            unconfirmed: Whether its pass is of an older rule and was not shown again.
        """
        return self._state(base, created_at < self.old_before(), failed=failed, unconfirmed=unconfirmed)

    def fits(self, base: dict[str, Any]) -> bool:
        """Whether what was judged on that base can serve on the one that runs now."""
        return Fingerprint.model_validate(base).servable_with(self.engine)

    def count(self, tallies: Iterable[Tally]) -> dict[RevalidationState, int]:
        """How many versions are in each state; those that were judged on another base serve not, and count not."""
        found: Counter[RevalidationState] = Counter(dict.fromkeys(RevalidationState, 0))
        for tally in tallies:
            if self.fits(tally.base):
                worth = self._state(tally.base, tally.old, failed=tally.failed, unconfirmed=tally.unconfirmed)
                found[worth.state] += tally.versions
        return dict(found)

    def _state(self, base: dict[str, Any], old: bool, *, failed: bool, unconfirmed: bool) -> Revalidation:
        changed = Fingerprint.model_validate(base).differences(self.engine)
        reasons = tuple(part for part in changed if part in SURROUNDINGS)
        reasons += ((AGE,) if old else ()) + ((RULE,) if unconfirmed and not failed else ())
        if failed:
            return Revalidation(RevalidationState.FAILED, reasons)
        return Revalidation(RevalidationState.DUE if reasons else RevalidationState.FRESH, reasons)
