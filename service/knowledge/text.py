"""A passage to be read, as the embedder cuts it and the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.grounding.provider import Attribute, Turns


@dataclass(frozen=True, slots=True)
class PassageText:
    """A passage without its vectors.

    Attributes:
        number: Its place in the document, from 0.
        heading: The headings above it, outermost first, joined by `` › ``; empty where there are none.
        text: Without the heading.
        repeats: Characters at its beginning that end the passage before.
        attributes: Its own, which go before the file's.
        turns: Of an example, whose ``text`` is the same as one text; None: it is none.
    """

    number: int
    heading: str
    text: str
    repeats: int = 0
    attributes: Mapping[str, Attribute] | None = None
    turns: Turns | None = None

    @property
    def whole(self) -> str:
        """Heading and text together: what is put into prompts."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    @property
    def searched(self) -> str:
        """What is embedded, and whose words count: of an example its last question alone, as a search has the last
        question of its conversation alone; otherwise the text."""
        return self.text if self.turns is None else self.turns[-2]["content"]
