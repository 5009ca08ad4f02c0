r"""`rank_pattern` and `alpha_pattern`: overrides for modules, keyed by a name or by a regular expression for names.

PEFT and the engine both match a key with `re.match(rf"(.*\.)?({key})$", module)` and take the first that matches, in
the order of the file (PEFT: `peft/utils/other.py:get_pattern_key`). Keys are untrusted and are matched against every
module, here and in the engine's worker, so only keys that cannot backtrack exponentially are accepted: names, dots,
`\d` and classes, at most MAX_REPEATS repeats of a single character, and at most MAX_GROUPS flat groups of
alternatives. No group is ever repeated, and nothing nests.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from adapters.errors import ConfigInvalid, PatternUnsupported

MAX_PATTERNS: Final = 1024
"""Keys in one table. PEFT's EVA writes one for each module: 560 for 80 layers of seven."""

MAX_PATTERN_LENGTH: Final = 65_536
"""Characters in one key: `condense` joins the names of all modules that share a value with `|`."""

MAX_EXPRESSION_LENGTH: Final = 256
MAX_EXPRESSIONS: Final = 32
"""Keys in one table that are not plain names."""

MAX_REPEATS: Final = 2
MAX_GROUPS: Final = 2

MAX_VALUES: Final = 256
"""Different values in one table. The engine's regular expression cache holds 500 keys; above that it compiles each key
again for each module, and an adapter with many keys would hold up every other request while it loads."""

V = TypeVar("V", int, float)

_ATOM: Final = r"(?:[A-Za-z0-9_-]|\\[.d_-]|\.|\[[A-Za-z0-9_-]+\])"
_REPEAT: Final = re.compile(rf"{_ATOM}[*+?]")
_GROUP: Final = rf"\((?:\?:)?{_ATOM}*(?:\|{_ATOM}*)*\)"
_EXPRESSION: Final = re.compile(rf"\^?(?:{_GROUP}|{_ATOM}[*+?]?)+\$?", re.ASCII)
_NAME: Final = r"\^?(?:[A-Za-z0-9_]|\\?-)+(?:\\?\.(?:[A-Za-z0-9_]|\\?-)+)*\$?"
_NAMES: Final = re.compile(rf"{_NAME}(?:\|{_NAME})*", re.ASCII)


def check_patterns(keys: Iterable[str], *, param: str) -> None:
    """Raise PatternUnsupported for a key that is not safe to match, ConfigInvalid for too many keys."""
    keys = list(keys)
    if len(keys) > MAX_PATTERNS:
        raise ConfigInvalid(f"{param} has {len(keys)} keys; at most {MAX_PATTERNS} are allowed.", param=param)
    expressions = 0
    for key in keys:
        if len(key) > MAX_PATTERN_LENGTH:
            raise PatternUnsupported(f"A key of {param} is longer than {MAX_PATTERN_LENGTH} characters.", param=param)
        if _NAMES.fullmatch(key):
            continue
        expressions += 1
        if not _is_cheap(key):
            raise PatternUnsupported(
                f"{param}: {key!r} is neither a module name nor an expression of names, dots, \\d, classes, at most "
                f"{MAX_REPEATS} repeats and {MAX_GROUPS} flat groups.",
                param=param,
                details={"pattern": key},
            )
    if expressions > MAX_EXPRESSIONS:
        raise PatternUnsupported(
            f"{param} has {expressions} regular expressions; at most {MAX_EXPRESSIONS} are allowed.", param=param
        )


def _is_cheap(key: str) -> bool:
    if len(key) > MAX_EXPRESSION_LENGTH or _EXPRESSION.fullmatch(key) is None:
        return False
    if key.count("(") > MAX_GROUPS or len(_REPEAT.findall(key)) > MAX_REPEATS:
        return False
    try:
        re.compile(key)  # a class such as [z-a] matches the grammar but is invalid
    except re.error:
        return False
    return True


def match_all(patterns: Mapping[str, V], modules: Iterable[str], *, default: V) -> dict[str, V]:
    """The value of each module: that of the first key that matches, else `default`. Keys must have been checked."""
    compiled = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in patterns.items()]
    return {module: next((v for p, v in compiled if p.match(module)), default) for module in modules}


def condense(values: Mapping[str, V], *, param: str) -> tuple[V, dict[str, V]]:
    """The shortest equivalent table: the most common value as default, and one key for each other value.

    Equal `values` give equal tables whatever the keys were that they came from. The keys match no two of the modules
    differently, so their order means nothing. Raises ConfigInvalid for more than MAX_VALUES different values.
    """
    counts = Counter(values.values())
    default = max(counts, key=lambda value: (counts[value], value))
    by_leaf: dict[str, set[V]] = {}
    for module, value in values.items():
        by_leaf.setdefault(module.rpartition(".")[2], set()).add(value)
    names: dict[V, set[str]] = {}
    for module, value in values.items():
        leaf = module.rpartition(".")[2]
        if value != default:
            names.setdefault(value, set()).add(leaf if len(by_leaf[leaf]) == 1 else module)
    if len(names) > MAX_VALUES:
        raise ConfigInvalid(
            f"{param} sets {len(names)} different values; at most {MAX_VALUES} are allowed.", param=param
        )
    table = {"|".join(re.escape(name) for name in sorted(group)): value for value, group in names.items()}
    return default, dict(sorted(table.items()))
