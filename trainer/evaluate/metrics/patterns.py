"""Regular expressions from requests, compiled within bounds.

`regex` unrolls the least count of every repeat while it compiles: `(?:(?:a{999}){999}){999}` would need 250 GB, which
no time limit on the search prevents. So a pattern is parsed with the library's own parser, which reads flags, comments
and classes as the compiler does, and measured before it is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import regex
from regex._regex_core import UNICODE, VERBOSE, Info, RegexBase, SetBase, Source, _parse_pattern, _UnscopedFlagSet

from trainer.errors import EvaluationInvalid

MAX_PARTS: Final = 10_000
"""Parts (characters, classes, groups, …) of a pattern with its repeats unrolled: about 5 MB."""
MAX_CHARS: Final = 1_000
"""A longer one is not searched within its time limit: `regex` prepares a run of 4,000 equal letters for a minute."""
TIMEOUT_S: Final = 1.0
"""Time limit for one pattern on one text, in seconds: backtracking may otherwise never end."""
REFERENCE: Final = "{reference}"
_MARK: Final = "\ue000"
"""Begins the sample of a reference; no request means this character, which is for private use."""
_SAMPLE: Final = _MARK + "]^-9\n" * 20


def find(pattern: str, text: str, name: str) -> bool:
    """Whether the pattern is found in the text.

    Raises:
        EvaluationInvalid: The pattern is invalid or too large, or took longer than TIMEOUT_S; the message begins with
            ``name``.
    """
    try:
        return compiled(pattern, name).search(text, timeout=TIMEOUT_S) is not None
    except TimeoutError as error:
        raise EvaluationInvalid(f"{name} took more than {TIMEOUT_S:g} s on one answer; simplify it") from error


@lru_cache(maxsize=256)
def compiled(pattern: str, name: str) -> Any:
    """The compiled pattern. Raises EvaluationInvalid if it is invalid or too large (MAX_CHARS, MAX_PARTS)."""
    if len(pattern) > MAX_CHARS:
        raise EvaluationInvalid(f"{name} has {len(pattern):,} characters; at most {MAX_CHARS:,} are allowed")
    _check_size(_parse(pattern, name), name)
    return _compile(pattern, name)


def check_template(pattern: str, name: str) -> None:
    """Check a pattern that may hold REFERENCE, as `find_reference` will search it.

    Raises:
        EvaluationInvalid: It is invalid or too large, or would not stand for every reference.
    """
    for reference in (_SAMPLE, ""):
        filled = _filled(pattern, reference)
        tree = _parse(filled, name)
        if _marks_in_classes(tree):
            raise EvaluationInvalid(f"{name} has `{REFERENCE}` in a character class; put it outside")
        _check_size(tree, name)
        _compile(filled, name)


def find_reference(pattern: str, text: str, reference: str, name: str) -> bool:
    """As `find`, of a pattern that `check_template` has accepted, with the reference in the place of REFERENCE."""
    # not measured again: a reference is a group of its own, so it adds no repeats
    try:
        return _compile(_filled(pattern, reference), name).search(text, timeout=TIMEOUT_S) is not None
    except TimeoutError as error:
        raise EvaluationInvalid(f"{name} took more than {TIMEOUT_S:g} s on one answer; simplify it") from error


def _filled(pattern: str, reference: str) -> str:
    """The pattern for this reference. As a group: digits of it are no count in `a{{reference}}`."""
    return pattern.replace(REFERENCE, f"(?:{regex.escape(reference, special_only=False)})")


def _compile(pattern: str, name: str) -> Any:
    try:
        return regex.compile(pattern)
    except (regex.error, ValueError) as error:
        raise EvaluationInvalid(f"{name} is not a valid regular expression: {error}") from error
    except RecursionError as error:
        raise EvaluationInvalid(f"{name} is nested too deeply; simplify it") from error


def _parse(pattern: str, name: str) -> Any:
    """The library's tree of a pattern, as `regex.compile` makes it first. Raises EvaluationInvalid."""
    flags = 0
    try:
        while True:
            source = Source(pattern)
            info = Info(flags, source.char_type, {})
            info.guess_encoding = UNICODE
            source.ignore_space = bool(info.flags & VERBOSE)
            try:
                return _parse_pattern(source, info)
            except _UnscopedFlagSet:  # flags in the middle hold for the whole pattern, which is parsed again
                flags = info.global_flags
    except (regex.error, ValueError, KeyError) as error:
        raise EvaluationInvalid(f"{name} is not a valid regular expression: {error}") from error
    except RecursionError as error:
        raise EvaluationInvalid(f"{name} is nested too deeply; simplify it") from error


def _check_size(tree: Any, name: str) -> None:
    """Raises EvaluationInvalid if the tree has more than MAX_PARTS."""
    if _parts(tree) > MAX_PARTS:
        raise EvaluationInvalid(
            f"{name} is too large: with its counts, such as {{999}}, multiplied out it has more than {MAX_PARTS:,} "
            "parts; use smaller counts, or + and *"
        )


def _parts(node: Any) -> int:
    """The number of parts of a tree, with repeats unrolled as the compiler does."""
    inside = 1 + sum(_parts(child) for child in _children(node))
    return inside * max(1, getattr(node, "min_count", 1))


def _marks_in_classes(node: Any, *, within: bool = False) -> bool:
    """Whether the sample of a reference is in a character class."""
    if within and getattr(node, "value", None) == ord(_MARK):
        return True
    within = within or isinstance(node, SetBase)
    return any(_marks_in_classes(child, within=within) for child in _children(node))


def _children(node: Any) -> Iterator[Any]:
    for value in vars(node).values():
        for child in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(child, RegexBase):
                yield child
