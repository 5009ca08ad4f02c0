"""Ladders as a kind of run: short stages of their own, and child runs in between.

    climb (data) → evaluation "choose" → climb (versions) → evaluation "prompts" → job → evaluation "lora"
    → the same for each LoRA that can still matter (trainer.ladder.trainings; the distilled after label) → conclude

A ladder that waits for a child run holds no worker. What a child leaves is copied into the ladder's directory, so that
the report does not depend on the child's directory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from adapters.protocol.requests import RequestBody
from trainer.errors import TooManyLadders
from trainer.evaluate.evaluations import kind as evaluation_kind
from trainer.evaluate.evaluations.spec import ARM_SCORES, PROVISIONAL, EvaluationDetails, EvaluationJob, Provisional
from trainer.evaluate.scored_arms import ArmScores
from trainer.finetune import kind as finetune_kind
from trainer.finetune.spec import PUSHED, JobDetails, JobResult
from trainer.installation import Installation
from trainer.ladder import rungs as planning
from trainer.ladder import spec
from trainer.ladder.spec import (
    CLIMB,
    COMPARISONS,
    CONCLUDE,
    LABEL,
    SUBSETS,
    TRAININGS,
    EvaluationPurpose,
    JobOutcome,
    Labels,
    LadderDetails,
    LadderPlan,
    LadderResult,
    LadderSpec,
    Purpose,
    Rung,
    Rungs,
    SkippedRung,
    TrainingKey,
    training_purpose,
)
from trainer.runs import protocol
from trainer.runs.directories import RunDirectories
from trainer.runs.kind import Abort, Advance, Kind, RunDraft, RunOutcome, Stage, Wait, abort_without_output
from trainer.runs.process import Command, describe_exit
from trainer.runs.protocol import Failure
from trainer.runs.state import Run, Status

if TYPE_CHECKING:
    from trainer.ladder.trainings import NextTraining

NAME: Final = "ladder"
CLIMBING: Final = Stage(CLIMB, Status.VALIDATING, "looked_at")
LABELLING: Final = Stage(LABEL, Status.LABELLING, "looked_at")
CONCLUDING: Final = Stage(CONCLUDE, Status.QUEUED)
LARGE_FILES: Final = (
    *(spec.DATA, "training.jsonl", "training.csv", "store.jsonl"),
    *(spec.UNLABELLED, spec.PROMPTS, spec.REPLIES),
)
NOTES: Final[dict[TrainingKey, str]] = {
    "lora": "",
    "lora_examples": " with retrieved examples",
    "lora_documents": " with retrieved documents",
    "distilled": " on the teacher's answers",
    "half": " on a half of the examples",
    "quarter": " on a quarter of the examples",
    "cleanest_half": " on the cleanest half of the examples",
}
"""What follows "a LoRA" in the name of each."""


def worker_command(directory: Path, stage: str) -> list[str]:
    """The command line of a ladder's worker."""
    return [sys.executable, "-m", spec.WORKER, str(directory), "--stage", stage]


def ladder_directories(installation: Installation) -> RunDirectories:
    """The directories of all ladders."""
    home = installation.directory
    return RunDirectories(home / "ladders", home / "spent-ladders", LARGE_FILES, installation)


