"""The field `grounding` of a request, and what it and the version's settings say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.access.caller import NO_FILTERS, FilterValue
from service.errors import BadRequest
from service.grounding.config import (
    EMBEDDED,
    MAX_ATTRIBUTE_CHARS,
    MAX_FILTER_BYTES,
    MAX_PASSAGE_TOKENS,
    MAX_REQUIRED_FILTERS,
    MAX_RESULTS,
    MAX_STORE_ID_CHARS,
    MAX_STORES_NAMED,
    MAX_TIMEOUT_S,
    MIN_PASSAGE_TOKENS,
    NO_TEMPLATE,
    PASSAGES,
    PROVIDER_NAME,
    TURNS,
    GroundingSettings,
    InsertAs,
)
from service.grounding.file_search import FileSearch
from service.grounding.filters import check_filters
from service.grounding.provider import Filters
from service.grounding.required_filters import required_values, restrict, without_values
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
        "required_filters": list_of(text(MAX_ATTRIBUTE_CHARS), min_items=1, max_items=MAX_REQUIRED_FILTERS),
        "score_threshold": number(0, 1),
        "insert_as": one_of(PASSAGES, TURNS),
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
class RetrievalOptions:
    """What to retrieve for one request, and what to do when retrieval fails.

    Attributes:
        requested: True if the request itself has the field `grounding`, not only its version's settings.
        provider_requested: True if the request names the provider, or no version's settings do and the default applies.
        provider: The provider's name.
        store_ids: Vector stores to search; empty for a provider without stores.
        k: Maximum number of passages.
        filters: OpenAI's filter on file attributes, with the required ones; None: no filter.
        required: The attributes that every passage must have, and their values.
        threshold: Minimum score, 0 to 1; None: no minimum.
        insert_as: `passages` or `turns`.
        template: The prompt template, see ``service.grounding.template``.
        max_passage_tokens: Upper bound on the tokens of all passages together.
        on_failure: `fail_open` or `fail_closed`; None: the gateway's setting.
        timeout_s: Time limit for the provider, s; None: the gateway's setting.
        file_search: The tool that says so instead of the field `grounding`; None: the request has none.
    """

    requested: bool
    provider_requested: bool
    provider: str
    store_ids: tuple[str, ...]
    k: int
    filters: Filters | None
    required: Mapping[str, FilterValue]
    threshold: float | None
    insert_as: InsertAs
    template: str
    max_passage_tokens: int
    on_failure: str | None
    timeout_s: float | None
    file_search: FileSearch | None = None

    @property
    def path(self) -> str:
        """The request's field that names the stores, for errors."""
        return FIELD if self.file_search is None else self.file_search.path


_NOTHING: Final = GroundingSettings()


def retrieval_options(
    grounding: Any,
    settings: GroundingSettings | None,
    key_filters: Mapping[str, FilterValue] = NO_FILTERS,
    file_search: FileSearch | None = None,
) -> RetrievalOptions | None:
    """Merge the request's checked `grounding` with its version's settings; None: nothing is retrieved.

    Args:
        grounding: The request's field. False turns retrieval off; None (absent) leaves the version's settings. If those
            name no store, requests without the field are not grounded.
            A request whose only member is `filters` narrows a search, and asks for none by itself.
        settings: The version's settings; None: it has none.
        key_filters: What the API key restricts every search to.
        file_search: The tool that says the same as a field `grounding`; there is not both.

    Raises:
        BadRequest: Neither the request nor the version names a store, and the embedded provider needs one; a value of
            a required filter is missing; or a template is given for what is not quoted.
        Forbidden: The request asks for another value than the key carries.
    """
    path = FIELD
    if file_search is not None:
        grounding, path = file_search.grounding(), file_search.path
    if grounding is False or (grounding is None and settings is None):
        return None
    defaults = settings or _NOTHING
    given: dict[str, Any] = {name: value for name, value in (grounding or {}).items() if value is not None}
    provider = given.get("provider", defaults.provider)
    same_provider = provider == defaults.provider
    stores = tuple(given.get("vector_store_ids", defaults.vector_store_ids if same_provider else ()))
    if not stores and provider == EMBEDDED:
        if grounding is None or set(given) == {"filters"}:
            return None
        param = f"{path}.vector_store_ids"
        raise BadRequest(f"`{param}` is missing", param=param, code="missing_required_parameter")
    # it says what the version's stores are; of the request's own nothing is known
    same_stores = same_provider and "vector_store_ids" not in given
    insert_as: InsertAs = given.get("insert_as", defaults.insert_as if same_stores else PASSAGES)
    if insert_as == TURNS and "template" in given:
        raise BadRequest(f"`{path}.template` {NO_TEMPLATE}", param=f"{path}.template")
    names = {*defaults.required_filters, *given.get("required_filters", ())}
    required = required_values(sorted(names), key_filters, given.get("filters"), f"{path}.filters")
    own_filters = without_values(given.get("filters"), names)
    return RetrievalOptions(
        requested=grounding is not None,
        provider_requested="provider" in given or settings is None,
        provider=provider,
        store_ids=tuple(dict.fromkeys(stores)),
        k=given.get("max_num_results", defaults.max_num_results),
        filters=restrict(defaults.filters if own_filters is None else own_filters, required),
        required=required,
        threshold=given.get("score_threshold", defaults.score_threshold),
        insert_as=insert_as,
        template=given.get("template", defaults.template) or DEFAULT_TEMPLATE,
        max_passage_tokens=given.get("max_passage_tokens", defaults.max_passage_tokens),
        on_failure=given.get("on_failure", defaults.on_failure),
        timeout_s=given.get("timeout_s", defaults.timeout_s),
        file_search=file_search,
    )
