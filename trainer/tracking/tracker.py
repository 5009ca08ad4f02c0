"""What every tracker does: the seam between a job's events and MLflow or Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class TrackedJob:
    """A job as a tracker shows it.

    ``place`` is the experiment in MLflow, the project in Weights & Biases; it begins with the job's project.
    ``options`` are the request's for this tracker. ``params`` are empty before the job has a plan. ``tags`` are known
    from the beginning, ``results`` at the end; numbers among them are shown as such where the tracker can.
    """

    id: str
    place: str
    name: str
    created_at: int
    options: Mapping[str, Any]
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str | float] = field(default_factory=dict)
    status: str = "running"
    """`running`, `succeeded`, `failed` or `cancelled`."""
    finished_at: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """The metrics of a step; ``at`` in Unix seconds."""

    step: int
    at: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """A tracking server, or a package that speaks with one. Each call may be repeated, with the same outcome."""

    name: ClassVar[str]
    """The integration's `type`."""
    title: ClassVar[str]
    """As people know it."""

    async def open(self, job: TrackedJob) -> str:
        """Create the job's run with its params and tags, or find it; returns the tracker's id of it.

        Raises:
            TrackerFailed: The tracker did not do it, now.
        """

    async def log(self, job: TrackedJob, run_id: str, points: Sequence[Point]) -> None:
        """Add metrics. Raises TrackerFailed."""

    async def finish(self, job: TrackedJob, run_id: str) -> None:
        """Record how the job ended. Raises TrackerFailed."""

    async def close(self) -> None:
        """Let go of connections and processes."""