class LadderKind(Kind[LadderResult]):
    """Ladders.

    Args:
        directories: The run directories.
        evaluations, jobs: Those of the child runs.
        command: Gives a worker's command line.
    """

    name = NAME
    id_prefix = "ladder"
    noun = display_name = "ladder"
    param = "ladder_id"
    too_many = TooManyLadders
    stages = (CLIMBING, LABELLING, CONCLUDING)
    cancel_patience_s = 60.0
    result = LadderResult

    def __init__(
        self,
        directories: RunDirectories,
        evaluations: RunDirectories,
        jobs: RunDirectories,
        command: Command = worker_command,
    ) -> None:
        super().__init__(directories, command)
        self._evaluations = evaluations
        self._jobs = jobs

    def next_stage(self, run: Run) -> Stage:
        """See Kind."""
        following = LadderDetails.model_validate(run.details).stage
        return next((stage for stage in self.stages if stage.name == following), CLIMBING)

    def progress(self, run_id: str) -> str:
        """See Kind."""
        directory = self.directories.path_of(run_id)
        before = (spec.PLAN, spec.scores_file("choose"), spec.RUNGS, spec.scores_file("prompts"))
        files = (
            *before,
            *map(spec.outcome_file, TRAININGS),
            *map(spec.scores_file, TRAININGS),
            spec.LABELS,
            spec.REPORT,
        )
        replies = directory / spec.REPLIES
        there = [name for name in files if (directory / name).exists()]
        return " ".join([*there, f"{replies.stat().st_size} bytes of replies"] if replies.exists() else there)

    def provisional(self, run: Run) -> dict[str, dict[str, Any]]:
        """What the rungs score so far that are being asked now, by their keys."""
        purposes = LadderDetails.model_validate(run.details).purposes
        last = next(reversed(purposes), None)
        if last is None or purposes[last] == "choose":
            return {}
        so_far = self._evaluations.read(last, PROVISIONAL, Provisional)
        if so_far is None:
            return {}
        counts = {"questions": so_far.questions, "of": so_far.of}
        return {mean.label: {"mean": mean.mean, "low": mean.low, "high": mean.high} | counts for mean in so_far.means}

    def created(self, run_id: str) -> str:
        """See Kind."""
        return f"created ladder {run_id}"

    async def stage_ended(self, run: Run, stage: Stage, working: Collection[int]) -> Advance | Wait | None:
        """See Kind: CLIMB has prepared the data, or made the versions; LABEL has asked the teacher."""
        if stage is LABELLING:
            return await self._labelled(run)
        ladder, plan = await self._read(run)
        if plan is None:
            return None
        rungs = await self._rungs(run)
        if rungs is None:
            chosen = (self.directories.path_of(run.id) / spec.scores_file("choose")).exists()
            if plan.choosing is None or chosen:
                return None  # the worker was killed before all versions were made
            child_id = self._new_id(evaluation_kind.EvaluationKind.id_prefix)
            evaluation = planning.choosing_evaluation(ladder, plan, child_id)
            many = len(plan.instructions)
            return self._wait(run, "choose", self._evaluation(evaluation), CLIMB, f"choosing among {many} instructions")
        evaluation = planning.rungs_evaluation(
            ladder, plan, self._new_id(evaluation_kind.EvaluationKind.id_prefix), rungs.rungs, "prompts"
        )
        return self._wait(run, "prompts", self._evaluation(evaluation), CONCLUDE, "comparing the rungs without weights")

    async def children_ended(self, run: Run, children: Sequence[Run]) -> Advance | Wait | RunOutcome[LadderResult]:
        """See Kind."""
        purposes = LadderDetails.model_validate(run.details).purposes
        last = children[-1]
        purpose = purposes[last.id]
        trained = next((key for key in TRAININGS if training_purpose(key) == purpose), None)
        if trained is not None:
            return await self._job_ended(run, last, trained)
        compared = next((key for key in TRAININGS if key == purpose), None)
        if last.status is not Status.SUCCEEDED:
            return _child_failed(last) if compared is None else await self._not_compared(run, last, compared)
        await asyncio.to_thread(self._copy_scores, run.id, last.id, cast(EvaluationPurpose, purpose))
        return Advance() if purpose == "choose" else await self._next_training(run)

    async def _next_training(self, run: Run) -> Advance | Wait:
        """Start the next LoRA that can still matter, or conclude."""
        ladder, plan = await self._read(run)
        rungs = await self._rungs(run)
        assert plan is not None  # noqa: S101 - both were written before the prompts were compared
        assert rungs is not None  # noqa: S101
        following = await asyncio.to_thread(self._following, run.id, ladder, plan, rungs)
        notes = tuple(f"{each.title} is not trained: {each.reason}" for each in following.skipped)
        if following.skipped:
            await self._write_rungs(run, rungs.model_copy(update={"skipped": (*rungs.skipped, *following.skipped)}))
        if following.key is None:
            return Advance(notes, {"stage": CONCLUDE})
        if following.key == "distilled" and await self._labels(run) is None:
            return Advance(notes, {"stage": LABEL})
        return await self._train(run, following.key, following.grounding, before=notes)

    async def _labelled(self, run: Run) -> Advance | Wait | None:
        """The teacher has been asked: train on its answers, or go on without them."""
        labels = await self._labels(run)
        if labels is None:
            return None  # the worker was killed: the next one goes on
        if labels.error is None:
            return await self._train(run, "distilled", None)
        rungs = await self._rungs(run)
        assert rungs is not None  # noqa: S101 - written before the prompts were compared
        return await self._left_out(run, rungs, "distilled", labels.error)

    async def _train(
        self, run: Run, key: TrainingKey, grounding: dict[str, Any] | None, *, before: Sequence[str] = ()
    ) -> Wait:
        ladder, plan = await self._read(run)
        assert plan is not None  # noqa: S101 - written before anything is trained
        labels = await self._labels(run)
        file = labels.file if labels is not None and key == "distilled" else plan.training_file(key)
        assert file is not None  # noqa: S101 - it is trained only if the teacher has answered
        job_id = self._new_id(finetune_kind.FinetuneKind.id_prefix)
        job = planning.lora_job(ladder, plan, job_id, key, file, grounding)
        body: dict[str, Any] = {
            "model": job.base_name,
            "training_file": job.training_file.id,
            "validation_file": plan.held_out.id,
            "hyperparameters": {"adapter": job.adapter, "promote": "never"},
        }
        child = RunDraft(
            kind=finetune_kind.NAME,
            id=job.id,
            spec=job,
            body=body,
            adapters=(job.adapter,),
            details=JobDetails(
                adapter=job.adapter, seed=job.seed, device=job.device, for_curve=key in spec.SUBSETS
            ).model_dump(mode="json"),
        )
        return self._wait(run, training_purpose(key), child, CONCLUDE, f"training a LoRA{NOTES[key]}", before=before)

    def _following(self, run_id: str, ladder: LadderSpec, plan: LadderPlan, rungs: Rungs) -> NextTraining:
        from trainer.ladder.trainings import next_training  # loads the statistics: only when a ladder goes on

        stored = (self.directories.read(run_id, spec.scores_file(key), ArmScores) for key in COMPARISONS)
        rows = planning.rows_of(rungs, [each for each in stored if each is not None])
        ended = {key for key in TRAININGS if (self.directories.path_of(run_id) / spec.outcome_file(key)).exists()}
        return next_training(ladder, plan, rungs, rows, ended | {each.key for each in rungs.skipped})

    async def _job_ended(self, run: Run, job: Run, key: TrainingKey) -> Advance | Wait:
        ladder, plan = await self._read(run)
        rungs = await self._rungs(run)
        assert plan is not None  # noqa: S101 - the job was planned from both
        assert rungs is not None  # noqa: S101
        result: dict[str, Any] = job.result or {}
        model = result.get("fine_tuned_model")
        error = (result.get("error") or {}).get("message")
        outcome = JobOutcome(
            id=job.id,
            status=str(job.status),
            model=model,
            error=error,
            examples=await self._examples(run, plan, key),
            seconds=float(result.get("seconds") or job.device_s),
            training_seconds=await asyncio.to_thread(self._training_seconds, job),
            trained_tokens=int(result.get("trained_tokens") or 0),
        )
        await asyncio.to_thread(self.directories.write, run.id, spec.outcome_file(key), outcome)
        if model is None:
            reason = f"the job {job.id} {_ended(job)}: {error or 'see its events'}"
            return await self._left_out(run, rungs, key, reason)
        if key not in SUBSETS:
            rung = Rung(key=key, title=f"a LoRA{NOTES[key]}", model=str(model), held_back=result.get("held_back"))
            await self._write_rungs(run, _with(rungs, rung))
        evaluation_id = self._new_id(evaluation_kind.EvaluationKind.id_prefix)
        evaluation = planning.lora_evaluation(ladder, plan, evaluation_id, rungs, key, str(model))
        return self._wait(run, key, self._evaluation(evaluation), CONCLUDE, f"asking {model}")

    async def _not_compared(self, run: Run, evaluation: Run, key: TrainingKey) -> Advance | Wait:
        """A LoRA's evaluation failed: what is measured is advised on without it."""
        rungs = await self._rungs(run)
        assert rungs is not None  # noqa: S101 - the job's end has written them
        error = ((evaluation.result or {}).get("error") or {}).get("message") or "see its events"
        return await self._left_out(run, rungs, key, f"the evaluation {evaluation.id} {_ended(evaluation)}: {error}")

    async def _left_out(self, run: Run, rungs: Rungs, key: TrainingKey, reason: str) -> Advance | Wait:
        """Record why a LoRA is not measured, and go on with the next."""
        skipped = SkippedRung(key=key, title=f"a LoRA{NOTES[key]}", reason=reason)
        await self._write_rungs(run, _without(rungs, skipped))
        following = await self._next_training(run)
        return replace(following, notes=(reason, *following.notes))

    def _training_seconds(self, job: Run) -> float:
        """The time of the training alone; that of the whole job if the version's record is gone."""
        pushed = self._jobs.read(job.id, PUSHED, JobResult)
        return job.device_s if pushed is None else pushed.seconds

    def abort_run(self, run: Run, abort: Abort) -> RunOutcome[LadderResult]:
        """See Kind."""
        given_up = (
            f"A step of the ladder failed {abort.times} times in a row (its worker {describe_exit(abort.end)}). "
            "The operator finds the reason in the trainer's log and in the ladder's worker.log; then create the "
            "ladder again."
        )
        return abort_without_output(LadderResult, abort, cancelled=spec.CANCELLED, given_up=given_up)

    def ending(self, run: Run, result: LadderResult) -> tuple[str, dict[str, Any]]:
        """See Kind."""
        fields = {"adapters": list(run.adapters), "advice": result.advice, "rung": result.rung, "version": result.model}
        return self.noun, fields

    # helpers

    async def _read(self, run: Run) -> tuple[LadderSpec, LadderPlan | None]:
        ladder = await asyncio.to_thread(self.directories.read, run.id, protocol.SPEC, LadderSpec)
        plan = await asyncio.to_thread(self.directories.read, run.id, spec.PLAN, LadderPlan)
        assert ladder is not None  # noqa: S101 - written when the run was created
        return ladder, plan

    async def _labels(self, run: Run) -> Labels | None:
        """What the teacher has made of the prompts; None until it is through."""
        labels = await asyncio.to_thread(self.directories.read, run.id, spec.LABELS, Labels)
        return labels if labels is not None and labels.over else None

    async def _examples(self, run: Run, plan: LadderPlan, key: TrainingKey) -> int:
        """How many examples a LoRA was trained on."""
        labels = await self._labels(run) if key == "distilled" else None
        return labels.answered if labels is not None else plan.counts.get(key, plan.counts["training"])

    async def _rungs(self, run: Run) -> Rungs | None:
        return await asyncio.to_thread(self.directories.read, run.id, spec.RUNGS, Rungs)

    async def _write_rungs(self, run: Run, rungs: Rungs) -> None:
        await asyncio.to_thread(self.directories.write, run.id, spec.RUNGS, rungs)

    def _copy_scores(self, run_id: str, child_id: str, purpose: EvaluationPurpose) -> None:
        scores = self._evaluations.read(child_id, ARM_SCORES, ArmScores)
        if scores is None:
            raise OSError(f"{child_id} left no scores")
        self.directories.write(run_id, spec.scores_file(purpose), scores)

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}-{self.new_id().partition('-')[2]}"

    def _evaluation(self, job: EvaluationJob) -> RunDraft:
        body: RequestBody = job.body
        arms = [{"label": arm.label, "model": arm.model, "role": None, "endpoint": None} for arm in job.body.arms or ()]
        names = sorted({arm["model"].partition("@")[0] for arm in arms if arm["model"] and "@" in arm["model"]})
        return RunDraft(
            kind=evaluation_kind.NAME,
            id=job.id,
            spec=job,
            body=body.model_dump(mode="json", exclude_unset=True),
            adapters=tuple(names),
            details=EvaluationDetails(arms=tuple(arms)).model_dump(mode="json"),
        )

    def _wait(
        self, run: Run, purpose: Purpose, child: RunDraft, stage: str, note: str, *, before: Sequence[str] = ()
    ) -> Wait:
        purposes = LadderDetails.model_validate(run.details).purposes | {child.id: purpose}
        return Wait((child,), (*before, note), {"stage": stage, "purposes": purposes})


