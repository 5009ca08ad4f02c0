"""What a run's worker does now, read from its last events: stage, steps, and the pace that they were measured at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from trainer.runs.state import Event

LAST_EVENTS: Final = 50
"""How many of a run's events tell what it does, and how fast."""
PauseReason = Literal["live_traffic", "gateway"]


@dataclass(frozen=True, slots=True)
class Activity:
    """What a run's worker does now.

    Attributes:
        stage: Such as "training"; None if it has not told yet.
        done: How many of ``total`` steps or items of the stage are done.
        seconds_left: Until the stage ends, at the measured pace; None if that is not known.
        pause: What it waits for, if it stands still, and its message.
    """

    stage: str | None = None
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None
    pause: tuple[PauseReason, str] | None = None


def activity(events: Sequence[Event], *, now: float | None = None) -> Activity:
    """What the worker of a run does now.

    Args:
        events: The run's last events, newest first.
        now: Unix seconds; None for the present.
    """
    now = time.time() if now is None else now
    doing = next((found for event in events if (found := _step(event, events)) is not None), Activity())
    newest = events[0] if events else None
    reason = None if newest is None else newest.data.get("waits_for")
    if newest is not None and reason is not None:
        return replace(doing, pause=(reason, newest.message), seconds_left=None)
    told_at = next((event.at for event in events if _step(event, events) is not None), now)
    if doing.seconds_left is not None:
        # what outlasts its own estimate is slower than it was measured: nothing is known then
        left = doing.seconds_left - max(0.0, now - told_at)
        doing = replace(doing, seconds_left=left if left > 0 else None)
    return doing


def _step(event: Event, events: Sequence[Event]) -> Activity | None:
    """What an event says of the progress; None if it says nothing of it."""
    data = event.data
    if event.type == "metrics" and "step" in data and "total_steps" in data:
        left = data.get("seconds_left")
        return Activity("training", int(data["step"]), int(data["total_steps"]), None if left is None else float(left))
    if "stage" in data and "done" in data and "total" in data:
        done, total = int(data["done"]), int(data["total"])
        return Activity(str(data["stage"]), done, total, _seconds_left(event, events))
    return None


def _seconds_left(newest: Event, events: Sequence[Event]) -> float | None:
    """How long the rest of a stage takes at the pace of its events; None if they show no progress."""
    same = [event for event in events if event.data.get("stage") == newest.data["stage"] and "done" in event.data]
    first = same[-1]
    done, seconds = int(newest.data["done"]) - int(first.data["done"]), newest.at - first.at
    if done <= 0 or seconds <= 0:
        return None
    return (int(newest.data["total"]) - int(newest.data["done"])) * seconds / done
