"""The static bounds: reject specifications that are too large by their text alone, and find the parts to try."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Literal

import orjson

from service.errors import BadRequest
from service.structured.ebnf import Rules
from service.structured.limits import GrammarLimits, TooComplex
from service.structured.parts import GrammarPart
from service.structured.regex import analyse
from service.structured.regex_parser import count_of
from service.structured.schema import check_schema
from service.structured.spec import Spec, json_text

# Every expression here takes time that is linear in the text, whatever the text: repeats are possessive, and what is
# not closed is taken to the line's end instead of being given back.
_EBNF_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\\n])*+"?|\[(?:\\.|[^\]\\\n])*+\]?|#[^\n]*+')
_LARK_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\\n])*+"?|//[^\n]*+|#[^\n]*+|/((?:\\.|[^/\\\n])++)(?:/[a-z]*+)?')
_RULE: Final = re.compile(r"(?m)^[ \t]*+([A-Za-z_][\w.-]*+)[ \t]*+::=")
_LARK_RULE: Final = re.compile(
    r"(?m)^[ \t]*+[?!]?([A-Za-z_]\w*+)(?:\.-?\d++)?[ \t]*+(?:\{[^}\n]*+\}|\[[^\]\n]*+\])?[ \t]*+:"
)
_COUNT: Final = re.compile(r"\{\s*+(\d*+)\s*+(,?)\s*+(\d*+)\s*+\}|~\s*+(\d++)(?:\s*+\.\.\s*+(\d++))?")
_REPEATS: Final = re.compile(r"[)\]\w\"']\s*+[*+]|" + _COUNT.pattern)
_NAME: Final = re.compile(r"[A-Za-z_][\w.-]*+")
_COMMENT: Final = re.compile(r"(?:#|//)[^\n]*+")
WRITTEN_OUT: Final = 128
"""Up to so many repeats xgrammar writes out; more cost no more."""
REPEATING_FORMATS: Final = ("or", "triggered_tags", "tags_with_separator", "sequence", "repeat", "star", "plus")
"""Formats of a structural tag that hold others, and may be reached late."""
MANY_ALTERNATIVES: Final = 32
"""Of more than so many, a trial may not come by each."""


def check(spec: Spec, limits: GrammarLimits) -> list[GrammarPart]:
    """Check a specification against the static bounds.

    Returns:
        Parts that are to be tried by themselves: their cost could hide from a trial of the whole.

    Raises:
        TooComplex: It is beyond a bound; the message names the field, what it has and what is allowed.
        BadRequest: It is not well formed.
    """
    _ = spec.text  # what cannot be written down is refused before anything walks over it
    if spec.kind == "json":
        return check_schema(spec.value, spec.path, limits)
    if spec.kind == "choice":
        if not isinstance(spec.value, list) or not all(isinstance(entry, str) for entry in spec.value):
            raise BadRequest(f"`{spec.path}` must be an array of strings", param=spec.path)
        _bound(spec.path, "entries", len(spec.value), limits.values)
        return []
    if not isinstance(spec.value, str) and spec.kind != "structural_tag":
        raise BadRequest(f"`{spec.path}` must be a string", param=spec.path)
    if spec.kind == "regex":
        return [GrammarPart("regex", part) for part in analyse(spec.value, spec.path, limits).parts]
    if spec.kind == "grammar":
        return _check_grammar(spec.value, spec.path, limits)
    return _check_tags(spec.value, spec.path, limits)


def _bound(path: str, what: str, count: int, allowed: int) -> None:
    if count > allowed:
        raise TooComplex(f"`{path}` has {count} {what}; at most {allowed} are allowed", path)


def is_lark(grammar: str) -> bool:
    """Whether the engine reads a grammar as Lark: no line, without its comment, contains EBNF's `::=`."""
    return "::=" not in _COMMENT.sub("", grammar)


def blanked(text: str, *, lark: bool) -> tuple[str, list[str]]:
    """A grammar in which nothing but its structure is left, each character at its place: of a string and of Lark's
    regular expressions a `"` and of a class a `[` remains, followed by `'`; comments are spaces.

    Returns:
        The text, and Lark's regular expressions.
    """
    expressions: list[str] = []

    def blank(match: re.Match[str]) -> str:
        token = match[0]
        if lark and match[1] is not None:
            expressions.append(match[1])
        elif token[0] in "#/":
            return " " * len(token)
        return ("[" if token[0] == "[" else '"') + "'" * (len(token) - 1)

    return (_LARK_TOKEN if lark else _EBNF_TOKEN).sub(blank, text), expressions


