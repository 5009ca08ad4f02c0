"""Whether an example was taught: what was learnt by heart would count as understood.

Two examples are the same where question and answer are, whatever their case, width and white space; the system message
is a part of what is asked where both have one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from trainer.data.format import Example
from trainer.data.similar import normalise


class Said(NamedTuple):
    """An example as it is compared: all normalised; ``system`` is None where it has no system message."""

    system: str | None
    question: str
    answer: str

    @classmethod
    def of(cls, turns: Iterable[tuple[str, str]], answer: str) -> Self:
        """From roles and contents of all that stands before the last answer."""
        asked = list(turns)
        systems = [content for role, content in asked if role == "system"]
        question = "\n".join(content for role, content in asked if role != "system")
        return cls(normalise("\n".join(systems)) if systems else None, normalise(question), normalise(answer))

    @classmethod
    def example(cls, example: Example) -> Self:
        """From an example."""
        turns = [(message.role, message.content) for message in example.messages[:-1]]
        return cls.of(turns, example.messages[-1].content)


class Taught:
    """A training's examples.

    Args:
        common: Where all of them have one system message it is the version's setting: it tells nothing apart.
    """

    def __init__(self, examples: Iterable[Said], *, common: bool = False) -> None:
        self._systems: dict[tuple[str, str], set[str | None]] = {}
        found = list(examples)
        ignored = common and len({said.system for said in found}) == 1
        for said in found:
            systems = self._systems.setdefault((said.question, said.answer), set())
            systems.add(None if ignored else said.system)

    def without(self, held_out: Iterable[Said]) -> Self:
        """The same without what was held out of it; changes it."""
        for said in held_out:
            self._systems.pop((said.question, said.answer), None)
        return self

    def holds(self, said: Said) -> bool:
        """Whether it stands among them."""
        systems = self._systems.get((said.question, said.answer))
        return systems is not None and (said.system is None or None in systems or said.system in systems)
