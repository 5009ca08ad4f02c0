"""A tolerant parser of regular expressions, and the tree that grammars' rules are read into as well.

It reads what xgrammar reads. What it does not know counts as one wide character class: whether the expression is valid
is for the trial compile to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from service.structured.limits import GrammarLimits, TooComplex

ASCII: Final = 128
OTHER: Final = 1 << ASCII
"""Stands for every character beyond ASCII."""
ANY: Final = (OTHER << 1) - 1
WIDE: Final = 16
"""Two parts that share more characters than this can both take most of the vocabulary's tokens."""
_HEX: Final = re.compile(r"[0-9A-Fa-f]{1,8}")
_QUANTIFIERS: Final = "*+?{"
MAX_STACKED: Final = 3
MAX_COUNT_DIGITS: Final = 12
_LITERALS: Final = re.compile(r"[\w ,:;<>=@#!\"'/&%~-]+(?![*+?{])", re.ASCII)
"""Plain characters; the last one before a quantifier is not among them."""


def count_of(digits: str) -> int:
    """The value of decimal digits; a number beyond any bound if more than twelve are significant."""
    digits = digits.lstrip("0")
    return int(digits or 0) if len(digits) <= MAX_COUNT_DIGITS else 10**MAX_COUNT_DIGITS


def chars_of(text: str) -> int:
    mask = 0
    for char in text:
        mask |= 1 << ord(char) if ord(char) < ASCII else OTHER
    return mask


_DIGITS: Final = chars_of("0123456789")
_WORD: Final = _DIGITS | chars_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_SPACE: Final = chars_of(" \t\n\r\f\v")
_ESCAPED_CLASSES: Final = {
    "d": _DIGITS,
    "D": ANY & ~_DIGITS,
    "w": _WORD,
    "W": ANY & ~_WORD,
    "s": _SPACE,
    "S": ANY & ~_SPACE,
    "p": ANY,
    "P": ANY,
}
_ESCAPED_CHARS: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}


@dataclass(slots=True)
class Node:
    """A part of an expression.

    ``low`` and ``high`` say how often it comes (``high`` None: no bound); ``branches`` are its alternatives, each a
    sequence; without any it is one character of the set ``chars``.
    """

    start: int
    end: int
    chars: int = 0
    branches: list[list[Node]] = field(default_factory=list)
    low: int = 1
    high: int | None = 1
    length: int = 1
    """Characters of a literal."""
    first: int = 0
    """The characters that it can begin with."""
    nullable: bool = False
    name: str = ""
    """The rule that it stands for, in a grammar."""
    loops_inside: bool = False
    counts_inside: bool = False
    """That rule repeats a wide class without, or with, a bound."""

    @property
    def wide(self) -> bool:
        """Whether it can begin with most of the vocabulary's tokens."""
        return self.first.bit_count() > WIDE

    @property
    def max_count(self) -> int:
        """The largest written number of repeats."""
        return max(self.low, self.high or 0)

    @property
    def loops(self) -> bool:
        return self.high is None or self.high > 1

    @property
    def counted(self) -> bool:
        """Whether the automaton must count the repeats."""
        return (self.high or 0) > 1 or self.low > 1

    def settle(self) -> None:
        """Compute `nullable` and `first` from the branches, whose nodes must be settled."""
        self.first, self.nullable = self.chars, self.low == 0
        for branch in self.branches:
            first, nullable = 0, True
            for item in reversed(branch):
                first = item.first | first if item.nullable else item.first
                nullable = nullable and item.nullable
            self.first |= first
            self.nullable = self.nullable or nullable

    def states(self) -> int:
        """Number of states of an automaton in which every bounded repeat is written out."""
        once = sum(item.states() for branch in self.branches for item in branch) if self.branches else self.length
        return once * max(self.low, self.high or 1, 1)


