"""The result of retrieval for one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from service.grounding.injectors import CitationRelay, PromptInjector
from service.http.stream import Relay

Outcome = Literal["ok", "empty", "no_room", "late", "broken"]
"""passages were added · none was found · none fits into the context · the provider timed out · it failed"""
OUTCOMES: Final[tuple[Outcome, ...]] = ("ok", "empty", "no_room", "late", "broken")


@dataclass(frozen=True, slots=True)
class GroundingResult:
    """The result of grounding one request.

    Attributes:
        outcome: How retrieval ended.
        injector: Adds the citations to the answer.
        seconds: Duration of retrieval.
        citations: A JSON array.
        headers: Response headers.
        tokens: Upper bound on the tokens added to the prompt.
        passages: Number of passages added to the prompt.
    """

    outcome: Outcome
    injector: PromptInjector
    seconds: float
    citations: bytes = b"[]"
    headers: tuple[tuple[bytes, str], ...] = ()
    tokens: int = 0
    passages: int = 0

    def relay(self, inner: Relay) -> Relay:
        """Wrap a stream's relay to add the citations."""
        return CitationRelay(inner, self.injector, self.citations)

    def cite(self, answer: bytes) -> bytes:
        """Add the citations to a whole answer."""
        return self.injector.cite(answer, self.citations)
