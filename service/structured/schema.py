"""The static bound of a JSON schema: its size, its references, and what its lengths and patterns come to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from service.errors import BadRequest
from service.structured.limits import GrammarLimits, TooComplex
from service.structured.parts import GrammarPart
from service.structured.regex import analyse

MAX_REF_CHAIN: Final = 16
WRITTEN_OUT: Final = 128
"""Up to so many repeats xgrammar writes out; more cost no more."""
MANY_BRANCHES: Final = 4
COMBINATORS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
ITEM_COUNTS: Final = ("minItems", "maxItems", "minProperties", "maxProperties")
TEXT_BOUNDS: Final = ("pattern", "minLength", "maxLength", "format")
LONG_ENUM: Final = 64
"""Of more values than this, the choice between them is tried by itself."""
_CODE: Final = "invalid_grammar"
SchemaPath = tuple[()] | tuple["SchemaPath", str]
"""A place in a schema: that of what holds it, and the name or index there; empty for the root. Pointers are written for
the few that need one: with long names, those of all places would take thousands of times the schema's size."""


def check_schema(value: Any, path: str, limits: GrammarLimits) -> list[GrammarPart]:
    """Check a JSON schema: an object, or its text.

    Returns:
        The parts that are to be tried by themselves.

    Raises:
        TooComplex: It is beyond a bound.
        BadRequest: It is no JSON, or a reference leads nowhere.
    """
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise BadRequest(f"`{path}` must be JSON; got a string that is not JSON", param=path, code=_CODE) from None
    return _SchemaWalk(value, path, limits).check()


