"""The pipeline of an evaluation's worker: fetch, plan, ask, report, record the verdict, promote.

Every step leaves a file in the run directory (``trainer.evaluate.evaluations.spec``), so that a restarted worker asks
nothing twice and records one verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from adapters.protocol.reports import EvaluationProgress, ReportCost
from trainer.config import Settings
from trainer.errors import DataError, GatewayRefused, HeldOutInTraining, SettingsError
from trainer.evaluate.arm_scores import arm_scores
from trainer.evaluate.arms import Question
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.contamination import (
    TrainingHistory,
    left_out_note,
    near_duplicates_note,
    normalized_question,
    quoted_in_prompt,
    shown_in_prompt,
    shown_note,
    unchecked_note,
)
from trainer.evaluate.evaluations.evaluator import (
    Evaluator,
    repeat_arms,
    repeat_body,
    revalidation_record,
    verdict_record,
)
from trainer.evaluate.evaluations.held_out import (
    NO_FILE_NAMED,
    TrainingFile,
    read_held_out,
    read_trained,
    refuse_trained_on,
    unchecked_reason,
)
from trainer.evaluate.evaluations.planning import (
    EvaluationPlan,
    LiveState,
    compares_with_live,
    make_plan,
    sample,
    undrawn,
)
from trainer.evaluate.evaluations.promotion import live_to_compare, live_unreadable_note, promote
from trainer.evaluate.evaluations.provisional import ProvisionalScores
from trainer.evaluate.evaluations.spec import PROGRESS, REVALIDATION, EvaluationJob, EvaluationResult, UploadedFiles
from trainer.evaluate.metrics.choose import FREE_TEXT, JUDGE
from trainer.evaluate.report import EvaluationReport, TrainingSummary, build
from trainer.evaluate.revalidation import (
    Incomparable,
    RevalidationResult,
    VerdictScores,
    read_scores,
    revalidate,
    scores_of,
)
from trainer.evaluate.spec import Outcome
from trainer.evaluate.verdict import Rules, Verdict
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Failure
from trainer.runs.worker import Pipeline
from trainer.tune.lineage import Lineage

PROGRESS_INTERVAL_S: Final = 0.5
"""Minimum seconds between two progress reports of one stage."""
VERDICT_NOT_RECORDED: Final = (
    "the API key is missing the scope `adapters`, so the verdict is not recorded on the version"
)


class EvaluationPipeline(Pipeline[EvaluationResult]):
    """Runs one evaluation.

    Args:
        job: The evaluation.
        directory: The run directory.
        gateway: The gateway's client.
        check: Raises if the worker has to stop.
        settings: The operator's settings: suites, judges and outside endpoints.
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
        self._job, self._directory, self._gateway, self._check = job, directory, gateway, check
        self._reported = ("", 0.0)
        self._answered: Callable[[], None] = lambda: None
        self._unchecked = unchecked_reason(job.context)
        self._evaluator = Evaluator(
            job,
            directory,
            gateway,
            check,
            self._report_progress,
            concurrency=job.concurrency,
            measures_base=job.body.kind == REVALIDATION,
            settings=lambda: settings,
        )

    def run(self, _stage: str) -> EvaluationResult:
        """Run the whole evaluation, or the rest of it.

        Raises:
            DataError: The held-out file cannot be read.
            HeldOutInTraining: The candidate was trained on the held-out examples.
            EvaluationError, GatewayUnreachable, GatewayRefused: The evaluation failed.
        """
        plan, questions, undrawn = self._prepare()
        earlier = self._earlier_scores()
        self._answered = ProvisionalScores(self._directory, plan.evaluation, questions).answered
        outcome = self._evaluator.ask(plan.evaluation, questions, self._shown_in_training(plan), undrawn)
        if outcome.verdict is None:
            metric, concurrency = plan.evaluation.metric.primary(), self._job.concurrency
            self._directory.write(spec.ARM_SCORES, arm_scores(outcome.comparison, metric, concurrency=concurrency))
        self._report_progress("report", 0, 1)
        seconds = time.time() - plan.began_at
        scores = scores_of(outcome, plan.evaluation.metric)
        revalidation, uncompared = self._compared(earlier, scores, outcome.verdict, plan.evaluation.rules)
        report = self._report(plan, outcome, revalidation, seconds)
        uploaded = self._evaluator.upload_report(report, scores)
        result = EvaluationResult(
            status="succeeded",
            metric=report.metric,
            examples=len(questions),
            files=uploaded.ids,
            seconds=round(seconds, 3),
        )
        live, note = None, None
        if outcome.verdict is not None:
            live, note = self._conclude(plan, outcome.verdict, revalidation, uploaded)
            decided = revalidation or outcome.verdict
            result = result.model_copy(update={"verdict": decided.word, "sentence": decided.sentence})
            holds = revalidation.holds if revalidation is not None else None
            result = result.model_copy(update={"holds": holds})
        notes = [*plan.notes, *(note for note in (uncompared, note) if note is not None)]
        return result.model_copy(update={"live": live, "note": ". ".join(notes) or None})

    def explain(self, error: Exception) -> Failure:
        """See Pipeline. An invalid file is the held-out file."""
        if isinstance(error, SettingsError):
            return Failure(code="settings_changed", message=str(error))
        failure = super().explain(error)
        if failure.code == "invalid_training_file":
            return Failure(code="invalid_held_out_file", message=failure.message, param="held_out")
        return failure

    # preparing

    def _prepare(self) -> tuple[EvaluationPlan, tuple[Question, ...], tuple[Question, ...]]:
        """The plan, the questions to ask, and those of the file that nobody chose not to ask: they were not drawn, or
        left out because a version that is compared, or an earlier one, was trained on them."""
        job, directory = self._job, self._directory
        self._report_progress("fetching", 0, 1)
        path = directory.path(spec.HELD_OUT)
        if not path.exists():
            self._gateway.fetch(job.context.held_out, path)
        held_out = read_held_out(job.context.held_out.filename, path.read_bytes())
        plan = directory.read(spec.PLAN, EvaluationPlan)
        trained_on: tuple[Question, ...] = ()
        if plan is None:
            trained_on = self._trained_on()
            live_state = self._without_trained_on(self._live_state(), held_out)
        else:
            live_state = LiveState(left_out=plan.left_out, shown=plan.shown)
        left_out = set(live_state.left_out)
        unseen = [question for question in held_out if question.id not in left_out]
        questions = (self._evaluator.read_questions() if plan is not None else None) or sample(job, unseen)
        if plan is None:
            plan, questions = make_plan(job, held_out, questions, trained_on, live_state=live_state, count=self._count)
            self._evaluator.write_questions(questions)  # before the plan: a plan has all its questions
            directory.write(spec.PLAN, plan)
            directory.emit_event(f"metric {plan.evaluation.metric.name}: {plan.why}")
            for note in plan.notes:
                directory.emit_event(note)
        shown = set(live_state.shown)
        return plan, questions, undrawn([question for question in held_out if question.id not in shown], questions)

    def _trained_on(self) -> tuple[Question, ...]:
        """The candidate's training examples; empty if the file is gone or cannot be read."""
        if not self._job.context.training_files:
            return ()
        file = self._job.context.training_files[0]
        path = self._directory.path(spec.TRAINING)
        try:
            if not path.exists():
                self._gateway.fetch(file, path)
            return read_held_out(file.filename, path.read_bytes())
        except (GatewayRefused, DataError) as error:
            self._unchecked = error.message
            return ()

    def _shown_in_training(self, plan: EvaluationPlan) -> tuple[Question, ...]:
        """The candidate's training examples, if the metric is one for free text."""
        return self._trained_on() if plan.evaluation.metric.name in (*FREE_TEXT, JUDGE) else ()

    def _training_file(self) -> TrainingFile:
        """What the candidate was taught; empty if the file is gone or cannot be read, as `_trained_on` says."""
        context, path = self._job.context, self._directory.path(spec.TRAINING)
        if not context.training_files or not path.exists():
            return TrainingFile()
        try:
            return read_trained(context.training_files[0].filename, path.read_bytes(), context.lineage)
        except DataError as error:
            self._unchecked = error.message
            return TrainingFile()

    def _without_trained_on(self, live_state: LiveState, held_out: Sequence[Question]) -> LiveState:
        """`live_state`, with the questions to leave out because this or an earlier version was trained on them.

        Raises HeldOutInTraining as `refuse_trained_on`, and if no question is left.
        """
        context, notes = self._job.context, list(live_state.notes)
        trained = self._training_file()
        prompt = [(example.user, example.assistant) for example in context.examples]
        indices = shown_in_prompt(prompt, [normalized_question(question) for question in held_out])
        indices |= quoted_in_prompt(self._system_prompts(), held_out)
        shown = [held_out[index].id for index in sorted(indices)]
        if context.candidate is None or not context.records:
            own = refuse_trained_on(self._job, held_out, trained, None)
            return self._leave_out(live_state, notes, held_out, own=own, shown=shown)
        history = TrainingHistory(self._gateway, self._directory, notes.append)
        own = refuse_trained_on(self._job, held_out, trained, history.held_out(context.candidate))
        compared = (
            [live_state.live] if live_state.live is not None and compares_with_live(self._job, live_state.live) else []
        )
        earlier = history.trained_on([context.candidate, *compared], held_out, excluded=context.candidate)
        shown = [question_id for question_id in shown if question_id not in earlier]
        return self._leave_out(live_state, notes, held_out, own=own, shown=shown, earlier=earlier)

    def _system_prompts(self) -> list[str]:
        """The candidate's system prompts: its version's, and what a client's arm puts in its place."""
        body = self._job.body
        own = [arm.prompt for arm in body.arms or () if arm.label == body.candidate]
        texts = [text for prompt in own for text in (prompt.system, prompt.instructions)]
        return [text for text in (self._job.context.system_prompt, *texts) if text]

    def _leave_out(
        self,
        live_state: LiveState,
        notes: Sequence[str],
        held_out: Sequence[Question],
        *,
        own: Sequence[str],
        shown: Sequence[str],
        earlier: Sequence[str] = (),
    ) -> LiveState:
        """`live_state`, leaving out what the candidate (``own``) and earlier versions were trained on, and what the
        candidate's prompt has (``shown``)."""
        reasons = [near_duplicates_note(own, len(held_out), str(self._job.context.candidate))] if own else []
        reasons += [shown_note(shown, len(held_out), str(self._job.context.candidate))] if shown else []
        reasons += [left_out_note(earlier, len(held_out))] if earlier else []
        seen = {*own, *shown, *earlier}
        left_out = tuple(question.id for question in held_out if question.id in seen)
        if len(left_out) == len(held_out):
            raise HeldOutInTraining("; ".join(reasons))
        if self._unchecked is not None:
            reasons.append(unchecked_note(str(self._job.context.candidate), self._unchecked))
        unchecked = self._unchecked not in (None, NO_FILE_NAMED)
        chosen = tuple(question_id for question_id in shown if question_id not in own)
        return replace(live_state, notes=(*notes, *reasons), left_out=left_out, shown=chosen, unchecked=unchecked)

    def _live_state(self) -> LiveState:
        context = self._job.context
        if context.records and context.candidate is not None:
            notes: list[str] = []
            pointer, live = live_to_compare(self._gateway, context.candidate, notes.append, context.stores)
            return LiveState(pointer, live, tuple(notes))
        if context.live is not None and not self._gateway.can_read_stores(context.live):
            return LiveState(notes=(live_unreadable_note(context.live),))
        return LiveState(live=context.live)

    def _count(self, text: str) -> int:
        return self._gateway.count_tokens(self._job.base_name, text)

    def _report_progress(self, stage: str, done: int, total: int) -> None:
        self._check()
        if stage == "asking":
            self._answered()
        last_stage, reported_at = self._reported
        if stage != last_stage or time.monotonic() - reported_at > PROGRESS_INTERVAL_S:
            self._reported = (stage, time.monotonic())
            self._directory.write(PROGRESS, EvaluationProgress(stage=stage, done=done, total=total))

    # comparing with an earlier verdict

    def _earlier_scores(self) -> VerdictScores | str | None:
        """The scores of the verdict that a revalidation is compared with, fetched before anything is asked.

        A string says why there are none; None: this is no revalidation.
        """
        if self._job.body.kind != REVALIDATION:
            return None
        earlier = self._job.context.earlier
        if earlier is None:
            return "no earlier verdict on this held-out file and metric has its scores stored"
        path = self._directory.path(spec.EARLIER_SCORES)
        try:
            if not path.exists():
                self._gateway.fetch(earlier.scores, path)
            return read_scores(path.read_bytes())
        except GatewayRefused as error:
            return f"the earlier verdict's scores are gone: {error.message}"
        except Incomparable as error:
            return str(error)

    def _compared(
        self, earlier: VerdictScores | str | None, scores: VerdictScores | None, verdict: Verdict | None, rules: Rules
    ) -> tuple[RevalidationResult | None, str | None]:
        """Whether the earlier verdict holds, or a note why a revalidation is judged without it."""
        context = self._job.context.earlier
        if earlier is None or scores is None or verdict is None:
            return None, None
        if isinstance(earlier, str) or context is None:
            reason = str(earlier)
        else:
            try:
                return revalidate(context, earlier, scores, verdict, rules), None
            except Incomparable as error:
                reason = str(error)
        note = f"judged anew, without a comparison with the earlier scores: {reason}"
        self._directory.emit_event(note, level="warn")
        return None, note

    # concluding

    def _report(
        self, plan: EvaluationPlan, outcome: Outcome, revalidation: RevalidationResult | None, seconds: float
    ) -> EvaluationReport:
        labels = [arm.label for arm in plan.evaluation.arms]
        return build(
            outcome.comparison,
            outcome.verdict,
            adapter=self._job.context.candidate or " against ".join(labels),
            created_at=datetime.now(UTC),
            suites=outcome.suites,
            judged=outcome.judged,
            voice=outcome.voice,
            revalidation=revalidation,
            why=plan.why,
            notes=plan.notes,
            held_out=plan.held_out,
            rules=plan.evaluation.rules,
            training=TrainingSummary(lineage=self._lineage(), cost=ReportCost(evaluation_s=seconds)),
        )

    def _lineage(self) -> Lineage | None:
        """The candidate's lineage; None if its metadata has none in a job's format."""
        try:
            return Lineage.model_validate(self._job.context.lineage)
        except ValidationError:
            return None

    def _conclude(
        self, plan: EvaluationPlan, verdict: Verdict, revalidation: RevalidationResult | None, uploaded: UploadedFiles
    ) -> tuple[bool | None, str | None]:
        """Record the verdict and promote if due. Returns whether the candidate is live now, and a note."""
        candidate = self._job.context.candidate
        if candidate is None:
            return None, None
        if not self._job.context.records:
            return None, VERDICT_NOT_RECORDED
        record, extra = verdict_record(verdict), {"kind": self._job.body.kind, "evaluation_id": self._job.id}
        if revalidation is not None:
            record = revalidation_record(record, revalidation)
            extra |= revalidation.model_dump(include={"compared_with", "holds"})
        files = {**uploaded.model_dump(exclude_none=True), "held_out": self._job.body.held_out}
        self._evaluator.record(candidate, record, files, self._repeat_body(plan), **extra)
        notes: list[str] = []

        def emit(message: str, **extra: Any) -> None:
            self._directory.emit_event(message, **extra)
            notes.append(message)

        mode, unchecked = self._job.body.promote, plan.unchecked
        live = promote(self._gateway, candidate, record, mode, plan.pointer, emit, unchecked=unchecked)
        return live, notes[-1] if notes else None

    def _repeat_body(self, plan: EvaluationPlan) -> dict[str, Any] | None:
        """The request body that repeats this evaluation; None if it would be too large."""
        evaluation, body = plan.evaluation, self._job.body
        if body.arms is None:
            return repeat_body(evaluation, body.held_out, {"model": self._job.context.candidate})
        return repeat_body(evaluation, body.held_out, repeat_arms(evaluation, {arm.label for arm in body.arms}))
