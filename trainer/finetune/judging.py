"""A job's last part: its version is judged through the gateway that serves, the verdict is written on it, and a pass
makes it live.

Whatever has been done stands in the run directory (``trainer.finetune.spec``), so that a worker that is started again
asks nothing twice, compares with what the first one compared with, and writes one verdict.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from adapters.protocol.reports import ReportCost
from trainer.config import load_settings
from trainer.data.prepare import Prepared
from trainer.errors import EvaluationInvalid, GatewayRefused, GatewayUnreachable
from trainer.evaluate.arms import GROUNDED_NOTE, Arm, Frozen, Question, base_at_its_best, questions
from trainer.evaluate.evaluations.contamination import TrainingHistory, left_out_note
from trainer.evaluate.evaluations.evaluator import Evaluator, repeat_arms, repeat_body, verdict_record
from trainer.evaluate.evaluations.planning import rules_of
from trainer.evaluate.evaluations.promotion import LIVE, LivePointer, live_to_compare, promote
from trainer.evaluate.evaluations.spec import UploadedFiles, VerdictRecord
from trainer.evaluate.report import EvaluationReport, build, loss_curve
from trainer.evaluate.spec import EvaluationSpec, MetricOptions, Outcome, most_frequent_answers
from trainer.evaluate.verdict import RULE
from trainer.finetune import spec
from trainer.finetune.spec import Plan, Primary
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.tune.lineage import Metadata

SAID_S: Final = 10.0
"""Least seconds between two events on how far a stage is."""
EVALS: Final = "evals"
NOTHING_HELD_OUT: Final = "Not enough evidence: nothing was held out, so that there is nothing to judge by."
ALL_TAUGHT: Final = (
    "Not enough evidence: all that was held out was taught to a version before this one, or to the one that is live."
)


class Fixed(Frozen):
    """What is compared with what, and where `live` pointed when the judging began."""

    evaluation: EvaluationSpec
    pointer: LivePointer
    notes: tuple[str, ...] = ()
    """What one has to know of the comparison, a sentence each, without its full stop."""
    left_out: tuple[str, ...] = ()
    """Ids of held-out questions that were taught to what came before the candidate, or to what serves."""


class Judging:
    """Judges the version of one job.

    Args:
        check: Raises where the worker is to end.
        name: `name@version`.
    """

    def __init__(
        self,
        job: spec.JobSpec,
        directory: RunDirectory,
        gateway: Gateway,
        check: Callable[[], None],
        *,
        plan: Plan,
        primary: Primary,
        prepared: Prepared,
        metadata: Metadata,
        name: str,
    ) -> None:
        self._job, self._directory, self._gateway, self._check = job, directory, gateway, check
        self._plan, self._primary, self._prepared = plan, primary, prepared
        self._metadata, self._name = metadata, name
        self._said = ("", 0.0)
        self._evaluator = Evaluator(
            job.id,
            job.gateway,
            directory,
            gateway,
            check,
            self._tell,
            concurrency=job.judging.concurrency,
            settings=load_settings,
        )

    def judge(self) -> tuple[VerdictRecord, tuple[str, ...]]:
        """The verdict, and the ids of the report's files; a pass has moved `live`, where that was wanted.

        Raises:
            EvaluationError, GatewayUnreachable, GatewayRefused: No verdict can be had.
        """
        judged = self._directory.read(spec.JUDGED, VerdictRecord)
        if judged is None:
            judged = self._decide() if self._prepared.held_out else self._undecided()
            self._directory.write(spec.JUDGED, judged)
        fixed = self._directory.read(spec.JUDGING, Fixed)
        expected = fixed.pointer if fixed is not None else None
        return judged.model_copy(update={"live": self._promoted(judged, expected)}), self._evaluator.uploaded().ids

    def _promoted(self, judged: VerdictRecord, expected: LivePointer | None) -> bool:
        """Whether it is live now. The verdict stands, whatever becomes of `live`."""
        try:
            return promote(
                self._gateway, self._name, judged, self._job.judging.promote, expected, self._directory.emit_event
            )
        except (GatewayUnreachable, GatewayRefused) as error:
            by_hand = f"`hatrack promote {self._name}` makes it live"
            self._directory.emit_event(
                f"where `live` points could not be settled: {error.message}. {by_hand}", level="error"
            )
            return False

    def so_far(self) -> dict[str, Any]:
        """What of a result there is, where the judging was cut off: a verdict that stands on the version stays."""
        judged = self._directory.read(spec.JUDGED, VerdictRecord)
        return {} if judged is None else {"judged": judged, "files": self._evaluator.uploaded().ids}

    def held_out(self) -> str | None:
        """The id of the file with the questions, once it is at the gateway."""
        return self._evaluator.uploaded().held_out

    # the verdict

    def _decide(self) -> VerdictRecord:
        fixed = self._directory.read(spec.JUDGING, Fixed)
        if fixed is None:
            fixed = self._fix()
            self._directory.write(spec.JUDGING, fixed)
            for note in fixed.notes:
                self._directory.emit_event(note)
        asked = self._questions(fixed)
        if not asked:
            return self._undecided(ALL_TAUGHT)
        self._directory.emit_event(
            f"judging {self._name} by {self._primary.name} on {len(asked)} held-out examples that it has not seen"
            f"{self._of_how_many(len(asked))}, against {', '.join(arm.label for arm in fixed.evaluation.arms[1:])}"
        )
        began = time.monotonic()
        outcome = self._evaluator.ask(fixed.evaluation, asked)
        if outcome.verdict is None:
            raise EvaluationInvalid("an evaluation of a candidate ended without a verdict")
        report = self._report(outcome, fixed.notes, time.monotonic() - began)
        kept = self._evaluator.upload_report(report)
        judged = verdict_record(outcome.verdict)
        self._record(judged, kept, self._again(fixed.evaluation, kept))
        return judged

    def _undecided(self, why: str = NOTHING_HELD_OUT) -> VerdictRecord:
        """Where nothing is held out nothing is asked."""
        judged = VerdictRecord(
            verdict="not_enough_evidence",
            sentence=f"{why} At least {self._job.judging.min_examples} examples are needed.",
            metric=self._primary.name,
            examples=0,
            rule=RULE,
        )
        self._record(judged, UploadedFiles(), None)
        return judged

    def _fix(self) -> Fixed:
        """Which arms: the candidate, the base at its honest best, and what serves now, each by its version."""
        job, primary = self._job, self._primary
        wish = job.judging
        notes: list[str] = []
        pointer, serving = live_to_compare(self._gateway, self._name, notes.append)
        plan = self._plan
        bases = base_at_its_best(
            job.base_name, system=plan.system_prompt, answers=primary.answers, grounding=plan.grounding
        )
        notes += [GROUNDED_NOTE] if plan.grounding else []
        there = questions(self._prepared.held_out)
        memory = TrainingHistory(self._gateway, self._directory, notes.append)
        taught = memory.trained_on([job.parent, serving], there, excluded=self._name)
        notes += [left_out_note(taught, len(there))] if taught else []
        arms = [Arm(label=self._name, model=self._name), *bases]
        if serving is not None:
            arms.append(Arm(label=LIVE, model=serving))
        return Fixed(
            evaluation=EvaluationSpec(
                arms=tuple(arms),
                candidate=self._name,
                bases=tuple(arm.label for arm in bases),
                live=LIVE if arms[-1].label == LIVE else None,
                metric=MetricOptions(name=primary.name, pattern=primary.pattern, schema_=primary.json_schema),
                suites=wish.suites,
                taught=most_frequent_answers(
                    [example.messages[-1].content for example in self._prepared.training.examples]
                ),
                rules=rules_of(wish),
                repeats=wish.repeats,
                max_tokens=primary.max_tokens,
                judge=wish.judge,
            ),
            pointer=pointer,
            notes=tuple(notes),
            left_out=taught,
        )

    def _questions(self, fixed: Fixed) -> tuple[Question, ...]:
        """What is asked: all that is held out and was not taught before, or a sample, in an order drawn with the job's
        seed."""
        known = set(fixed.left_out)
        found = [question for question in questions(self._prepared.held_out) if question.id not in known]
        random.Random(f"{self._job.seed}/asked").shuffle(found)  # noqa: S311 - no secret
        asked = tuple(found[: self._job.judging.most_examples])
        lines = self._evaluator.write_questions(asked)
        if asked:
            self._evaluator.upload_questions(lines, EVALS)
        return asked

    def _of_how_many(self, asked: int) -> str:
        there = len(self._prepared.held_out)
        return f" (drawn from {there})" if there > asked else ""

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._check()
        before, at = self._said
        if stage != before or done == total or time.monotonic() - at > SAID_S:
            self._said = (stage, time.monotonic())
            self._directory.emit_event(f"{stage}: {done} of {total}", stage=stage, done=done, total=total)

    # what is left of it

    def _report(self, outcome: Outcome, notes: tuple[str, ...], seconds: float) -> EvaluationReport:
        training = self._metadata.training
        return build(
            outcome.comparison,
            outcome.verdict,
            adapter=self._name,
            created_at=datetime.now(UTC),
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
            suites=outcome.suites,
            judged=outcome.judged,
            why=self._primary.why,
            notes=notes,
            held_out=len(self._prepared.held_out),
        )

    def _again(self, wanted: EvaluationSpec, kept: UploadedFiles) -> dict[str, Any] | None:
        """The body that asks for the same again; None where it would be too large."""
        return repeat_body(wanted, kept.held_out, repeat_arms(wanted, ()))

    def _record(self, judged: VerdictRecord, kept: UploadedFiles, again: dict[str, Any] | None) -> None:
        self._evaluator.record(self._name, judged, kept.model_dump(exclude_none=True), again, kind="training")
        self._directory.emit_event(
            judged.sentence,
            level="info" if judged.verdict == "pass" else "warn",
            verdict=judged.verdict,
            metric=judged.metric,
            examples=judged.examples,
        )
