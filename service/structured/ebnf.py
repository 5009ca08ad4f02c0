"""The rules of a grammar, EBNF's or Lark's, as trees: which repeats may hide behind what comes before them, and what is
too ambiguous for an engine where nothing is tried."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from operator import or_
from typing import Final

from service.structured.limits import GrammarLimits, TooComplex
from service.structured.regex import check_unambiguous, hidden_parts
from service.structured.regex_parser import ANY, MAX_STACKED, Node, Parser, chars_of, count_of

_COUNT: Final = r"\{\s*+(\d*+)\s*+(,?)\s*+(\d*+)\s*+\}|~\s*+(\d++)(?:\s*+\.\.\s*+(\d++))?"
_TOKEN: Final = re.compile(r"[A-Za-z_][\w.-]*+|[\"\[]'*+|[()\]|*+?]|" + _COUNT)


@dataclass(frozen=True, slots=True)
class GrammarRule:
    """A rule; ``start`` and ``end`` are its body's place in the grammar's text."""

    name: str
    start: int
    end: int
    tree: Node


class Rules:
    """The rules of one grammar.

    Args:
        text: The grammar.
        plain: It, without what is in strings and classes (see `bounds.blanked`); as long as ``text``.
        heads: The matches of the rules' names up to the sign that begins their bodies.

    Raises:
        TooComplex: It has too many symbols, or quantifiers in a row.
    """

    def __init__(
        self, text: str, plain: str, heads: list[re.Match[str]], path: str, limits: GrammarLimits, *, lark: bool
    ) -> None:
        self._text = text
        self._plain = plain
        self._path = path
        self._limits = limits
        self._lark = lark
        self._symbols = 0
        ends = [*(head.start() for head in heads[1:]), len(text)][: len(heads)]
        self.rules = [
            GrammarRule(head[1], head.end(), end, self._parse_body(head.end(), end))
            for head, end in zip(heads, ends, strict=True)
        ]

    def tails(self, whole: set[str], most: int) -> list[str]:
        """The bodies from each dear repeat on: in an answer, what comes before it may be long. No more than one above
        ``most`` a rule, for each is a copy.

        Args:
            whole: Rules that are tried from their beginning in any case.
        """
        tails: dict[str, None] = {}
        for rule in self.rules:
            body = self._text[rule.start : rule.end].strip()
            hidden = (tail.strip() for tail in hidden_parts(rule.tree, self._text, most, " "))
            tails |= dict.fromkeys(tail for tail in hidden if tail != body or rule.name not in whole)
            if len(tails) > most:
                break
        return list(tails)

    def check_unambiguous(self) -> None:
        """Refuse what an engine may have to follow in many ways at once.

        Raises:
            TooComplex: A rule recurs that is not between two fixed texts, or a repeat meets what it can be confused
                with.
        """
        edges = {rule.name: set(_unguarded(rule.tree)) for rule in self.rules}
        recurring = _on_a_cycle(edges)
        if recurring:
            raise TooComplex(
                f"`{self._path}` has the rule {recurring[:40]!r}, which is recursive, and no process is there to try "
                "it: put the recursive part between two different quoted strings, or write it as a repeat",
                self._path,
            )
        every = {rule.name: {node.name for node in _ends(rule.tree) if node.name} for rule in self.rules}
        counting = _reach(every, {rule.name for rule in self.rules if _holds(rule.tree, bounded=True)})
        looping = _reach(every, {rule.name for rule in self.rules if _holds(rule.tree, bounded=False)})
        for rule in self.rules:
            for node in _nodes(rule.tree):
                node.counts_inside, node.loops_inside = node.name in counting, node.name in looping
            check_unambiguous(rule.tree, self._text, self._path, self._limits)

    def _parse_body(self, start: int, end: int) -> Node:
        """The body at a place; what cannot be read is left out: whether it is valid is for the engine to say."""
        open_groups: list[tuple[int, list[list[Node]]]] = [(start, [[]])]
        for match in _TOKEN.finditer(self._plain, start, end):
            sign, branches = match[0], open_groups[-1][1]
            self._symbols += 1
            if self._symbols > self._limits.nodes:
                raise TooComplex(f"`{self._path}` has more than {self._limits.nodes} symbols", self._path)
            if sign == "(" or (sign == "[" and self._lark):
                open_groups.append((match.start(), [[]]))
            elif sign in (")", "]"):
                if len(open_groups) > 1:
                    at, inner = open_groups.pop()
                    optional = sign == "]"
                    group = Node(at, match.end(), branches=inner, low=0 if optional else 1)
                    group.settle()
                    open_groups[-1][1][-1].append(group)
            elif sign == "|":
                branches.append([])
            elif sign[0] in "*+?{~":
                if branches[-1]:
                    stacked = _stacked(branches[-1][-1])
                    if stacked >= MAX_STACKED:
                        raise TooComplex(f"`{self._path}` has more than {MAX_STACKED} quantifiers in a row", self._path)
                    branches[-1][-1] = _repeated(branches[-1][-1], match)
            else:
                branches[-1].append(self._atom(match))
        while len(open_groups) > 1:
            at, inner = open_groups.pop()
            group = Node(at, end, branches=inner)
            group.settle()
            open_groups[-1][1][-1].append(group)
        root = Node(start, end, branches=open_groups[0][1])
        root.settle()
        return root

    def _atom(self, match: re.Match[str]) -> Node:
        start, end = match.span()
        if match[0][0] not in '"[':
            return Node(start, end, chars=ANY, first=ANY, name=match[0])
        inside = self._text[start + 1 : end - 1]
        if self._text[start] == '"':  # escapes are few: for what it can begin with, the backslash stands for them
            return Node(start, end, first=chars_of(inside[:1]), chars=chars_of(inside[:1]), length=max(len(inside), 1))
        chars = ANY
        if self._text[start] == "[":
            read = Parser(self._text[start:end], self._path, self._limits).parse()
            chars = read.first or ANY
        return Node(start, end, chars=chars, first=chars)


def _repeated(atom: Node, match: re.Match[str]) -> Node:
    """An atom with a quantifier behind it."""
    sign = match[0]
    low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (1, 1))
    if sign[0] == "{":
        low = count_of(match[1])
        high = count_of(match[3]) if match[3] else None if match[2] else low
    elif sign[0] == "~":
        low = count_of(match[4])
        high = count_of(match[5]) if match[5] else low
    node = atom if not atom.loops and atom.low else Node(atom.start, match.end(), branches=[[atom]])
    node.low, node.high, node.end = low, high, match.end()
    node.settle()
    return node


def _stacked(node: Node) -> int:
    """How many quantifiers an atom has."""
    count = 0
    while node.loops or not node.low:
        count += 1
        if not (node.branches and node.branches[0] and node.branches[0][0].start == node.start):
            break
        node = node.branches[0][0]
    return count


def _holds(tree: Node, *, bounded: bool) -> bool:
    """Whether it may end in a repeat of a wide class; one before its end is checked where it stands."""
    return any(node.loops and node.wide and (node.counted or not bounded) for node in _ends(tree))


def _ends(tree: Node) -> list[Node]:
    """The nodes that an expression may end with."""
    nodes = [tree]
    for node in nodes:
        for branch in node.branches:
            for item in reversed(branch):
                nodes.append(item)
                if not item.nullable:
                    break
    return nodes


def _reach(references: dict[str, set[str]], names: set[str]) -> set[str]:
    """The names, and those that lead to one of them."""
    while more := {name for name, targets in references.items() if name not in names and targets & names}:
        names = names | more
    return names


def _nodes(tree: Node) -> list[Node]:
    nodes = [tree]
    for node in nodes:
        nodes += [inner for branch in node.branches for inner in branch]
    return nodes


def _unguarded(tree: Node) -> list[str]:
    """The rules that are named in a place that is not between two different fixed texts."""
    names: list[str] = []
    left: list[tuple[Node, int, int]] = [(tree, 0, 0)]
    while left:
        node, before, after = left.pop()
        if node.name and not (before and after and before | after != before & after):
            names.append(node.name)
        for branch in node.branches:
            texts = [_fixed(item) for item in branch]
            befores = list(accumulate(texts, or_, initial=before))
            afters = list(accumulate(reversed(texts), or_, initial=after))[-2::-1]
            left += zip(branch, befores[:-1], afters, strict=True)
    return names


def _fixed(item: Node) -> int:
    """What a fixed text begins with; 0: it is none, or may be left out."""
    return 0 if item.name or item.branches or item.nullable or item.wide else item.first


def _on_a_cycle(edges: dict[str, set[str]]) -> str | None:
    """A name from which the edges lead back to it; None where there is none."""
    left = {name: targets & edges.keys() for name, targets in edges.items()}
    while ends := [name for name, targets in left.items() if not targets]:
        for name in ends:
            del left[name]
        gone = set(ends)
        for targets in left.values():
            targets -= gone
    return next(iter(left), None)
