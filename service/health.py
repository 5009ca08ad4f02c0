"""Liveness and readiness; neither needs a key."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from service import __version__
from service.engine.watched import EngineState, StateName
from service.fleet import EngineParts, Fleet
from service.fronts.sessions import FrontSessions
from service.http.schema import ApiModel, answers
from service.server.stopping import Stopping
from service.training.watch import State as TrainerState
from service.training.watch import TrainerWatch


class Health(ApiModel):
    """The gateway process is up."""

    status: Literal["ok"]
    version: str


class EngineHealth(ApiModel):
    """The engine's state, the reason for it, and its start (Unix seconds)."""

    state: StateName
    reason: str
    since: float


class NamedEngineHealth(EngineHealth):
    """One of several engines."""

    name: str
    base: str = Field(description="Name under which its base is served.")
    fingerprint: str = Field(description="Digest of its base and of its settings that affect the output.")


class FrontHealth(ApiModel):
    """A front that is connected, and since when (Unix seconds)."""

    name: str
    since: float


class TrainerHealth(ApiModel):
    """The trainer's state."""

    state: TrainerState = Field(
        description="`off`: not configured; `starting`: it has not answered yet; `down`: it has stopped answering."
    )


class Readiness(ApiModel):
    """Whether the gateway serves requests, with the states of the engine and the trainer."""

    status: StateName | Literal["stopping"] = Field(
        description="The engine's state, or `stopping`: requests are answered, but not for long "
        "(`HATRACK_STOP_DELAY_S`)."
    )
    base: str
    fingerprint: str = Field(
        description="Digest of the base model and of the engine's settings that affect its output."
    )
    engine: EngineHealth
    engines: list[NamedEngineHealth] | None = Field(
        None, description="Where there are several (`HATRACK_ENGINES`): each one's state. One that is ready is enough."
    )
    trainer: TrainerHealth
    fronts: list[FrontHealth] | None = Field(
        None, description="Where fronts may connect (`HATRACK_FRONT_KEY`): those that are connected."
    )


def health(
    fleet: Fleet, trainer: TrainerWatch, fronts: FrontSessions | None = None, stopping: Stopping | None = None
) -> APIRouter:
    """Build the routes.

    Args:
        fleet: Its engines' states decide readiness.
        trainer: Its state is shown only.
        fronts: Those that are connected are shown; None: there can be none.
        stopping: Whether this process was told to stop; None: nothing tells.
    """
    base = fleet.bases.default
    router = APIRouter(tags=["health"])

    @router.get("/healthz", responses=answers(Health))
    async def healthz() -> dict[str, str]:
        """Liveness; needs no key."""
        return {"status": "ok", "version": __version__}

    @router.get("/health", responses=answers(Readiness) | answers(Readiness, status=503), operation_id="health")
    @router.get("/readyz", responses=answers(Readiness) | answers(Readiness, status=503))
    async def readyz() -> JSONResponse:
        """Readiness: 200 if the engine (of several, any) answers, else 503 with its state and the reason, or because
        the gateway is about to stop; needs no key. `/health` is the same, under the name that vLLM's clients ask
        for."""
        is_stopping = stopping is not None and stopping.began
        state, ready = fleet.state, fleet.ready and not is_stopping
        body: dict[str, Any] = {
            "status": "ready" if ready else "stopping" if is_stopping else state.name,
            "base": base.name,
            "fingerprint": base.fingerprint.digest,
            "engine": _shown(state),
            "trainer": {"state": trainer.state},
        }
        if fleet.default.label is not None:
            body["engines"] = [_named(each) for each in fleet.parts]
        if fronts is not None:
            body["fronts"] = [{"name": front.name, "since": front.since} for front in fronts.connected]
        return JSONResponse(body, 200 if ready else 503, {} if ready else {"retry-after": "5"})

    return router


def _shown(state: EngineState) -> dict[str, Any]:
    return {"state": state.name, "reason": state.reason, "since": state.since}


def _named(each: EngineParts) -> dict[str, Any]:
    about = {"name": each.label, "base": each.base.served_name, "fingerprint": each.base.fingerprint.digest}
    return {**about, **_shown(each.watched.state)}
