"""What retrieval for one request came to, as the data path carries it along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from service.grounding.injectors import CitationRelay, PromptInjector
from service.http.stream import Relay

Outcome = Literal["ok", "empty", "no_room", "late", "broken"]
"""passages went in · none was found · the context has no room for one · the provider was late · it failed"""
OUTCOMES: Final[tuple[Outcome, ...]] = ("ok", "empty", "no_room", "late", "broken")


@dataclass(frozen=True, slots=True)
class GroundingResult:
    """What a request was given.

    Attributes:
        outcome: How it ended.
        place: Where the citations go in the answer.
        seconds: What retrieval took.
        citations: A JSON array.
        headers: For the answer.
        tokens: What the prompt has grown by, an upper guess.
        passages: How many went in.
    """

    outcome: Outcome
    injector: PromptInjector
    seconds: float
    citations: bytes = b"[]"
    headers: tuple[tuple[bytes, str], ...] = ()
    tokens: int = 0
    passages: int = 0

    def relay(self, inner: Relay) -> Relay:
        """A stream's relay that adds the citations."""
        return CitationRelay(inner, self.injector, self.citations)

    def cite(self, answer: bytes) -> bytes:
        """A whole answer with the citations."""
        return self.injector.cite(answer, self.citations)
