"""How large a specification of structured output may be, and the error for one that is larger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.errors import BadRequest

CODE: Final = "grammar_too_complex"


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """The static bound.

    Attributes:
        regex_chars: Characters of the regular expressions together.
        regex_states: States of its automaton with every bounded repeat written out.
        regex_depth: Groups within groups.
        repeat: The bound of one repeat.
        alternatives: Alternatives in an expression or grammar, branches of `anyOf` and its kin in a schema.
        parts: Nested or ambiguous repeats in an expression.
        depth: Arrays and objects within each other in a schema.
        nodes: Values in a schema, of whatever kind; symbols in the rules of a grammar.
        values: Entries of `enum`s, or of `choice`.
        patterns: Regular expressions in a schema.
        refs: `$ref`s in a schema.
        length: The bound of `maxLength`, `maxItems` and their kin.
        expanded: States that lengths and item counts of a schema add, as far as xgrammar writes them out.
        rules: Rules of a grammar.
        tags: Tags and other formats of a structural tag.
        wide_repeat: The bound of one repeat of what can begin with many characters.
        ambiguous: Repeats may be followed by what they can be confused with.
    """

    regex_chars: int = 4096
    regex_states: int = 10_000
    regex_depth: int = 32
    repeat: int = 10_000
    alternatives: int = 1000
    parts: int = 24
    depth: int = 64
    nodes: int = 20_000
    values: int = 10_000
    patterns: int = 64
    refs: int = 1000
    length: int = 1_000_000
    expanded: int = 20_000
    rules: int = 500
    tags: int = 256
    wide_repeat: int = 10_000
    ambiguous: bool = True


TRIED: Final = GrammarLimits()
"""For specifications that are also tried."""

UNTRIED: Final = GrammarLimits(
    regex_chars=2048,
    regex_states=400,
    regex_depth=8,
    repeat=200,
    alternatives=200,
    parts=4,
    depth=32,
    nodes=5000,
    values=2000,
    patterns=16,
    refs=200,
    expanded=800,
    rules=100,
    tags=64,
    wide_repeat=20,
    ambiguous=False,
)
"""Without a trial process: small enough that no specification within these limits is known to stall an engine."""


class TooComplex(BadRequest):
    """The specification would cost the engine too much."""

    default_code = CODE

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param=param[:200])
