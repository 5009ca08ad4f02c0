"""What an unfinished run waits for: its place in the line, who goes first, and for how long as far as that is known.

Runs of other projects, and those whose adapters a caller may not use, are not named to it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import sqlalchemy as sa

from adapters.protocol.reports import RunAhead, Waiting
from trainer.database import Database
from trainer.http import CurrentCaller
from trainer.runs import journal, records
from trainer.runs.activity import LAST_EVENTS, Activity, activity
from trainer.runs.kind import AnyKind, Stage
from trainer.runs.protocol import Control
from trainer.runs.state import Run

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
NEXT: Final = 2
"""The place in the line of the run that starts when the one under way ends."""
ORDINALS: Final = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True, slots=True)
class Line:
    """The runs of one stage, in the order in which they get its worker.

    Attributes:
        ahead: The run that has the worker, and what it does; None if none has.
        waiting: The runs that wait for it.
    """

    ahead: tuple[Run, Activity] | None
    waiting: tuple[Run, ...]

    def position(self, run_id: str) -> int | None:
        """The place of a run that waits, from 1 and counting the one ahead; None if it is not in the line."""
        places = {run.id: place for place, run in enumerate(self.waiting, start=1 if self.ahead is None else NEXT)}
        return places.get(run_id)


class WaitingLines:
    """Tells what runs wait for.

    Args:
        working: Gives the runs that have a worker now, by id, with the worker's stage.
    """

    def __init__(self, database: Database, working: Callable[[], Mapping[str, Stage]]) -> None:
        self._database = database
        self._working = working
        self._announced: dict[str, int] = {}
        """Positions that events have told, by run."""

    async def of(self, kind: AnyKind, caller: CurrentCaller, runs: Sequence[Run]) -> dict[str, Waiting]:
        """What each of a kind's runs waits for, as this caller may know it; without those that wait for nothing."""
        working = self._working()
        found: dict[str, Waiting] = {}
        lines: dict[str, Line] = {}
        for run in runs:
            stage = next((stage for stage in kind.stages if stage.waits_as is run.status), None)
            if run.id in working:
                waiting = _standing_still(await self._activity(kind, run))
            elif stage is None or run.over or run.wanted is not Control.RUN:
                waiting = None
            elif run.not_before > time.time():
                waiting = _restarting(run.not_before - time.time())
            else:
                if stage.name not in lines:
                    lines[stage.name] = await self._line(kind, stage, working)
                waiting = _turn(lines[stage.name], run, caller)
            if waiting is not None:
                found[run.id] = waiting
        return found

    async def announce(self, kind: AnyKind) -> None:
        """Record an event on each run that has come into a line, or has become the next to start."""
        working = self._working()
        present: set[str] = set()
        for stage in kind.stages:
            line = await self._line(kind, stage, working, with_activity=False)
            for run in line.waiting:
                position = line.position(run.id) or 0
                present.add(run.id)
                if position >= NEXT and (run.id not in self._announced or position == NEXT != self._announced[run.id]):
                    self._announced[run.id] = position
                    message = f"{ordinal(position)} in line for its turn"
                    message += ": it starts next" if position == NEXT else ""
                    await self._database.run(partial(_tell, run=run, message=message, position=position))
        for run_id in [run_id for run_id in self._announced if run_id.startswith(kind.id_prefix)]:
            if run_id not in present:
                del self._announced[run_id]

    async def _line(
        self, kind: AnyKind, stage: Stage, working: Mapping[str, Stage], *, with_activity: bool = True
    ) -> Line:
        ids = [run_id for run_id, at in working.items() if at is stage]

        def read(db: sa.Connection) -> tuple[list[Run], dict[str, float], Run | None]:
            waiting = [
                run
                for run in records.with_status(db, {stage.waits_as})
                if run.kind == kind.name and run.wanted is Control.RUN and run.id not in ids
            ]
            turns = records.last_turns(db, kind.name, stage.turn) if len(waiting) > 1 else {}
            return waiting, turns, records.get(db, ids[0]) if ids else None

        waiting, turns, ahead = await self._database.run(read)
        doing = await self._activity(kind, ahead) if ahead is not None and with_activity else Activity()
        return Line(None if ahead is None else (ahead, doing), tuple(in_turn(waiting, turns)))

    async def _activity(self, kind: AnyKind, run: Run) -> Activity:
        events = await self._database.run(lambda db: journal.newest(db, run.id, before=None, limit=LAST_EVENTS))
        return await asyncio.to_thread(kind.activity, run, activity(events))


