"""Asking a gateway for usage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypedDict

from service.client_wire import JsonObject

PAGE: Final = 1000


class UsageQuestion(TypedDict, total=False):
    """What of the usage is asked for; what is left out or None takes the gateway's default.

    ``start`` and ``end`` are Unix seconds, ``group_by`` any of `hour` (the time bucket), `project`, `key`, `adapter`,
    `version`; the rest are filters.
    """

    start: int | None
    end: int | None
    bucket: Literal["hour", "day"]
    group_by: Sequence[str] | None
    project: str | None
    key: str | None
    adapter: str | None


def all_pages(get: Callable[[dict[str, Any]], JsonObject], question: UsageQuestion) -> list[JsonObject]:
    """Every row, page after page.

    Args:
        get: Asks ``/v1/usage`` with query parameters; raises ClientError.
        question: The same for each page.
    """
    params: dict[str, Any] = {name: value for name, value in question.items() if value is not None}
    if "group_by" in params:
        params["group_by"] = ",".join(params["group_by"])
    found: list[JsonObject] = []
    while True:
        page = get({**params, "limit": PAGE})
        data = page.get("data", [])
        found.extend(data)
        if not page.get("has_more") or not data or data[-1]["id"] == params.get("after"):
            return found
        # the pages must be of one time, and the gateway's default moves with its clock
        params |= {"after": data[-1]["id"], "start": page["start"], "end": page["end"]}
