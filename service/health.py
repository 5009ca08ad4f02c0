"""Liveness and readiness; neither needs a key."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from service import __version__
from service.engine.watched import EngineState, StateName
from service.fleet import EngineParts, Fleet
from service.http.schema import ApiModel, answers
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


class TrainerHealth(ApiModel):
    """The trainer's state."""

    state: TrainerState = Field(
        description="`off`: not configured; `starting`: it has not answered yet; `down`: it has stopped answering."
    )


class Readiness(ApiModel):
    """Whether the gateway serves requests, with the states of the engine and the trainer."""

    status: StateName
    base: str
    fingerprint: str = Field(
        description="Digest of the base model and of the engine's settings that affect its output."
    )
    engine: EngineHealth
    engines: list[NamedEngineHealth] | None = Field(
        None, description="Where there are several (`HATRACK_ENGINES`): each one's state. One that is ready is enough."
    )
    trainer: TrainerHealth


def health(fleet: Fleet, trainer: TrainerWatch) -> APIRouter:
    """Build the routes.

    Args:
        fleet: Its engines' states decide readiness.
        trainer: Its state is shown only.
    """
    base = fleet.bases.default
    router = APIRouter(tags=["health"])

    @router.get("/healthz", responses=answers(Health))
    async def healthz() -> dict[str, str]:
        """Liveness; needs no key."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz", responses=answers(Readiness) | answers(Readiness, status=503))
    async def readyz() -> JSONResponse:
        """Readiness: 200 if the engine (of several, any) answers, else 503 with its state and the reason; needs no
        key."""
        state, ready = fleet.state, fleet.ready
        body: dict[str, Any] = {
            "status": "ready" if ready else state.name,
            "base": base.name,
            "fingerprint": base.fingerprint.digest,
            "engine": _shown(state),
            "trainer": {"state": trainer.state},
        }
        if fleet.default.label is not None:
            body["engines"] = [_named(each) for each in fleet.parts]
        return JSONResponse(body, 200 if ready else 503, {} if ready else {"retry-after": "5"})

    return router


def _shown(state: EngineState) -> dict[str, Any]:
    return {"state": state.name, "reason": state.reason, "since": state.since}


def _named(each: EngineParts) -> dict[str, Any]:
    about = {"name": each.label, "base": each.base.served_name, "fingerprint": each.base.fingerprint.digest}
    return {**about, **_shown(each.watched.state)}
