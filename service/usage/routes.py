"""The route ``/v1/usage`` and the models of its answer."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from service.access.caller import Caller
from service.access.http import caller
from service.http.schema import ApiModel, answers
from service.usage.report import Bucket, UsageQuery, UsageReport

MAX_NAME_CHARS: Final = 256
MAX_ID_CHARS: Final = 2048
MAX_TIME: Final = 2**40

router = APIRouter(prefix="/v1/usage", tags=["usage"])
Name = Annotated[str | None, Query(max_length=MAX_NAME_CHARS)]
Time = Annotated[int | None, Query(ge=0, le=MAX_TIME)]


class UsageRow(ApiModel):
    """Requests and tokens of one group; what it is not grouped by is left out."""

    object: Literal["usage"]
    id: str
    start: int
    end: int
    project: str = ""
    key: str = Field("", description="The key's id.")
    key_name: str | None = None
    adapter: str | None = Field(None, description="The base's name where the base answered; null where nothing did.")
    version: int | None = None
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class UsagePage(ApiModel):
    """A page of usage, over whole buckets of time."""

    object: Literal["list"]
    start: int
    end: int
    only_key: str | None = Field(description="Id of the key whose usage alone is in it; null: an admin's sees all.")
    data: list[UsageRow]
    has_more: bool


async def usage_report(request: Request) -> UsageReport:
    """The report service that the composition root put on the app."""
    report: UsageReport = request.app.state.usage_report
    return report


def usage_query(
    start: Time = None,
    end: Time = None,
    bucket: Bucket = "hour",
    project: Name = None,
    key: Name = None,
    adapter: Name = None,
    group_by: Annotated[list[Annotated[str, Query(max_length=MAX_NAME_CHARS)]] | None, Query(max_length=16)] = None,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> UsageQuery:
    """The query's parameters, which `/v1/costs` has, too."""
    by = None if group_by is None else [name for given in group_by for name in given.split(",") if name]
    return UsageQuery(start, end, bucket, by, project, key, adapter, after, limit)


Asked = Annotated[UsageQuery, Depends(usage_query)]


@router.get("", responses=answers(UsagePage))
async def get_usage(
    who: Annotated[Caller, Depends(caller)], report: Annotated[UsageReport, Depends(usage_report)], query: Asked
) -> dict[str, Any]:
    """Usage of the last 24 hours, or from ``start`` to ``end``; a key that is no admin's sees its own.

    ``group_by`` may be given again or hold several names with commas; `hour` among them stands for the time bucket,
    whatever its width. Left out it is all of them; empty, everything is added up in one row.
    """
    return await report.read(who, query)
