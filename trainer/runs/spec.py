"""What the specs of all kinds of run share: whose run it is, where the gateway is, and what the operator has set."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.config import Settings
from trainer.installation import Installation
from trainer.runs.protocol import Frozen


class RunSpec(Frozen):
    """What a worker of any kind must know. The gateway has authorised every object that a spec names."""

    id: str
    project: str
    created_at: int
    gateway: str
    """The gateway's URL."""
    base_name: str


class TrainingRunSpec(RunSpec):
    """A run that trains, or starts runs that do: the base, and the operator's settings when the run was created."""

    base_dir: Path
    max_rank: int
    """The engine's `--max-lora-rank`."""
    context: int | None
    """The engine's context in tokens; None for the base's own."""
    dtype: str = "bfloat16"
    """The engine's dtype."""
    device: str = "auto"
    checkpoint_s: float = 60.0
    yield_above: int = 0
    """The worker pauses between steps while more callers' requests than this wait or are in flight, …"""
    yield_most_s: float = 30.0
    """… for at most this long at a time."""


def run_spec(run_id: str, project: str, installation: Installation) -> RunSpec:
    """The spec of a run that is created now."""
    return RunSpec(
        id=run_id,
        project=project,
        created_at=int(time.time()),
        gateway=installation.gateway,
        base_name=installation.base_name,
    )


def training_run_spec(run_id: str, project: str, installation: Installation, settings: Settings) -> TrainingRunSpec:
    """The spec of a run that is created now, and that trains."""
    return TrainingRunSpec(
        **dict(run_spec(run_id, project, installation)),
        base_dir=installation.base,
        max_rank=installation.max_rank,
        context=installation.context,
        dtype=installation.dtype,
        device=settings.device,
        checkpoint_s=settings.checkpoint_s,
        yield_above=settings.yield_above,
        yield_most_s=settings.yield_most_s,
    )