def _with(rungs: Rungs, rung: Rung) -> Rungs:
    """The rungs with another one; once, however often what follows a child run is tried."""
    others = tuple(each for each in rungs.rungs if each.key != rung.key)
    return rungs.model_copy(update={"rungs": (*others, rung)})


def _without(rungs: Rungs, skipped: SkippedRung) -> Rungs:
    """The rungs without one, and why; once, however often what follows a child run is tried."""
    return rungs.model_copy(
        update={
            "rungs": tuple(each for each in rungs.rungs if each.key != skipped.key),
            "skipped": (*(each for each in rungs.skipped if each.key != skipped.key), skipped),
        }
    )


def _ended(child: Run) -> str:
    """How a child run ended, as a phrase."""
    return "was cancelled" if child.status is Status.CANCELLED else str(child.status)


def _child_failed(child: Run) -> RunOutcome[LadderResult]:
    error = (child.result or {}).get("error") or {}
    message = f"The evaluation {child.id} {_ended(child)}: {error.get('message') or 'see its events'}"
    if child.status is Status.CANCELLED:
        return RunOutcome(LadderResult(status="cancelled"), message)
    failure = Failure(code=str(error.get("code") or "evaluation_failed"), message=message)
    return RunOutcome(LadderResult(status="failed", error=failure), message)