class _SchemaWalk:
    """One pass over all values of a schema, without recursion."""

    def __init__(self, root: Any, path: str, limits: GrammarLimits) -> None:
        self._root = root
        self._path = path
        self._limits = limits
        self._nodes = 0
        self._values = 0
        self._branches = 0
        self._expanded = 0
        self._refs: list[str] = []
        self._patterns: dict[str, None] = {}
        self._texts: dict[str, None] = {}
        """Schemas of the strings whose text is bounded."""
        self._aside: list[tuple[Any, SchemaPath]] = []
        """What may be dear whatever its texts are."""
        self._wide: list[tuple[Any, SchemaPath]] = []
        """What has many branches, and each of them."""

    def check(self) -> list[GrammarPart]:
        level: list[tuple[Any, SchemaPath]] = [(self._root, ())]
        depth = 0
        while level:
            depth += 1
            if depth > self._limits.depth:
                raise TooComplex(
                    f"`{self._path}` is nested deeper than {self._limits.depth} levels, the maximum", self._path
                )
            level = [child for value, place in level for child in self._visit(value, place)]
        self._check_refs()
        return self._check_patterns()

    def _visit(self, value: Any, place: SchemaPath) -> Iterator[tuple[Any, SchemaPath]]:
        """Count a value; its children that have children themselves."""
        if isinstance(value, dict):
            self._look(value, place)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        self._nodes += 1 + len(value) if isinstance(value, (dict, list)) else 1
        self._bound("values, of whatever kind", self._nodes, self._limits.nodes)
        for name, child in items:
            if isinstance(child, (dict, list)):
                yield child, (place, str(name))

    def _look(self, schema: dict[str, Any], place: SchemaPath) -> None:
        values = schema.get("enum")
        if isinstance(values, list):
            self._values += len(values)
            self._bound("entries of `enum`", self._values, self._limits.values)
        for name in COMBINATORS:
            branches = schema.get(name)
            if isinstance(branches, list):
                self._branches += len(branches)
                self._bound("branches of `anyOf` and its kin", self._branches, self._limits.alternatives)
                if len(branches) > MANY_BRANCHES:
                    self._wide += [(branch, ((place, name), str(index))) for index, branch in enumerate(branches)]
        for name in COUNTS:
            count = schema.get(name)
            if isinstance(count, (int, float)) and count == count:
                self._bound(f"(`{name}`) for a count", abs(count), self._limits.length)
                self._expanded += int(min(abs(count), WRITTEN_OUT))
        self._note_costs(schema, place)
        if isinstance(schema.get("pattern"), str):
            self._patterns[schema["pattern"]] = None
        if isinstance(schema.get("patternProperties"), dict):
            self._patterns |= dict.fromkeys(schema["patternProperties"])
            texts = ({"type": "string", "pattern": pattern} for pattern in schema["patternProperties"])
            self._texts |= dict.fromkeys(orjson.dumps(text).decode() for text in texts)
        if isinstance(schema.get("$ref"), str):
            self._refs.append(schema["$ref"])

    def _note_costs(self, schema: dict[str, Any], place: SchemaPath) -> None:
        """Remember what is to be tried by itself: before it, an answer may be of any length."""
        text = {name: schema[name] for name in TEXT_BOUNDS if isinstance(schema.get(name), (str, int, float))}
        if place and text:
            self._texts[orjson.dumps({"type": "string"} | text).decode()] = None
        ambiguous = any(
            isinstance(schema.get(name), list) and sum(map(_open, schema[name])) > 1 for name in COMBINATORS
        )
        counted = any(isinstance(schema.get(name), (int, float)) for name in ITEM_COUNTS)
        long = isinstance(schema.get("enum"), list) and len(schema["enum"]) > LONG_ENUM
        if place and (ambiguous or counted or long):
            self._aside.append((schema, place))

    def _bound(self, what: str, count: float, allowed: int) -> None:
        if count > allowed:
            raise TooComplex(f"`{self._path}` has {count} {what}; at most {allowed} are allowed", self._path)

    def _check_refs(self) -> None:
        self._bound("`$ref`s", len(self._refs), self._limits.refs)
        for first in dict.fromkeys(self._refs):
            ref, chain = first, 0
            while True:
                target = self._resolve(ref)
                inner = target.get("$ref") if isinstance(target, dict) else None
                if not isinstance(inner, str):
                    break
                ref, chain = inner, chain + 1
                if chain > MAX_REF_CHAIN:
                    raise TooComplex(
                        f"`{self._path}` has a `$ref` ({first[:60]!r}) that leads through more than {MAX_REF_CHAIN} "
                        "others before anything is described",
                        self._path,
                    )

    def _resolve(self, ref: str) -> Any:
        target = self._root
        if ref != "#":
            if not ref.startswith("#/"):
                raise self._unresolved(ref, "only references within the schema (`#/...`) are resolved")
            for name in ref[2:].split("/"):
                name = name.replace("~1", "/").replace("~0", "~")
                if isinstance(target, dict) and name in target:
                    target = target[name]
                elif isinstance(target, list) and name.isdecimal() and int(name[:9]) < len(target):
                    target = target[int(name)]
                else:
                    raise self._unresolved(ref, "the schema has nothing at that place")
        return target

    def _unresolved(self, ref: str, why: str) -> BadRequest:
        return BadRequest(
            f"`{self._path}` has the `$ref` {ref[:60]!r}: {why}", param=self._path[:200], code="invalid_grammar"
        )

    def _check_patterns(self) -> list[GrammarPart]:
        limits = self._limits
        self._bound("regular expressions", len(self._patterns), limits.patterns)
        self._bound("characters in its regular expressions", sum(map(len, self._patterns)), limits.regex_chars)
        parts = []
        for pattern in self._patterns:
            analysis = analyse(pattern, f"{self._path} (pattern {pattern[:30]!r})", limits)
            self._expanded += analysis.states
            parts += [GrammarPart("pattern", part) for part in analysis.parts]
        self._bound("states with its lengths and patterns written out", self._expanded, limits.expanded)
        equal = {orjson.dumps(schema): place for schema, place in reversed(self._aside)}
        places = [place for branch, place in self._wide if self._may_be_expensive(branch)] + list(equal.values())[::-1]
        refs = [GrammarPart("ref", _pointer(place)) for place in dict.fromkeys(places)]
        self._bound("branches, counts and strings that are to be tried", len(refs) + len(self._texts), limits.parts * 4)
        return [*parts, *(GrammarPart("json", text) for text in self._texts), *refs]

    def _may_be_expensive(self, branch: Any) -> bool:
        """Whether a branch may cost more than its size tells."""
        text = orjson.dumps(branch)
        return any(f'"{name}"'.encode() in text for name in (*COMBINATORS, "pattern", "patternProperties", "$ref"))


def _open(branch: Any) -> bool:
    """Whether a branch takes more than a few fixed texts or a number: answers may fit several such branches at once."""
    plain = ("null", "boolean", "integer", "number")
    return isinstance(branch, dict) and not ({"const", "enum"} & branch.keys() or branch.get("type") in plain)


def _pointer(place: SchemaPath) -> str:
    """The JSON pointer of a place."""
    names: list[str] = []
    while place:
        place, name = place
        names.append(name.replace("~", "~0").replace("/", "~1"))
    return "/".join(["#", *reversed(names)])
