"""The id by which a caller stays with one version while an alias is split over several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.errors import BadRequest
from service.inference.values import MAX_HINT_CHARS

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
