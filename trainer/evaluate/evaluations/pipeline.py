"""What an evaluation's worker does, in order: fetch, plan, ask, report, write the verdict down, promote.

Whatever has been done stands in the run directory (``trainer.evaluate.evaluations.spec``), so that a worker
that is started again asks nothing twice and writes one verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from trainer.config import Settings
from trainer.errors import DataError, GatewayRefused, HeldOutTaught, SettingsError
from trainer.evaluate.arms import Question
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.contamination import Memory, left_out
from trainer.evaluate.evaluations.evaluator import Evaluator, arms_again, body_again, judged_of
from trainer.evaluate.evaluations.held_out import read_held_out, refuse_taught
from trainer.evaluate.evaluations.planning import Plan, Serving, make_plan, meets_live, sample
from trainer.evaluate.evaluations.promotion import opponent, promote, unread
from trainer.evaluate.evaluations.spec import (
    PROGRESS,
    EvaluationJob,
    EvaluationResult,
    Kept,
    Progress,
)
from trainer.evaluate.report import Cost, EvaluationReport, build
from trainer.evaluate.spec import Outcome
from trainer.evaluate.verdict import Verdict
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Failure
from trainer.runs.worker import Pipeline
from trainer.tune.lineage import Lineage

SAID_S: Final = 0.5
"""Least seconds between two words on how far a stage is."""
NOT_WRITTEN: Final = "the key that asked lacks the scope `adapters`: the verdict does not stand on the version"


class EvaluationPipeline(Pipeline[EvaluationResult]):
    """Does one evaluation.

    Args:
        check: Raises where the worker is to end.
        settings: The operator's: suites, judges and outside endpoints.
    """

    result = EvaluationResult

    def __init__(
        self,
        job: EvaluationJob,
        directory: RunDirectory,
        gateway: Gateway,
        check: Callable[[], None],
        settings: Settings,
    ) -> None:
        self._job, self._directory, self._gateway = job, directory, gateway
        self._check = check
        self._said = ("", 0.0)
        self._evaluator = Evaluator(
            job.id,
            job.gateway,
            directory,
            gateway,
            check,
            self._tell,
            concurrency=job.concurrency,
            settings=lambda: settings,
        )

    def run(self, _stage: str) -> EvaluationResult:
        """The whole evaluation, from wherever it stands.

        Raises:
            DataError: The held-out file cannot be read.
            HeldOutTaught: The candidate was trained on what is held out.
            EvaluationError, GatewayUnreachable, GatewayRefused: There is no result to be had.
        """
        plan, asked = self._ready()
        outcome = self._evaluator.ask(plan.evaluation, asked)
        self._tell("report", 0, 1)
        seconds = time.time() - plan.began_at
        report = self._report(plan, outcome, seconds)
        kept = self._evaluator.keep(report)
        result = EvaluationResult(
            status="succeeded",
            metric=report.metric,
            examples=len(asked),
            files=kept.ids,
            seconds=round(seconds, 3),
        )
        live, note = None, None
        if outcome.verdict is not None:
            live, note = self._conclude(plan, outcome.verdict, kept)
            result = result.model_copy(update={"verdict": outcome.verdict.word, "sentence": outcome.verdict.sentence})
        notes = [*plan.notes, *([note] if note is not None else [])]
        return result.model_copy(update={"live": live, "note": ". ".join(notes) or None})

    def cancelled(self) -> tuple[EvaluationResult, str]:
        """See Pipeline."""
        return EvaluationResult(status="cancelled"), "cancelled"

    def failed(self, failure: Failure) -> tuple[EvaluationResult, str]:
        """See Pipeline."""
        return EvaluationResult(status="failed", error=failure), failure.message

    def explain(self, error: Exception) -> Failure:
        """See Pipeline; a file at fault is the held-out's."""
        if isinstance(error, SettingsError):
            return Failure(code="settings_changed", message=str(error))
        failure = super().explain(error)
        if failure.code == "invalid_training_file":
            return Failure(code="invalid_held_out_file", message=failure.message, param="held_out")
        return failure

    # before anything is asked

    def _ready(self) -> tuple[Plan, tuple[Question, ...]]:
        job, directory = self._job, self._directory
        self._tell("fetching", 0, 1)
        path = directory.path(spec.HELD_OUT)
        if not path.exists():
            self._gateway.fetch(job.context.held_out, path)
        held_out = read_held_out(job.context.held_out.filename, path.read_bytes())
        plan = directory.read(spec.PLAN, Plan)
        taught: tuple[Question, ...] = ()
        if plan is None:
            taught = self._taught()
            serving = self._unseen(self._serving(), held_out, taught)
        else:
            serving = Serving(left_out=plan.left_out)
        unseen = [question for question in held_out if question.id not in set(serving.left_out)]
        if not unseen:
            raise HeldOutTaught(left_out(serving.left_out, len(held_out)))
        asked = sample(job, unseen)
        self._evaluator.write_questions(asked)
        if plan is None:
            plan = make_plan(job, held_out, asked, taught, serving=serving, count=self._count)
            directory.write(spec.PLAN, plan)
            directory.emit_event(f"judged by {plan.evaluation.metric.name}: {plan.why}")
            for note in plan.notes:
                directory.emit_event(note)
        return plan, asked

    def _taught(self) -> tuple[Question, ...]:
        """What the candidate was trained on; nothing where that has gone, or cannot be read any more."""
        if not self._job.context.training_files:
            return ()
        file = self._job.context.training_files[0]
        path = self._directory.path(spec.TRAINING)
        try:
            if not path.exists():
                self._gateway.fetch(file, path)
            return read_held_out(file.filename, path.read_bytes())
        except (GatewayRefused, DataError) as error:
            self._directory.emit_event(
                f"what the version was trained on is not looked at: {error.message}", level="warn"
            )
            return ()

    def _unseen(self, serving: Serving, held_out: Sequence[Question], taught: Sequence[Question]) -> Serving:
        """What serves, with what is left out because it was taught before. Raises HeldOutTaught as `refuse_taught`."""
        context, notes = self._job.context, list(serving.notes)
        if context.candidate is None or not context.records:
            refuse_taught(self._job, held_out, taught, None)
            return serving
        memory = Memory(self._gateway, self._directory, notes.append)
        refuse_taught(self._job, held_out, taught, memory.held_out(context.candidate))
        met = [serving.live] if serving.live is not None and meets_live(self._job, serving.live) else []
        before = memory.taught([context.candidate, *met], held_out, but=context.candidate)
        notes += [left_out(before, len(held_out))] if before else []
        return replace(serving, notes=tuple(notes), left_out=before)

    def _serving(self) -> Serving:
        context = self._job.context
        if context.records and context.candidate is not None:
            notes: list[str] = []
            pointer, live = opponent(self._gateway, context.candidate, notes.append)
            return Serving(pointer, live, tuple(notes))
        if context.live is not None and not self._gateway.can_read_stores(context.live):
            return Serving(notes=(unread(context.live),))
        return Serving(live=context.live)

    def _count(self, text: str) -> int:
        return self._gateway.count_tokens(self._job.base_name, text)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._check()
        before, at = self._said
        if stage != before or time.monotonic() - at > SAID_S:
            self._said = (stage, time.monotonic())
            self._directory.write(PROGRESS, Progress(stage=stage, done=done, total=total))

    # what is left of it

    def _report(self, plan: Plan, outcome: Outcome, seconds: float) -> EvaluationReport:
        labels = [arm.label for arm in plan.evaluation.arms]
        return build(
            outcome.comparison,
            outcome.verdict,
            adapter=self._job.context.candidate or " against ".join(labels),
            created_at=datetime.now(UTC),
            suites=outcome.suites,
            judged=outcome.judged,
            why=plan.why,
            notes=plan.notes,
            held_out=plan.held_out,
            rules=plan.evaluation.rules,
            lineage=self._lineage(),
            cost=Cost(evaluation_s=seconds),
        )

    def _lineage(self) -> Lineage | None:
        """Where the candidate comes from, if its uploader said it as a job does."""
        try:
            return Lineage.model_validate(self._job.context.lineage)
        except ValidationError:
            return None

    def _conclude(self, plan: Plan, verdict: Verdict, kept: Kept) -> tuple[bool | None, str | None]:
        """Write the verdict on the version and move `live` where that is due; whether it is live now, and a note."""
        candidate = self._job.context.candidate
        if candidate is None:
            return None, None
        if not self._job.context.records:
            return None, NOT_WRITTEN
        judged = judged_of(verdict)
        files = {**kept.model_dump(exclude_none=True), "held_out": self._job.body.held_out}
        self._evaluator.record(
            candidate, judged, files, self._again(plan), kind=self._job.body.kind, evaluation_id=self._job.id
        )
        notes: list[str] = []

        def say(message: str, **more: Any) -> None:
            self._directory.emit_event(message, **more)
            notes.append(message)

        live = promote(self._gateway, candidate, judged, self._job.body.promote, plan.pointer, say)
        return live, notes[-1] if notes else None

    def _again(self, plan: Plan) -> dict[str, Any] | None:
        """The body that asks for the same again; None where it would be too large."""
        wanted, body = plan.evaluation, self._job.body
        if body.arms is None:
            return body_again(wanted, body.held_out, {"model": self._job.context.candidate})
        return body_again(wanted, body.held_out, arms_again(wanted, {arm.label for arm in body.arms}))
