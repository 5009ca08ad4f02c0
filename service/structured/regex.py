"""What a regular expression costs as an automaton: the bounds of what the parser reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from service.structured.limits import GrammarLimits, TooComplex
from service.structured.regex_parser import WIDE, Node, Parser

LONG: Final = 8
"""Of a wide class, a bounded repeat of more than this is dear enough to be tried by itself."""
Rest = tuple[()] | tuple[int, int, "Rest"]
"""What follows in an expression, as places in its text: the end of a sequence, then that of the group around it, …"""


@dataclass(slots=True)
class Analysis:
    """The size of an expression that is within the bounds."""

    states: int
    parts: list[str]
    """Parts whose cost may hide behind what comes before them; each is to be tried by itself."""


def analyse(pattern: str, path: str, limits: GrammarLimits) -> Analysis:
    """Measure a regular expression and check it against the bounds.

    Raises:
        TooComplex: It is beyond a bound; the message names ``path``.
    """
    root = Parser(pattern, path, limits).parse()
    states = root.states()
    if states > limits.regex_states:
        raise TooComplex(
            f"`{path}` is a regular expression of about {states} states with its repeats written out; "
            f"at most {limits.regex_states} are allowed",
            path,
        )
    for repeat in _repeats(root, 0, (), looped=False):
        if repeat.looped and repeat.variable and repeat.ambiguous:
            raise TooComplex(
                f"`{path}` repeats {_shown(pattern, repeat.node)} inside another repeat, and what follows it can begin "
                "with the same characters: the engine would have to follow every way to count them. "
                "Use * or + for one of the two, or put a separator between them",
                path,
            )
    if not limits.ambiguous:
        check_unambiguous(root, pattern, path, limits)
    found = hidden_parts(root, pattern, limits.parts + 1)  # one of them may be the whole
    parts = [part for part in found if part.strip("^$") != pattern.strip("^$")]
    if len(parts) > limits.parts:
        raise TooComplex(
            f"`{path}` has more than {limits.parts} long repeats or repeats within repeats; at most {limits.parts} are "
            "allowed",
            path,
        )
    return Analysis(states, parts)


def hidden_parts(root: Node, text: str, most: int, separator: str = "") -> list[str]:
    """The parts whose cost may hide: an answer may be long before it comes to them. At most one more than ``most``, for
    each copies the rest of the text.

    From a long bounded repeat of a wide class, or from one that can be confused with what follows, to the end; loops
    with loops or wide alternatives in them by themselves.
    """
    parts: dict[str, None] = {}
    for repeat in _repeats(root, 0, (), looped=False):
        node = repeat.node
        if node.counted and ((node.wide and node.max_count > LONG) or (repeat.variable and repeat.ambiguous)):
            pieces, rest = [text[node.start : node.end]], repeat.rest
            while rest:
                start, end, rest = rest
                pieces.append(text[start:end].strip() if separator else text[start:end])
            parts[separator.join(piece for piece in pieces if piece.strip() or not separator)] = None
        nested = any(inner.loops for branch in node.branches for inner in branch)
        if node.loops and (nested or (len(node.branches) > 1 and node.wide)):
            parts[text[node.start : node.end]] = None
        if len(parts) > most:
            break
    return list(parts)


def check_unambiguous(root: Node, text: str, path: str, limits: GrammarLimits) -> None:
    """Refuse what may be dear for each token, where nothing is tried: long bounded repeats of wide classes, those that
    what follows can be confused with, and loops in loops of such.

    Raises:
        TooComplex: There is one.
    """
    for repeat in _repeats(root, 0, (), looped=False):
        node, shown = repeat.node, _shown(text, repeat.node)
        if node.counted and node.wide and node.max_count > limits.wide_repeat:
            raise TooComplex(
                f"`{path}` repeats {shown} up to {node.max_count} times; at most {limits.wide_repeat} are allowed of "
                "what can begin with many characters, as no process is there to try it",
                path,
            )
        unbounded = repeat.looped and (node.high is None or node.loops_inside)
        again = node.loops and (node.loops_inside or node.counts_inside)
        if again or (repeat.ambiguous and (repeat.variable or unbounded or node.counts_inside)):
            raise TooComplex(
                f"`{path}` repeats {shown}, and what follows it can begin with the same characters; as no process is "
                "there to try it, put a separator between them",
                path,
            )


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A repeat in an expression, or a rule's name that stands for one.

    Attributes:
        rest: What comes after it.
        overlap: The characters that both go on with it and follow it.
        looped: It stands in a loop.
    """

    node: Node
    rest: Rest
    overlap: int
    looped: bool

    @property
    def variable(self) -> bool:
        """It has a bound, and fewer repeats are allowed, too."""
        return self.node.counted and self.node.high is not None and self.node.low != self.node.high

    @property
    def ambiguous(self) -> bool:
        """Most of what goes on with it follows it as well."""
        return self.overlap.bit_count() > WIDE


def _repeats(node: Node, follow: int, rest: Rest, *, looped: bool) -> Iterator[_Repeat]:
    for branch in node.branches:
        after = node.first | follow if node.loops else follow
        for item in reversed(branch):
            beyond: Rest = (item.end, branch[-1].end, rest)
            if item.loops or item.loops_inside or item.counts_inside:
                yield _Repeat(item, beyond, item.first & after, looped or node.loops)
            yield from _repeats(item, after, beyond, looped=looped or node.loops)
            after = item.first | after if item.nullable else item.first


def _shown(pattern: str, node: Node) -> str:
    text = pattern[node.start : node.end]
    return repr(text if len(text) <= 40 else text[:37] + "...")
