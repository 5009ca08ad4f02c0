"""What is counted of retrieval; read by `/metrics`."""

from __future__ import annotations

from service.grounding.outcome import Outcome
from service.telemetry.metrics import RETRIEVAL_S, Histogram


class GroundingCounts:
    """Retrievals by provider and outcome, what they took, and the passages that they brought, or that were of no use.

    Providers are the operator's, so there are few of them; runs on the event loop alone and takes no lock.
    """

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, Outcome], int] = {}
        self.seconds: dict[str, Histogram] = {}
        self.passages: dict[str, int] = {}
        self.unusable: dict[str, int] = {}

    def note(self, provider: str, outcome: Outcome, seconds: float, passages: int) -> None:
        """Count one retrieval that took ``seconds``."""
        self.outcomes[provider, outcome] = self.outcomes.get((provider, outcome), 0) + 1
        if provider not in self.seconds:
            self.seconds[provider] = Histogram(RETRIEVAL_S)
        self.seconds[provider].observe(seconds)
        self.passages[provider] = self.passages.get(provider, 0) + passages

    def drop(self, provider: str, passages: int) -> None:
        """Count passages that a provider gave and nobody can use."""
        self.unusable[provider] = self.unusable.get(provider, 0) + passages
