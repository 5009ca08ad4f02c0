"""What the routes of every kind of run share: how a run is made, shown, and told to end, stand still or go on."""

# no `from __future__ import annotations`: FastAPI could not resolve types that are made inside a function

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse

from adapters.protocol.runs import REPLAYED_HEADER, RUN_KEY_HEADER, RUN_KEY_ID_HEADER
from trainer.http import Caller
from trainer.runs.service import RunKey, RunService

Action = Literal["get", "cancel", "pause", "resume"]


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


def add_run_routes(
    router: APIRouter, path: str, service: Callable[[Request], Awaitable[RunService]], *actions: Action
) -> None:
    """Add a route for each action on one run: GET for `get`, else POST to the action's name below it.

    Args:
        path: Of one run; its last part is the id, such as `/jobs/{job_id}`.
        service: A dependency: the runs of that kind.
    """
    RunId = Annotated[str, Path(alias=path.rpartition("/")[2].strip("{}"))]
    Runs = Annotated[RunService, Depends(service)]

    def endpoint(action: Action) -> Callable[..., Coroutine[Any, Any, dict[str, Any]]]:
        async def act(run_id: RunId, caller: Caller, runs: Runs) -> dict[str, Any]:
            answer: dict[str, Any] = await getattr(runs, action)(caller, run_id)
            return answer

        return act

    for action in actions:
        method, below = ("GET", "") if action == "get" else ("POST", f"/{action}")
        router.add_api_route(path + below, endpoint(action), methods=[method], name=action)