def _tell(db: sa.Connection, run: Run, message: str, position: int) -> None:
    current = records.get(db, run.id)
    if current.status is run.status:  # it may have started, or have been cancelled, meanwhile
        journal.record_event(db, current, message, position=position)


def in_turn(waiting: Collection[Run], last_turns: Mapping[str, float]) -> list[Run]:
    """Runs in the order in which `records.take_next` takes them, if no other comes.

    Args:
        waiting: Of one kind and stage.
        last_turns: When each project's last turn was, Unix seconds.
    """
    queues: dict[str, deque[Run]] = defaultdict(deque)
    for run in sorted(waiting, key=lambda run: (not run.interrupted, run.queued_at, run.number)):
        queues[run.project].append(run)
    turns = {project: last_turns.get(project, 0.0) for project in queues}
    later = max(turns.values(), default=0.0)
    order: list[Run] = []
    while queues:
        heads = [queue[0] for queue in queues.values()]
        run = min(heads, key=lambda run: (not run.interrupted, turns[run.project], run.queued_at, run.number))
        later += 1.0
        turns[run.project] = later
        order.append(queues[run.project].popleft())
        if not queues[run.project]:
            del queues[run.project]
    return order


def _turn(line: Line, run: Run, caller: CurrentCaller) -> Waiting | None:
    position = line.position(run.id)
    if position is None or position < NEXT:
        return None  # it is about to start
    first, doing = line.ahead if line.ahead is not None else (line.waiting[0], None)
    known = caller.may_see(first.ownership)
    behind = RunAhead(
        id=first.id if known else None,
        adapters=first.adapters if known else (),
        stage=doing.stage if known and doing is not None else None,
        done=doing.done if known and doing is not None else None,
        total=doing.total if known and doing is not None else None,
        seconds_left=None if doing is None or doing.seconds_left is None else round(doing.seconds_left, 1),
    )
    name = ", ".join(first.adapters) or first.id
    whose = (
        name
        if known
        else ("another run of the project" if first.project == caller.project else "another project's run")
    )
    progress = "which is about to start" if doing is None else describe(doing, named=known)
    message = f"{ordinal(position)} in line behind {whose}, {progress}"
    return Waiting(reason="turn", position=position, behind=behind, message=message)


def _standing_still(doing: Activity) -> Waiting | None:
    if doing.pause is None:
        return None
    reason, message = doing.pause
    return Waiting(reason=reason, position=None, behind=None, message=message)


def _restarting(seconds: float) -> Waiting:
    message = f"its worker died; it is started again in {duration(seconds)}"
    return Waiting(reason="restart", position=None, behind=None, message=message)


def describe(doing: Activity, *, named: bool) -> str:
    """What a run does, for the one behind it: "step 38 of 60, about 5 min of training left".

    Args:
        named: Whether stage and steps may be told.
    """
    parts: list[str] = []
    training = doing.stage == "training"
    if named and doing.stage is None:
        parts.append("which has just started")
    elif named and doing.total:
        parts.append(
            f"step {doing.done} of {doing.total}" if training else f"{doing.stage}: {doing.done} of {doing.total}"
        )
    if doing.pause is not None:
        parts.append("paused for live traffic" if doing.pause[0] == "live_traffic" else "waiting for the gateway")
    elif doing.seconds_left is None:
        parts.append("time left not known")
    elif named:
        of = "of training left" if training else "of this part left"
        parts.append(f"{duration(doing.seconds_left)} {of}")
    else:
        parts.append(f"{duration(doing.seconds_left)} left of the part that it is in")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A duration in words: "less than a minute", "about 5 min", "about 3 h"."""
    if seconds < MINUTE_S:
        return "less than a minute"
    if seconds < 1.5 * HOUR_S:
        return f"about {max(1, round(seconds / MINUTE_S))} min"
    return f"about {round(seconds / HOUR_S)} h"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th …"""
    ending = "th" if number % 100 in (11, 12, 13) else ORDINALS.get(number % 10, "th")
    return f"{number}{ending}"
