"""What the routes of every kind of run share: creating, listing, reading and controlling runs, and their reports."""

# no `from __future__ import annotations`: FastAPI could not resolve types that are made inside a function

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse, Response

from adapters.protocol.runs import REPLAYED_HEADER, RUN_KEY_HEADER, RUN_KEY_ID_HEADER
from trainer.http import DEFAULT_LISTED, After, Caller, Limit
from trainer.runs.service import RunKey, RunService

Action = Literal["get", "cancel", "pause", "resume"]
PAGE_HEADERS: Final = {
    # nothing of the page may load, run or send anything, whatever a model or a data file has put into it
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "sandbox"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "private, no-cache",
}


@dataclass(frozen=True, slots=True)
class CreationHeaders:
    """What the headers of a run's creation say."""

    key: RunKey
    idempotency_key: str | None


async def creation_headers(
    job_key: Annotated[str, Header(alias=RUN_KEY_HEADER, max_length=256)],
    job_key_id: Annotated[str, Header(alias=RUN_KEY_ID_HEADER, max_length=128)],
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> CreationHeaders:
    """The gateway's key for the run, and the client's Idempotency-Key."""
    return CreationHeaders(RunKey(job_key, job_key_id), idempotency_key)


Creation = Annotated[CreationHeaders, Depends(creation_headers)]


def created(run: dict[str, Any], replayed: bool) -> JSONResponse:
    """The answer to a creation; ``replayed``: the run was there already."""
    return JSONResponse(run, headers={REPLAYED_HEADER: "true"} if replayed else None)


RunsOf = Callable[[Request], Awaitable[RunService]]
"""A dependency: the runs of one kind."""


def add_list_route(router: APIRouter, path: str, service: RunsOf) -> None:
    """Add a route that lists the project's runs of a kind, newest first."""
    Runs = Annotated[RunService, Depends(service)]

    async def list_runs(
        caller: Caller, runs: Runs, after: After = None, limit: Limit = DEFAULT_LISTED
    ) -> dict[str, Any]:
        return await runs.page(caller, after=after, limit=limit)

    router.add_api_route(path, list_runs, methods=["GET"], name="list")


def add_report_routes(router: APIRouter, path: str, service: RunsOf, *, report: str, page: str) -> None:
    """Add the routes of a run's report, as JSON and as a page.

    Args:
        path: Of one run, as for `add_run_routes`.
        report, page: The names of the files in the run's directory.
    """
    RunId = Annotated[str, Path(alias=_id_in(path))]
    Runs = Annotated[RunService, Depends(service)]

    async def get_report(run_id: RunId, caller: Caller, runs: Runs) -> Response:
        return Response(await runs.output(caller, run_id, report), media_type="application/json")

    async def get_report_page(run_id: RunId, caller: Caller, runs: Runs) -> Response:
        return Response(await runs.output(caller, run_id, page), media_type="text/html", headers=PAGE_HEADERS)

    router.add_api_route(f"{path}/report", get_report, methods=["GET"], name="report")
    router.add_api_route(f"{path}/report.html", get_report_page, methods=["GET"], name="report page")


def add_run_routes(router: APIRouter, path: str, service: RunsOf, *actions: Action) -> None:
    """Add a route for each action on one run: GET for `get`, else POST to the action's name below it.

    Args:
        path: Of one run; its last part is the id, such as `/jobs/{job_id}`.
    """
    RunId = Annotated[str, Path(alias=_id_in(path))]
    Runs = Annotated[RunService, Depends(service)]

    def endpoint(action: Action) -> Callable[..., Coroutine[Any, Any, dict[str, Any]]]:
        async def act(run_id: RunId, caller: Caller, runs: Runs) -> dict[str, Any]:
            answer: dict[str, Any] = await getattr(runs, action)(caller, run_id)
            return answer

        return act

    for action in actions:
        method, below = ("GET", "") if action == "get" else ("POST", f"/{action}")
        router.add_api_route(path + below, endpoint(action), methods=[method], name=action)


def _id_in(path: str) -> str:
    """The name of the id, the last part of a run's path."""
    return path.rpartition("/")[2].strip("{}")
