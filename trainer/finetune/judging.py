"""The last part of a job: evaluate its version through the serving gateway, record the verdict, promote it on a pass.

Every completed step is stored in the run directory (``trainer.finetune.spec``), so that a restarted worker repeats no
question, keeps the comparison that was fixed at first, and records one verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from adapters.protocol.reports import ReportCost
from trainer.base_model import chat_template
from trainer.config import load_settings
from trainer.data.prepare import Prepared
from trainer.errors import EvaluationInvalid, GatewayRefused, GatewayUnreachable
from trainer.evaluate.arms import (
    GROUNDED_NOTE,
    Arm,
    Question,
    base_at_its_best,
    check_filters,
    questions,
    required_filters,
    template_switches,
)
from trainer.evaluate.base_prompts import BasePrompts, base_prompts, passage_tokens, wanted_examples
from trainer.evaluate.evaluations.contamination import (
    TrainingHistory,
    left_out_note,
    shared_groups_note,
    shown_answers_note,
)
from trainer.evaluate.evaluations.evaluator import Evaluator, repeat_arms, repeat_body, verdict_record
from trainer.evaluate.evaluations.planning import draw, rules_of, undrawn
from trainer.evaluate.evaluations.promotion import LIVE, LivePointer, live_to_compare, promote
from trainer.evaluate.evaluations.spec import UploadedFiles, VerdictRecord
from trainer.evaluate.report import EvaluationReport, TrainingSummary, build, loss_curve
from trainer.evaluate.revalidation import scores_of
from trainer.evaluate.spec import EvaluationSpec, MetricOptions, Outcome, most_frequent_answers
from trainer.evaluate.verdict import RULE
from trainer.finetune import spec
from trainer.finetune.spec import PrimaryMetric, TrainingPlan
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Frozen
from trainer.tune.lineage import Metadata

MIN_EVENT_INTERVAL_S: Final = 10.0
"""Minimum seconds between two progress events of a stage."""
EVALS: Final = "evals"
NOTHING_HELD_OUT: Final = "Not enough evidence: no examples were held out to judge by."
ALL_TRAINED_ON: Final = (
    "Not enough evidence: an ancestor of this version, or the live version, was trained on all held-out examples."
)


class FixedComparison(Frozen):
    """The arms and settings of the evaluation, and where `live` pointed when it was planned."""

    evaluation: EvaluationSpec
    pointer: LivePointer
    notes: tuple[str, ...] = ()
    """Notes on the comparison for the report, one sentence each without a full stop."""
    left_out: tuple[str, ...] = ()
    """Ids of held-out questions that an ancestor of the candidate, or the live version, was trained on."""


class Judging:
    """Judges the version of one job.

    Args:
        check: Raises Interrupted if the worker should exit.
        name: The candidate, `name@version`.
    """

    def __init__(
        self,
        job: spec.JobSpec,
        directory: RunDirectory,
        gateway: Gateway,
        check: Callable[[], None],
        *,
        plan: TrainingPlan,
        primary: PrimaryMetric,
        prepared: Prepared,
        metadata: Metadata,
        name: str,
    ) -> None:
        self._job, self._directory, self._gateway, self._check = job, directory, gateway, check
        self._plan, self._primary, self._prepared = plan, primary, prepared
        self._metadata, self._name = metadata, name
        self._last_event = ("", 0.0)
        self._evaluator = Evaluator(
            job,
            directory,
            gateway,
            check,
            self._emit_progress,
            concurrency=job.judging.concurrency,
            settings=load_settings,
        )

    def judge(self) -> tuple[VerdictRecord, tuple[str, ...]]:
        """Judge the version, and promote it on a pass if the job allows it.

        Returns:
            The verdict, and the ids of the report's files.

        Raises:
            EvaluationError, GatewayUnreachable, GatewayRefused: No verdict is possible.
        """
        judged = self._directory.read(spec.JUDGED, VerdictRecord)
        if judged is None:
            judged = self._decide() if self._prepared.held_out else self._record_undecided()
            self._directory.write(spec.JUDGED, judged)
        comparison = self._directory.read(spec.JUDGING, FixedComparison)
        expected = comparison.pointer if comparison is not None else None
        return judged.model_copy(update={"live": self._promote(judged, expected)}), self._evaluator.uploaded().ids

    def _promote(self, judged: VerdictRecord, expected: LivePointer | None) -> bool:
        """Promote the version if it passed; returns whether it is live. A failure here does not change the verdict."""
        try:
            return promote(
                self._gateway, self._name, judged, self._job.judging.promote, expected, self._directory.emit_event
            )
        except (GatewayUnreachable, GatewayRefused) as error:
            by_hand = f"Run `hatrack promote {self._name}` to make it live"
            self._directory.emit_event(f"could not move `live`: {error.message}. {by_hand}", level="error")
            return False

    def partial_result(self) -> dict[str, Any]:
        """The fields of the result that an interrupted judging has completed: a recorded verdict stays."""
        judged = self._directory.read(spec.JUDGED, VerdictRecord)
        return {} if judged is None else {"judged": judged, "files": self._evaluator.uploaded().ids}

    def held_out(self) -> str | None:
        """The id of the uploaded file with the held-out questions; None before the upload."""
        return self._evaluator.uploaded().held_out

    # the verdict

    def _decide(self) -> VerdictRecord:
        comparison = self._directory.read(spec.JUDGING, FixedComparison)
        if comparison is None:
            comparison, sample = self._fix_comparison()
            self._evaluator.write_questions(sample)  # before the comparison: a comparison has all its questions
            self._directory.write(spec.JUDGING, comparison)
            for note in comparison.notes:
                self._directory.emit_event(note)
        else:
            sample = self._evaluator.read_questions() or self._sample(comparison.left_out)
        if not sample:
            return self._record_undecided(ALL_TRAINED_ON)
        self._evaluator.upload_questions(self._evaluator.write_questions(sample), EVALS)
        self._directory.emit_event(
            f"judging {self._name} by {self._primary.name} on {len(sample)} held-out examples"
            f"{self._sample_note(len(sample))} against {', '.join(arm.label for arm in comparison.evaluation.arms[1:])}"
        )
        began = time.monotonic()
        trained_on = questions(self._prepared.training.examples)
        others = undrawn(questions(self._prepared.held_out), sample)
        outcome = self._evaluator.ask(comparison.evaluation, sample, trained_on, others)
        if outcome.verdict is None:
            raise EvaluationInvalid("an evaluation of a candidate ended without a verdict")
        report = self._report(outcome, comparison.notes, time.monotonic() - began)
        files = self._evaluator.upload_report(report, scores_of(outcome, comparison.evaluation.metric))
        judged = verdict_record(outcome.verdict)
        self._record(judged, files, self._repeat_body(comparison.evaluation, files))
        return judged

    def _record_undecided(self, why: str = NOTHING_HELD_OUT) -> VerdictRecord:
        """Record that there is nothing to judge by; no model is asked."""
        judged = VerdictRecord(
            verdict="not_enough_evidence",
            sentence=f"{why} At least {self._job.judging.min_examples} examples are needed.",
            metric=self._primary.name,
            examples=0,
            rule=RULE,
        )
        self._record(judged, UploadedFiles(), None)
        return judged

    def _fix_comparison(self) -> tuple[FixedComparison, tuple[Question, ...]]:
        """Fix the arms (the candidate, the base with its best prompts, and the live version) and the questions."""
        job, primary = self._job, self._primary
        options = job.judging
        notes: list[str] = []
        pointer, serving = live_to_compare(self._gateway, self._name, notes.append, job.stores)
        notes += [GROUNDED_NOTE] if self._plan.grounding else []
        held_out = questions(self._prepared.held_out)
        check_filters(held_out, self._plan.grounding, self._name)
        memory = TrainingHistory(self._gateway, self._directory, notes.append)
        taught = memory.trained_on([job.parent, serving], held_out, excluded=self._name)
        notes += [left_out_note(taught, len(held_out))] if taught else []
        prompts = self._base_prompts(self._sample(taught))
        notes += prompts.notes
        shared = shared_groups_note(prompts.questions, questions(self._prepared.training.examples))
        notes += filter(None, [shared, shown_answers_note(prompts.questions, self._plan.grounding)])
        bases = self._bases(prompts)
        arms = [Arm(label=self._name, model=self._name), *bases]
        if serving is not None:
            arms.append(Arm(label=LIVE, model=serving))
        comparison = FixedComparison(
            evaluation=EvaluationSpec(
                arms=tuple(arms),
                candidate=self._name,
                bases=tuple(arm.label for arm in bases),
                live=LIVE if arms[-1].label == LIVE else None,
                metric=self._metric(),
                suites=options.suites,
                taught=most_frequent_answers([example.judged.answer for example in self._prepared.training.examples]),
                rules=rules_of(options),
                repeats=options.repeats,
                max_tokens=primary.max_tokens,
                template_switches=template_switches(chat_template(job.base_dir)),
                judge=options.judge,
                required_filters=required_filters(self._plan.grounding),
                groundings=self._groundings(serving),
            ),
            pointer=pointer,
            notes=tuple(notes),
            left_out=taught,
        )
        return comparison, prompts.questions

    def _groundings(self, live: str | None) -> dict[str, dict[str, Any]]:
        """What the candidate and the live version are grounded in, by their names."""
        of_live = None if live is None else self._gateway.settings(live).get("grounding")
        groundings = {self._name: self._plan.grounding} | ({} if live is None else {live: of_live})
        return {name: grounding for name, grounding in groundings.items() if grounding}

    def _metric(self) -> MetricOptions:
        primary = self._primary
        return MetricOptions(name=primary.name, pattern=primary.pattern, schema_=primary.json_schema)

    def _bases(self, prompts: BasePrompts) -> tuple[Arm, ...]:
        return base_at_its_best(
            self._job.base_name,
            system=self._plan.system_prompt,
            answers=self._primary.answers,
            instructions=prompts.instructions,
            examples=prompts.examples,
            grounding=self._plan.grounding,
        )

    def _base_prompts(self, sample: tuple[Question, ...]) -> BasePrompts:
        """What the base is given before these questions, as far as the context has room for it."""
        if not sample:
            return BasePrompts(())
        from trainer.tune.model import load_tokenizer

        tokenizer = load_tokenizer(self._job.base_dir)
        primary, prepared, plan = self._primary, self._prepared, self._plan
        context = self._job.context or prepared.report.max_length
        # an upper estimate: these include the system prompt and the reference
        longest_prompt = max(len(sequence.tokens) for sequence in prepared.held_out_sequences)
        return base_prompts(
            sample,
            questions(prepared.training.examples),
            questions(prepared.held_out),
            metric=self._metric(),
            answers=primary.answers,
            wanted=wanted_examples(primary.answers),
            for_bases=True,
            room=context - longest_prompt - primary.max_tokens - passage_tokens(plan.grounding, context),
            count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        )

    def _sample(self, left_out: Sequence[str]) -> tuple[Question, ...]:
        """At most `most_examples` of the held-out questions without those left out: what an evaluation would draw."""
        return draw(self._eligible(left_out), self._job.judging.most_examples)

    def _eligible(self, left_out: Sequence[str]) -> list[Question]:
        left_out_ids = set(left_out)
        return [question for question in questions(self._prepared.held_out) if question.id not in left_out_ids]

    def _sample_note(self, sample_size: int) -> str:
        total = len(self._prepared.held_out)
        return f" (drawn from {total})" if total > sample_size else ""

    def _emit_progress(self, stage: str, done: int, total: int) -> None:
        self._check()
        last_stage, at = self._last_event
        if stage != last_stage or done == total or time.monotonic() - at > MIN_EVENT_INTERVAL_S:
            self._last_event = (stage, time.monotonic())
            self._directory.emit_event(f"{stage}: {done} of {total}", stage=stage, done=done, total=total)

    # the report

    def _report(self, outcome: Outcome, notes: tuple[str, ...], seconds: float) -> EvaluationReport:
        training = self._metadata.training
        return build(
            outcome.comparison,
            outcome.verdict,
            adapter=self._name,
            created_at=datetime.now(UTC),
            training=TrainingSummary(
                loss_curve=loss_curve(self._directory.metrics()),
                data=self._prepared.report,
                lineage=self._metadata.lineage,
                cost=ReportCost(
                    training_s=training.seconds,
                    trained_tokens=training.trained_tokens,
                    device=training.device,
                    price=training.cost or 0.0,
                    evaluation_s=seconds,
                ),
            ),
            suites=outcome.suites,
            judged=outcome.judged,
            voice=outcome.voice,
            why=self._primary.why,
            notes=notes,
            held_out=len(self._prepared.held_out),
        )

    def _repeat_body(self, evaluation: EvaluationSpec, files: UploadedFiles) -> dict[str, Any] | None:
        """The request body that repeats this evaluation; None if it would be too large."""
        return repeat_body(evaluation, files.held_out, repeat_arms(evaluation, ()))

    def _record(self, judged: VerdictRecord, files: UploadedFiles, again: dict[str, Any] | None) -> None:
        self._evaluator.record(self._name, judged, files.model_dump(exclude_none=True), again, kind="training")
        self._directory.emit_event(
            judged.sentence,
            level="info" if judged.verdict == "pass" else "warn",
            verdict=judged.verdict,
            metric=judged.metric,
            examples=judged.examples,
        )