def _check_grammar(text: str, path: str, limits: GrammarLimits) -> list[GrammarPart]:
    lark = is_lark(text)
    parts: list[GrammarPart] = []
    plain, expressions = blanked(text, lark=lark)
    _bound(path, "characters in its regular expressions", sum(map(len, expressions)), limits.regex_chars)
    for expression in dict.fromkeys(expressions):
        analysis = analyse(expression, path, limits)
        parts += [GrammarPart("regex", part) for part in (expression, *analysis.parts)]
    heads = list((_LARK_RULE if lark else _RULE).finditer(plain))
    rules = [head[1] for head in heads]
    _bound(path, "rules", len(rules), limits.rules)
    _bound(path, "alternatives", plain.count("|"), limits.alternatives)
    expanded = 0
    for match in _COUNT.finditer(plain):
        high = max((count_of(digits) for digits in match.groups() if digits and digits.isdecimal()), default=0)
        _bound(path, "for the bound of a repeat", high, limits.repeat)
        expanded += min(high, WRITTEN_OUT)
    _bound(path, "states with its bounded repeats written out", expanded, limits.expanded)
    _check_nesting(plain, path, limits, "([" if lark else "(")
    bodies = (_LARK_RULE if lark else _RULE).split(plain)[2::2]
    for rule, body in zip(rules, bodies, strict=False):
        if body.count("|") > MANY_ALTERNATIVES and _REPEATS.search(body):
            raise TooComplex(
                f"`{path}` has {body.count('|') + 1} alternatives and repeats in the rule {rule[:40]!r}; "
                f"with more than {MANY_ALTERNATIVES}, put what repeats into rules of its own",
                path,
            )
    looping = list(dict.fromkeys(_worth_trying(rules, bodies)))
    trees = Rules(text, plain, heads, path, limits, lark=lark)
    if not limits.ambiguous:
        trees.check_unambiguous()
    _bound(path, "rules that repeat or recur", len(looping), limits.parts * 4)
    tails = trees.tails({"root", "start", *looping}, limits.parts * 4)
    _bound(path, "rules that repeat or recur, and long repeats", len(looping) + len(tails), limits.parts * 4)
    return [*parts, *(GrammarPart("rule", rule) for rule in looping), *(GrammarPart("tail", tail) for tail in tails)]


def _check_nesting(plain: str, path: str, limits: GrammarLimits, opening: str) -> None:
    depth = 0
    for char in re.findall(r"[()\[\]]" if "[" in opening else r"[()]", plain):
        depth = depth + 1 if char in opening else max(depth - 1, 0)
        _bound(path, "groups within each other", depth, limits.regex_depth)


def _worth_trying(rules: list[str], bodies: list[str]) -> Iterator[str]:
    """The rules, but the root, that repeat something or name a rule that was begun before."""
    begun_rules: set[str] = set()
    for rule, body in zip(rules, bodies, strict=False):
        begun_rules.add(rule)
        names = set(_NAME.findall(body))
        if rule not in ("root", "start") and (names & begun_rules or _REPEATS.search(body)):
            yield rule


def _check_tags(value: Any, path: str, limits: GrammarLimits) -> list[GrammarPart]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise BadRequest(
                f"`{path}` must be JSON; got a string that is not JSON", param=path, code="invalid_grammar"
            ) from None
    parts: list[GrammarPart] = []
    tags = 0
    level, depth = [value], 0
    while level:
        depth += 1
        _bound(path, "levels within each other", depth, limits.depth)
        below: list[Any] = []
        for item in level:
            if isinstance(item, list):
                below += item
                continue
            if not isinstance(item, dict):
                continue
            tags += 1
            _bound(path, "tags and formats", tags, limits.tags)
            if depth > 1 and item.get("type") in REPEATING_FORMATS:
                form = {"type": "structural_tag", "format": item}
                parts.append(GrammarPart("structural_tag", json_text(form, path)))
            for name, child in item.items():
                if name in ("json_schema", "schema") and child is not None:
                    inner = check_schema(child, f"{path} ({name})", limits)  # first: writing it down needs its depth
                    parts += _with_whole("json", json_text(child, path), inner)
                elif name == "grammar" and isinstance(child, str):
                    parts += _with_whole("grammar", child, _check_grammar(child, path, limits))
                elif name == "pattern" and isinstance(child, str):
                    parts += [GrammarPart("regex", part) for part in (child, *analyse(child, path, limits).parts)]
                elif isinstance(child, (dict, list)):
                    below.append(child)
        level = below
    parts = list(dict.fromkeys(parts))
    _bound(path, "schemas, grammars and expressions", len(parts), limits.parts * 4)
    return parts


def _with_whole(kind: Literal["json", "grammar"], text: str, parts: list[GrammarPart]) -> list[GrammarPart]:
    """A specification within a structural tag, and its parts, which belong to it and not to the tag."""
    inner = ("ref", "rule", "tail")
    return [GrammarPart(kind, text), *(replace(part, within=text) if part.kind in inner else part for part in parts)]