class Parser:
    """A recursive descent parser; the limit on nesting bounds its depth."""

    def __init__(self, pattern: str, path: str, limits: GrammarLimits) -> None:
        self._text = pattern
        self._path = path
        self._limits = limits
        self._at = 0
        self._depth = 0
        self._alternatives = 0

    def parse(self) -> Node:
        if len(self._text) > self._limits.regex_chars:
            raise TooComplex(
                f"`{self._path}` has {len(self._text)} characters; "
                f"a regular expression may have at most {self._limits.regex_chars}",
                self._path,
            )
        branches = self._alternation()
        while self._at < len(self._text):  # a closing bracket too many: not ours to refuse
            self._at += 1
            branches += self._alternation()
        root = Node(0, len(self._text), branches=branches)
        root.settle()
        return root

    def _alternation(self) -> list[list[Node]]:
        self._depth += 1
        if self._depth > self._limits.regex_depth:
            raise TooComplex(f"`{self._path}` nests groups deeper than {self._limits.regex_depth} levels", self._path)
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            self._alternatives += 1
            if self._alternatives > self._limits.alternatives:
                raise TooComplex(f"`{self._path}` has more than {self._limits.alternatives} alternatives", self._path)
            branches.append(self._sequence())
        self._depth -= 1
        return branches

    def _sequence(self) -> list[Node]:
        items: list[Node] = []
        while (char := self._peek()) and char not in "|)":
            literal = _LITERALS.match(self._text, self._at)
            if literal is not None:
                first = chars_of(char)
                items.append(Node(self._at, literal.end(), first, length=len(literal[0]), first=first))
                self._at = literal.end()
                continue
            item = self._item()
            if item is not None:
                items.append(item)
        return items

    def _item(self) -> Node | None:
        start = self._at
        char = self._next()
        if char == "(":
            node = Node(start, start, branches=self._group())
        elif char == "[":
            node = Node(start, start, chars=self._class())
        elif char == "\\":
            mask = self._escape()
            if mask == 0:
                return None
            node = Node(start, start, chars=mask)
        elif char in "^$":
            return None
        else:
            node = Node(start, start, chars=ANY & ~chars_of("\n") if char == "." else chars_of(char))
        node.end = self._at
        node.settle()
        stacked = 0
        while (char := self._peek()) and char in _QUANTIFIERS:
            bounds = self._bounds()
            if bounds is None:
                break
            if stacked and bounds == (0, 1):  # a lazy one: the same language
                node.end = self._at
                continue
            stacked += 1
            if stacked > MAX_STACKED:
                raise TooComplex(f"`{self._path}` has more than {MAX_STACKED} quantifiers in a row", self._path)
            if stacked > 1:
                node = Node(start, start, branches=[[node]])
            node.low, node.high, node.end = *bounds, self._at
            node.settle()
        return node

    def _bounds(self) -> tuple[int, int | None] | None:
        """The quantifier here; None where the brace is a plain character."""
        char = self._text[self._at]
        if char != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        close = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : close if close > 0 else self._at + 1].partition(",")
        low, high = low.strip(), high.strip()
        if not (low.isdecimal() and (not high or high.isdecimal())):
            return None
        self._at = close + 1
        counts = [count_of(digits) for digits in (low, high) if digits]
        if max(counts) > self._limits.repeat:
            longest = max(low, high, key=lambda digits: (len(digits), digits))
            raise TooComplex(
                f"`{self._path}` repeats something up to {longest[:20]} times; at most {self._limits.repeat} are "
                "allowed",
                self._path,
            )
        return counts[0], (counts[1] if high else None) if comma else counts[0]

    def _group(self) -> list[list[Node]]:
        if self._peek() == "?":
            self._at += 1
            if self._peek() == "P":
                self._at += 1
            kind = self._next()
            if kind == "<" and self._peek() not in ("=", "!"):
                close = self._text.find(">", self._at)
                self._at = close + 1 if close > 0 else self._at
            elif kind == "<":
                self._at += 1
        branches = self._alternation()
        if self._peek() == ")":
            self._at += 1
        return branches

    def _class(self) -> int:
        negated = self._peek() == "^"
        self._at += negated
        mask, first = 0, True
        while (char := self._peek()) and (char != "]" or first):
            first = False
            low = self._class_member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                mask |= _range(low, self._class_member())
            else:
                mask |= low
        self._at += 1
        return ANY & ~mask if negated else mask

    def _class_member(self) -> int:
        char = self._next()
        return self._escape() or chars_of("\b") if char == "\\" else chars_of(char)

    def _escape(self) -> int:
        """The set that an escape stands for; 0: a place between characters."""
        char = self._next()
        if char in _ESCAPED_CLASSES:
            if char in "pP" and self._peek() == "{":
                close = self._text.find("}", self._at)
                self._at = close + 1 if close > 0 else self._at
            return _ESCAPED_CLASSES[char]
        if char in ("b", "B", ""):
            return 0
        if char in "xu":
            if self._peek() == "{":
                close = self._text.find("}", self._at)
                digits, self._at = self._text[self._at + 1 : close], close + 1 if close > 0 else self._at
            else:
                length = 2 if char == "x" else 4
                digits, self._at = self._text[self._at : self._at + length], self._at + length
            if not _HEX.fullmatch(digits):
                return ANY
            code = int(digits, 16)
            return 1 << code if code < ASCII else OTHER
        return chars_of(_ESCAPED_CHARS.get(char, char))

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char


def _range(low: int, high: int) -> int:
    """All characters from the one in ``low`` to the one in ``high``."""
    if low.bit_count() != 1 or high.bit_count() != 1 or high < low:
        return low | high
    return (high << 1) - low
