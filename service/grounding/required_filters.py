"""Filters that a search must have: those that a version demands of each request, and those that an API key carries.

A version that demands `customer` takes its value from the request's own `filters` (a comparison `eq` that always holds,
alone or in an `and`) or from the key. Whatever else a filter says is joined to these values by `and`, so nothing in a
request can widen the search. A document that is for everyone says so: its attribute has the value ``EVERYONE``. One
without the attribute is found by nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from service.access.caller import FilterValue
from service.errors import BadRequest, Forbidden
from service.grounding.provider import Attribute, Filters

EVERYONE: Final = "*"
"""As a document's attribute: it is found with every value."""
MISSING: Final = "required_filter_missing"
NOT_ALLOWED: Final = "filter_not_allowed"


def required_values(
    names: Collection[str], key_filters: Mapping[str, FilterValue], filters: Filters | None, param: str
) -> dict[str, FilterValue]:
    """The value of each attribute that the version demands (``names``) or the key carries.

    Args:
        names: Attributes that the version, or the request itself, demands a value of.
        key_filters: The key's own values; they cannot be overridden.
        filters: The request's checked filter.
        param: The request's field, for errors.

    Raises:
        BadRequest: ``required_filter_missing``: a value is missing; or the request gives two of one attribute.
        Forbidden: ``filter_not_allowed``: the request gives another value than the key.
    """
    values = dict(key_filters)
    for name in dict.fromkeys((*key_filters, *names)):
        given = [condition["value"] for condition in _conditions(filters) if condition["key"] == name]
        if name in key_filters:
            if any(not same(value, key_filters[name]) for value in given):
                raise Forbidden(
                    f"`{param}` asks for another value of `{name}` than the API key carries; a request cannot override "
                    f"a key's filters: leave `{name}` out",
                    param=param,
                    code=NOT_ALLOWED,
                )
        elif not given or given[0] == "":
            raise _missing(name, param)
        elif any(not same(value, given[0]) for value in given):
            raise BadRequest(f"`{param}` gives two different values of `{name}`; send one", param=param)
        else:
            values[name] = given[0]
    return values


def restrict(filters: Filters | None, values: Mapping[str, FilterValue]) -> Filters | None:
    """``filters`` and, joined by `and`, that each attribute has its value or ``EVERYONE``."""
    conditions: list[Filters] = [
        {"type": "in", "key": name, "value": [value, EVERYONE]} for name, value in values.items()
    ]
    if filters is not None:
        conditions.append(filters)
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    return {"type": "and", "filters": conditions}


def without_values(filters: Filters | None, names: Collection[str]) -> Filters | None:
    """``filters`` without the comparisons that only give the values of ``names``; None if nothing is left.

    These values are searched for together with ``EVERYONE``, which the comparison itself would leave out.
    """
    if filters is None or (filters["type"] == "eq" and filters["key"] in names):
        return None
    if filters["type"] != "and":
        return filters
    rest = [part for part in (without_values(part, names) for part in filters["filters"]) if part is not None]
    return {"type": "and", "filters": rest} if rest else None


def allows(values: Mapping[str, FilterValue], attributes: Mapping[str, Attribute]) -> bool:
    """Whether a passage with these attributes may be used: each has its required value or ``EVERYONE``."""
    return all(
        name in attributes and (same(attributes[name], value) or attributes[name] == EVERYONE)
        for name, value in values.items()
    )


def same(first: Attribute, second: Attribute) -> bool:
    """Whether two values are equal as filters compare: values of different kinds never are."""
    return _kind(first) is _kind(second) and first == second


def _kind(value: Attribute) -> type:
    return bool if isinstance(value, bool) else str if isinstance(value, str) else float


def _conditions(filters: Filters | None) -> Iterator[Mapping[str, Any]]:
    """The comparisons `eq` that hold for all that the filter matches: itself, or those of an `and`."""
    if filters is None:
        return
    if filters["type"] == "eq":
        yield filters
    elif filters["type"] == "and":
        parts: Sequence[Filters] = filters["filters"]
        for part in parts:
            yield from _conditions(part)


def _missing(name: str, param: str) -> BadRequest:
    return BadRequest(
        f"this model requires a filter on `{name}`: send `{param}` with "
        f'{{"type": "eq", "key": "{name}", "value": …}}, alone or in an `and`, or use an API key that carries `{name}`',
        param=param,
        code=MISSING,
    )
