"""The result of retrieval for one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from service.grounding.citations import NO_CITATIONS, Citations
from service.grounding.citing import CitationRelay
from service.grounding.file_search import FileSearchCall
from service.grounding.injectors import PromptInjector
from service.http.stream import Relay

Outcome = Literal["ok", "empty", "no_room", "late", "broken"]
"""passages were added · none was found · none fits into the context · the provider timed out · it failed"""
OUTCOMES: Final[tuple[Outcome, ...]] = ("ok", "empty", "no_room", "late", "broken")


@dataclass(frozen=True, slots=True)
class GroundingResult:
    """The result of grounding one request.

    Attributes:
        outcome: How retrieval ended.
        injector: The dialect's; its citer adds the citations to the answer.
        seconds: Duration of retrieval.
        citations: The passages in the prompt.
        headers: Response headers.
        tokens: Upper bound on the tokens added to the prompt.
        search: The call of the tool `file_search` that asked for them; None: the request has no such tool.
    """

    outcome: Outcome
    injector: PromptInjector
    seconds: float
    citations: Citations = NO_CITATIONS
    headers: tuple[tuple[bytes, str], ...] = ()
    tokens: int = 0
    search: FileSearchCall | None = None

    @property
    def passages(self) -> int:
        """Number of passages added to the prompt."""
        return len(self.citations.passages)

    def relay(self, inner: Relay) -> Relay:
        """Wrap a stream's relay to add the citations."""
        return CitationRelay(inner, self.injector.citer(self.citations, self.search))

    def cite(self, answer: bytes) -> bytes:
        """Add the citations to a whole answer."""
        return self.injector.citer(self.citations, self.search).whole(answer)
