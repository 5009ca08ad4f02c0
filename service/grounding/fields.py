"""The field `grounding` of a request, and what it and the version's settings say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from service.errors import BadRequest
from service.grounding.config import (
    EMBEDDED,
    MAX_FILTER_BYTES,
    MAX_PASSAGE_TOKENS,
    MAX_RESULTS,
    MAX_STORE_ID_CHARS,
    MAX_STORES_NAMED,
    MAX_TIMEOUT_S,
    MIN_PASSAGE_TOKENS,
    PROVIDER_NAME,
    GroundingSettings,
)
from service.grounding.filters import check_filters
from service.grounding.provider import Filters
from service.grounding.template import DEFAULT_TEMPLATE, check_template
from service.http.checks import (
    fields,
    integer,
    invalid_value,
    list_of,
    number,
    one_of,
    schema_of,
    sized,
    text,
    with_schema,
)

FIELD: Final = "grounding"
STORES_PARAM: Final = "grounding.vector_store_ids"
PROVIDER_PARAM: Final = "grounding.provider"


def _provider(value: Any, path: str) -> None:
    text(64)(value, path)
    if not PROVIDER_NAME.fullmatch(value):
        raise invalid_value(path, value, "a provider's name")


def _filters(value: Any, path: str) -> None:
    check_filters(value, path)


def _template(value: Any, path: str) -> None:
    text()(value, path)
    try:
        check_template(value)
    except ValueError as error:
        raise BadRequest(f"`{path}` {error}", param=path) from None


def _timeout(value: Any, path: str) -> None:
    number(0, MAX_TIMEOUT_S)(value, path)
    if value == 0:
        raise invalid_value(path, value, f"a number above 0 and up to {MAX_TIMEOUT_S:g}")


_object = fields(
    {
        "vector_store_ids": list_of(text(MAX_STORE_ID_CHARS), min_items=1, max_items=MAX_STORES_NAMED),
        "max_num_results": integer(1, MAX_RESULTS),
        "filters": sized(MAX_FILTER_BYTES, _filters),
        "score_threshold": number(0, 1),
        "provider": _provider,
        "template": _template,
        "max_passage_tokens": integer(MIN_PASSAGE_TOKENS, MAX_PASSAGE_TOKENS),
        "on_failure": one_of("fail_open", "fail_closed"),
        "timeout_s": _timeout,
    }
)


def check_grounding(value: Any, path: str) -> None:
    """`false`, or an object with the members that a version's settings have: the base can be asked with those of a
    version.

    Raises:
        BadRequest: A value is not allowed.
        UnknownField: The object has another member.
    """
    if value is False:
        return
    if not isinstance(value, dict):
        raise invalid_value(path, value, "false or an object")
    _object(value, path)


with_schema(check_grounding, {"anyOf": [{"const": False}, schema_of(_object)]})


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be retrieved for one request, from where, and what happens where it cannot be.

    ``asked``: the request itself says so, not its version alone; ``provider_asked``: it names the provider, too, or
    there is no version that does, and the default is meant.
    """

    asked: bool
    provider_asked: bool
    provider: str
    store_ids: tuple[str, ...]
    k: int
    filters: Filters | None
    threshold: float | None
    template: str
    max_passage_tokens: int
    on_failure: str | None
    timeout_s: float | None


_NOTHING: Final = GroundingSettings()


def wish_of(asked: Any, settings: GroundingSettings | None) -> Wish | None:
    """The request's checked `grounding` over its version's settings; None: nothing is retrieved.

    Args:
        asked: None where the request says nothing, then the version's settings count alone; where they name no store
            either, they are for the requests that do.

    Raises:
        BadRequest: The request says nothing of which stores to look in, nor its version, and the embedded provider
            needs that.
    """
    if asked is False or (asked is None and settings is None):
        return None
    version = settings or _NOTHING
    own: dict[str, Any] = {name: value for name, value in (asked or {}).items() if value is not None}
    provider = own.get("provider", version.provider)
    same = provider == version.provider
    stores = tuple(own.get("vector_store_ids", version.vector_store_ids if same else ()))
    if not stores and provider == EMBEDDED:
        if asked is None:
            return None
        raise BadRequest(f"`{STORES_PARAM}` is missing", param=STORES_PARAM, code="missing_required_parameter")
    return Wish(
        asked=asked is not None,
        provider_asked="provider" in own or settings is None,
        provider=provider,
        store_ids=tuple(dict.fromkeys(stores)),
        k=own.get("max_num_results", version.max_num_results),
        filters=own.get("filters", version.filters),
        threshold=own.get("score_threshold", version.score_threshold),
        template=own.get("template", version.template) or DEFAULT_TEMPLATE,
        max_passage_tokens=own.get("max_passage_tokens", version.max_passage_tokens),
        on_failure=own.get("on_failure", version.on_failure),
        timeout_s=own.get("timeout_s", version.timeout_s),
    )
