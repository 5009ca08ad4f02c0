"""What is counted of retrieval; read by `/metrics`."""

from __future__ import annotations

from typing import Final

from service.grounding.outcome import Outcome
from service.histogram import Histogram

RETRIEVAL_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Bounds of the histogram of what a retrieval took, s."""


class GroundingCounts:
    """Retrievals by provider and outcome, what they took, and the passages that they brought, or that were of no use.

    Providers are the operator's, so there are few of them; runs on the event loop alone and takes no lock.
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
        """Count passages that a provider gave and nobody can use."""
        self.unusable[provider] = self.unusable.get(provider, 0) + passages
