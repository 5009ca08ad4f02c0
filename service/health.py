"""Liveness and readiness; neither needs a key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from service import __version__
from service.engine.watched import StateName, WatchedEngine
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
    trainer: TrainerHealth


def health(engine: WatchedEngine, trainer: TrainerWatch, base: str, fingerprint: str) -> APIRouter:
    """Build the routes.

    Args:
        engine: Its state decides readiness.
        trainer: Its state is shown only.
        base: Name under which the base is served.
        fingerprint: Digest of the base and of how it is served.
    """
    router = APIRouter(tags=["health"])

    @router.get("/healthz", responses=answers(Health))
    async def healthz() -> dict[str, str]:
        """Liveness; needs no key."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz", responses=answers(Readiness) | answers(Readiness, status=503))
    async def readyz() -> JSONResponse:
        """Readiness: 200 if the engine answers, else 503 with its state and the reason; needs no key."""
        state = engine.state
        body = {
            "status": "ready" if engine.ready else state.name,
            "base": base,
            "fingerprint": fingerprint,
            "engine": {"state": state.name, "reason": state.reason, "since": state.since},
            "trainer": {"state": trainer.state},
        }
        return JSONResponse(body, 200 if engine.ready else 503, {} if engine.ready else {"retry-after": "5"})

    return router
