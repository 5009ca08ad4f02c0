"""Child runs: a run starts them and waits for them, in the status ``waiting`` and without a worker.

They are scheduled like all other runs of their kinds. They work with their parent's key, which is revoked at the
parent's end; they do not count towards the project's maximum of unfinished runs. What is requested of the parent
(cancel, pause, resume) is recorded for its unfinished children in the same transaction (`records.request_control`). A
child's worker that does not exit soon after its parent was cancelled is killed (`Supervisor`): its step may be long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import sqlalchemy as sa

from trainer.database import Database, OutcomeUnknown
from trainer.errors import InternalError
from trainer.runs import journal, records
from trainer.runs.kind import AnyKind, RunDraft, Wait
from trainer.runs.records import NewRun
from trainer.runs.state import Run, Status


class Children:
    """Starts child runs.

    Args:
        kinds: By name.
    """

    def __init__(self, database: Database, kinds: Mapping[str, AnyKind]) -> None:
        self._database = database
        self._kinds = kinds

    async def start(self, kind: AnyKind, parent: Run, wait: Wait) -> None:
        """Create the child runs' directories, then record them together with the parent's new status.

        What a crash leaves in between are directories without a run, which the next start removes.

        Raises:
            InternalError: The parent has no key any more.
            OSError: A directory could not be created; nothing was recorded.
            OutcomeUnknown: The database went away, and may have recorded them.
        """
        key = await asyncio.to_thread(kind.directories.key, parent.id)
        if key is None:
            raise InternalError(f"the {kind.noun} `{parent.id}` has no key for its child runs")
        try:
            for child in wait.children:
                directories = self._kinds[child.kind].directories
                await asyncio.to_thread(directories.create, child.id, child.spec, key, shared_key=True)
            await self._database.run_or_ask(
                partial(self._record, parent_id=parent.id, wait=wait), partial(self._recorded, wait=wait)
            )
        except OutcomeUnknown:  # nor when cancelled: the transaction may be committed
            raise
        except Exception:
            for child in wait.children:
                await asyncio.to_thread(self._kinds[child.kind].directories.discard, child.id)
            raise

    def _recorded(self, db: sa.Connection, wait: Wait) -> bool | None:
        """True if the children, which are recorded all or none, are; else None."""
        return any(records.find_by_id(db, child.id) is not None for child in wait.children) or None

    def _record(self, db: sa.Connection, parent_id: str, wait: Wait) -> bool:
        parent = records.get(db, parent_id)
        for child in wait.children:
            records.add(db, self._new_run(parent, child), None)
        for note in wait.notes:
            parent = journal.record_event(db, parent, note)
        ids = [child.id for child in wait.children]
        parent = journal.record_event(db, parent, f"waiting for {', '.join(ids)}", children=ids)
        records.change(
            db,
            parent_id,
            status=Status.WAITING,
            interrupted=False,
            estimated_finish=None,
            kills=0,
            not_before=0.0,
            details=parent.details | wait.details,
        )
        # what was requested of the parent while its worker ended holds for its children, too
        records.request_control(db, parent_id, parent.wanted)
        return True

    def _new_run(self, parent: Run, child: RunDraft) -> NewRun:
        # they show what their parent does: who may not see the one sees none of the others
        adapters = tuple(sorted({*parent.adapters, *child.adapters}))
        child = replace(child, adapters=adapters, stores=parent.stores)
        return child.new_run(
            self._kinds[child.kind].stages[0].waits_as,
            project=parent.project,
            key_id=parent.key_id,
            run_key_id=parent.run_key_id,
            parent=parent.id,
        )
