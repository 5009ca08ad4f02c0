"""Whether a version's verdict still holds: computed from its verdicts and the engine, never stored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from adapters.base import Fingerprint
from service.registry.verdict_records import VerdictCount, VerdictStatus

DAY_S: Final = 86_400
AGE: Final = "age"
RULE: Final = "rule"
"""Its pass was reached by an older rule and could not be confirmed by the newer one."""
SURROUNDINGS: Final = ("tokenizer", "template", "dtype", "quantization", "engine_version")
"""The parts of a fingerprint that may change while the weights stay the same: versions still serve but should be
revalidated. With other weights or another config they do not serve at all."""


class RevalidationState(StrEnum):
    """Whether a version's verdict still holds."""

    FRESH = "fresh"
    DUE = "due"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Revalidation:
    """The revalidation state of a version with a verdict.

    Attributes:
        state: ``failed`` if its latest revalidation failed; ``due`` if something has changed since its latest verdict.
        reasons: What has changed: parts of the fingerprint (see ``SURROUNDINGS``), ``age`` and ``rule``. A revalidation
            that shows nothing either way leaves the parts of the fingerprint among them.
        news: What has changed since the latest verdict of any kind, without ``rule``: that one is by the new rule.
    """

    state: RevalidationState
    reasons: tuple[str, ...]
    news: tuple[str, ...]

    @property
    def is_useful(self) -> bool:
        """Whether a revalidation could yield something new."""
        return bool(self.news)

    def shown(self) -> dict[str, Any]:
        """As the API's `revalidation` object."""
        return {"state": self.state.value, "reasons": list(self.reasons)}


class Freshness:
    """Tells whether verdicts still hold on the engine that runs now.

    Args:
        engines: The fingerprints of the bases as they are served, the default first.
        days: A version is due after this many days; may be a fraction.
    """

    def __init__(self, engines: Sequence[Fingerprint], days: float) -> None:
        self._engines = tuple(engines)
        self.age_s = days * DAY_S

    def old_before(self) -> int:
        """The time before which verdicts are old; Unix seconds."""
        return int(time.time() - self.age_s)

    def state(self, verdict_status: VerdictStatus | None) -> Revalidation | None:
        """The revalidation state of a version; None if it was never judged."""
        if verdict_status is None:
            return None
        latest = verdict_status.latest
        return self.revalidation_of(
            verdict_status.base,
            latest.base,
            latest.created_at,
            failed=verdict_status.failed,
            unconfirmed=verdict_status.unconfirmed,
        )

    def revalidation_of(
        self,
        base: dict[str, Any],
        latest_base: dict[str, Any],
        created_at: int,
        *,
        failed: bool,
        unconfirmed: bool,
    ) -> Revalidation:
        """The revalidation state that a version's verdicts imply.

        Args:
            base: The fingerprint of the base at the latest conclusive verdict.
            latest_base: The same at the latest verdict of any kind.
            created_at: When that one was reached; Unix seconds.
            failed: Whether the version's latest revalidation failed.
            unconfirmed: Whether its pass is by an older rule and was not confirmed.
        """
        old = created_at < self.old_before()
        state, reasons = self._state(base, old, failed=failed, unconfirmed=unconfirmed)
        return Revalidation(state, reasons, self._changed(latest_base) + ((AGE,) if old else ()))

    def is_same_base(self, base: dict[str, Any]) -> bool:
        """Whether a version judged on ``base`` can serve on one that is served now."""
        return self._engine_for(Fingerprint.model_validate(base)) is not None

    def _engine_for(self, judged: Fingerprint) -> Fingerprint | None:
        return next((engine for engine in self._engines if judged.servable_with(engine)), None)

    def count(self, tallies: Iterable[VerdictCount]) -> dict[RevalidationState, int]:
        """The number of versions in each state; those judged on another base cannot serve and are left out."""
        versions: Counter[RevalidationState] = Counter(dict.fromkeys(RevalidationState, 0))
        for tally in tallies:
            if self.is_same_base(tally.base):
                state, _ = self._state(tally.base, tally.old, failed=tally.failed, unconfirmed=tally.unconfirmed)
                versions[state] += tally.versions
        return dict(versions)

    def _state(
        self, base: dict[str, Any], old: bool, *, failed: bool, unconfirmed: bool
    ) -> tuple[RevalidationState, tuple[str, ...]]:
        """The state and its reasons."""
        reasons = self._changed(base) + ((AGE,) if old else ()) + ((RULE,) if unconfirmed and not failed else ())
        if failed:
            return RevalidationState.FAILED, reasons
        return RevalidationState.DUE if reasons else RevalidationState.FRESH, reasons

    def _changed(self, base: dict[str, Any]) -> tuple[str, ...]:
        """The parts of the fingerprint, among ``SURROUNDINGS``, that have changed since ``base``."""
        judged = Fingerprint.model_validate(base)
        changed = judged.differences(self._engine_for(judged) or self._engines[0])
        return tuple(part for part in changed if part in SURROUNDINGS)
