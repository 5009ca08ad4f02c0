"""The route ``/v1/usage``."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request

from service.access.caller import Caller
from service.access.http import caller
from service.http.schema import answers
from service.usage.report import Bucket, UsageQuery, UsageReport
from service.usage.schemas import UsagePage

MAX_NAME_CHARS: Final = 256
MAX_ID_CHARS: Final = 2048
MAX_TIME: Final = 2**40

router = APIRouter(prefix="/v1/usage", tags=["usage"])
Name = Annotated[str | None, Query(max_length=MAX_NAME_CHARS)]
Time = Annotated[int | None, Query(ge=0, le=MAX_TIME)]


async def usage_report(request: Request) -> UsageReport:
    """The report that the composition root put on the app."""
    report: UsageReport = request.app.state.usage_report
    return report


@router.get("", responses=answers(UsagePage))
async def get_usage(
    who: Annotated[Caller, Depends(caller)],
    report: Annotated[UsageReport, Depends(usage_report)],
    start: Time = None,
    end: Time = None,
    bucket: Bucket = "hour",
    project: Name = None,
    key: Name = None,
    adapter: Name = None,
    group_by: Annotated[list[Annotated[str, Query(max_length=MAX_NAME_CHARS)]] | None, Query(max_length=16)] = None,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Usage of the last 24 hours, or from ``start`` to ``end``; a key that is no admin's sees its own.

    ``group_by`` may be given again or hold several names with commas; `hour` among them stands for the time bucket,
    whatever its width. Left out it is all of them; empty, everything is added up in one row.
    """
    by = None if group_by is None else [name for given in group_by for name in given.split(",") if name]
    query = UsageQuery(
        start=start,
        end=end,
        bucket=bucket,
        by=by,
        project=project,
        key=key,
        adapter=adapter,
        after=after,
        limit=limit,
    )
    return await report.read(who, query)
