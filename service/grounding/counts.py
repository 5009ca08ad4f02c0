"""Counters of retrieval for `/metrics`."""

from __future__ import annotations

from typing import Final

from service.grounding.outcome import Outcome
from service.histogram import Histogram

RETRIEVAL_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Bucket bounds of the histogram of retrieval durations, s."""


class GroundingCounts:
    """Retrievals by provider and outcome, their durations, and the numbers of used and unusable passages.

    Not thread-safe: used on the event loop only.
    """

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, Outcome], int] = {}
        self.seconds: dict[str, Histogram] = {}
        self.passages: dict[str, int] = {}
        self.unusable: dict[str, int] = {}

    def record(self, provider: str, outcome: Outcome, seconds: float, passages: int) -> None:
        """Count one retrieval that took ``seconds``."""
        self.outcomes[provider, outcome] = self.outcomes.get((provider, outcome), 0) + 1
        if provider not in self.seconds:
            self.seconds[provider] = Histogram(RETRIEVAL_S)
        self.seconds[provider].observe(seconds)
        self.passages[provider] = self.passages.get(provider, 0) + passages

    def record_unusable(self, provider: str, passages: int) -> None:
        """Count malformed passages of a provider."""
        self.unusable[provider] = self.unusable.get(provider, 0) + passages
