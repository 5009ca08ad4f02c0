"""Tells whether an example was trained on: a memorised answer must not count in an evaluation.

Two examples are the same if question and answer are, ignoring case, width and white space. If both have a system
message, these must be equal, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from trainer.data.format import Example
from trainer.data.similar import normalise


class NormalizedExample(NamedTuple):
    """The normalised texts of an example for comparison; ``system`` is None without a system message."""

    system: str | None
    question: str
    answer: str

    @classmethod
    def of(cls, turns: Iterable[tuple[str, str]], answer: str) -> Self:
        """From the roles and contents of the messages before the last answer."""
        prompt = list(turns)
        systems = [content for role, content in prompt if role == "system"]
        question = "\n".join(content for role, content in prompt if role != "system")
        return cls(normalise("\n".join(systems)) if systems else None, normalise(question), normalise(answer))

    @classmethod
    def example(cls, example: Example) -> Self:
        """From an example of a data file."""
        turns = [(message.role, message.content) for message in example.messages[:-1]]
        return cls.of(turns, example.messages[-1].content)


class TrainedExamples:
    """The examples of a training.

    Args:
        common: Ignore the system message if all examples share it: then it is the version's setting.
    """

    def __init__(self, examples: Iterable[NormalizedExample], *, common: bool = False) -> None:
        self._systems: dict[tuple[str, str], set[str | None]] = {}
        listed = list(examples)
        ignored = common and len({example.system for example in listed}) == 1
        for example in listed:
            systems = self._systems.setdefault((example.question, example.answer), set())
            systems.add(None if ignored else example.system)

    def without(self, held_out: Iterable[NormalizedExample]) -> Self:
        """Remove the examples that were held out of the file, in place; returns itself."""
        for example in held_out:
            self._systems.pop((example.question, example.answer), None)
        return self

    def contains(self, example: NormalizedExample) -> bool:
        """Whether the example was trained on."""
        systems = self._systems.get((example.question, example.answer))
        return systems is not None and (example.system is None or None in systems or example.system in systems)
