"""The parts of a specification that a trial also compiles on their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class GrammarPart:
    """A part that is decoded on its own, because a trial of the whole might not reach it.

    Attributes:
        kind: ``regex``; ``pattern``, a regular expression in a JSON string; ``ref``, a place in the schema; ``rule``, a
            rule of the grammar; ``tail``, a rule's body from some place on; ``json``, ``grammar`` and
            ``structural_tag``, a specification of its own.
        text: The expression, the JSON pointer, the rule's name or body, or the specification.
        within: Of a ``ref``, ``rule`` or ``tail`` in a structural tag: the schema or grammar that it belongs to; empty:
            the specification itself.
    """

    kind: Literal["regex", "pattern", "ref", "rule", "tail", "json", "grammar", "structural_tag"]
    text: str
    within: str = ""
