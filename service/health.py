"""Whether the process lives, and whether it answers; neither needs a key."""

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
    """The process lives."""

    status: Literal["ok"]
    version: str


class EngineHealth(ApiModel):
    """What the engine does now, why, and since when (Unix seconds)."""

    state: StateName
    reason: str
    since: float


class TrainerHealth(ApiModel):
    """Whether the trainer answers."""

    state: TrainerState = Field(description="`off`: there is to be none; `starting`: it has not answered yet.")


class Readiness(ApiModel):
    """Whether requests are answered, and what the engine and the trainer do."""

    status: StateName
    base: str
    fingerprint: str = Field(description="Digest of the base and of how the engine computes with it.")
    engine: EngineHealth
    trainer: TrainerHealth


def health(engine: WatchedEngine, trainer: TrainerWatch, base: str, fingerprint: str) -> APIRouter:
    """The routes.

    Args:
        base: The name that the base is served under.
        fingerprint: The base's.
    """
    router = APIRouter(tags=["health"])

    @router.get("/healthz", responses=answers(Health))
    async def healthz() -> dict[str, str]:
        """The process lives; needs no key."""
        return {"status": "ok", "version": __version__}

    @router.get("/readyz", responses=answers(Readiness) | answers(Readiness, status=503))
    async def readyz() -> JSONResponse:
        """Whether the engine answers, with what it is doing if not; needs no key."""
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
