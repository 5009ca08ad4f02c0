"""What a request's model stands for, and the id by which a caller stays with one version of a split alias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.access.caller import Caller
from service.errors import BadRequest
from service.inference.values import MAX_HINT_CHARS
from service.registry.catalog import Catalog, Target

STICKY_HEADER = "x-hatrack-sticky"


def sticky(body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """The first of `safety_identifier`, `user`, `metadata.user_id` and the header `x-hatrack-sticky` that is set.

    None: none is set, and the version is drawn anew for each request. The body is not checked yet: a value that is
    not a string is ignored here, and rejected by the route's table afterwards.

    Args:
        body: The parsed request.
        headers: Its headers, names in lower case.

    Raises:
        BadRequest: The header is longer than MAX_HINT_CHARS characters.
    """
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    for value in (body.get("safety_identifier"), body.get("user"), user_id):
        if isinstance(value, str) and value:
            return value
    header = headers.get(STICKY_HEADER, "")
    if len(header) > MAX_HINT_CHARS:
        raise BadRequest(
            f"the header `{STICKY_HEADER}` has {len(header)} characters; the limit is {MAX_HINT_CHARS}",
            param=STICKY_HEADER,
        )
    return header or None


def resolve(catalog: Catalog, caller: Caller, body: dict[str, Any], headers: Mapping[str, str]) -> Target:
    """What the request's `model` and `adapter` stand for; takes both out of ``body``.

    Raises:
        BadRequest: One of them is missing or no string.
        HatrackError: As ``Catalog.resolve``.
    """
    model, adapter = body.pop("model", None), body.pop("adapter", None)
    if not isinstance(model, str):
        raise BadRequest("`model` must be a string", param="model", code="missing_required_parameter")
    if adapter is not None and not isinstance(adapter, str):
        raise BadRequest("`adapter` must be a string", param="adapter")
    if adapter is None and STICKY_HEADER not in headers:
        target = catalog.resolved(caller, model)
        if target is not None:
            return target
    return catalog.resolve(caller, model, adapter, sticky=sticky(body, headers))
