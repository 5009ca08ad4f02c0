"""The evaluator behind evaluations, revalidations and the end of a job.

It asks through the serving gateway, uploads the report there, and records the verdict on the version. Every step leaves
a file in the run directory, so that a restarted worker asks nothing twice and records one verdict.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final

from pydantic import SecretStr, ValidationError

from adapters.protocol.requests import MAX_ARMS
from trainer.config import Settings, database_from_environment
from trainer.durable import replaced_file
from trainer.errors import EngineChanged
from trainer.evaluate import endpoints
from trainer.evaluate.arms import Question
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.look_store import RunLooks
from trainer.evaluate.evaluations.spec import UploadedFiles, VerdictRecord
from trainer.evaluate.factory import WorkerContext, judge_of, suites_of
from trainer.evaluate.general_suite import DIRECTORY, BaseMeasurements
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.page.render import render
from trainer.evaluate.report import EvaluationReport
from trainer.evaluate.revalidation import RevalidationResult, VerdictScores
from trainer.evaluate.run import run
from trainer.evaluate.spec import EvaluationSpec, Outcome
from trainer.evaluate.verdict import Verdict
from trainer.runs import protocol
from trainer.runs.control import run_interruptible
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Frozen
from trainer.runs.spec import RunSpec

RESULTS_PURPOSE: Final = "fine-tune-results"
ENGINE: Final = "engine.json"
MAX_ENGINE_CHANGES: Final = 3
MAX_BODY_BYTES: Final = 60_000
"""Bounds the request body that a verdict stores so that the evaluation can be repeated."""


class EngineFingerprint(Frozen):
    """The fingerprint of the engine that gave the stored answers."""

    fingerprint: str


class Evaluator:
    """Evaluates for one run.

    Args:
        run_spec: The run: its id begins the uploaded files' names; its project's looks at held-out examples count.
        directory: The run directory.
        gateway: The gateway's client.
        check: Raises if the worker has to stop.
        on_stage: Called with a stage's name, how many items are done, and how many there are.
        concurrency: Maximum concurrent requests.
        measures_base: Measure the general suite on the base even if that was done under the same fingerprint.
        settings: Returns the operator's settings (suites, judges, outside endpoints); called when needed.
    """

    def __init__(
        self,
        run_spec: RunSpec,
        directory: RunDirectory,
        gateway: Gateway,
        check: Callable[[], None],
        on_stage: Callable[[str, int, int], None],
        *,
        concurrency: int,
        measures_base: bool = False,
        settings: Callable[[], Settings],
    ) -> None:
        self._run = run_spec
        self._directory, self._gateway = directory, gateway
        self._check, self._on_stage = check, on_stage
        self._concurrency, self._settings = concurrency, settings
        self._measures_base = measures_base
        self._looks = RunLooks(directory.directory, run_spec.project, run_spec.id, database_from_environment())

    def uploaded(self) -> UploadedFiles:
        """The ids of the files uploaded so far."""
        return self._directory.read(spec.UPLOADED_FILES, UploadedFiles) or UploadedFiles()

    # asking

    def write_questions(self, questions: Sequence[Question]) -> bytes:
        """Write the questions to the run directory, all or none; return the file's content."""
        lines = "".join(question.model_dump_json(exclude_defaults=True) + "\n" for question in questions).encode()
        with replaced_file(self._directory.path(spec.QUESTIONS)) as file:
            file.write(lines)
        return lines

    def read_questions(self) -> tuple[Question, ...] | None:
        """The questions as they were written, with their examples; None if `write_questions` was not called."""
        try:
            lines = self._directory.path(spec.QUESTIONS).read_bytes().splitlines()
            return tuple(Question.model_validate_json(line) for line in lines)
        except (FileNotFoundError, ValidationError):  # an earlier release may have left half of the file
            return None

    def ask(
        self,
        evaluation: EvaluationSpec,
        questions: tuple[Question, ...],
        trained_on: Sequence[Question] = (),
        undrawn: Sequence[Question] = (),
    ) -> Outcome:
        """Ask everything that is not answered yet, and decide.

        All answers of a verdict come from one engine configuration. If the engine restarts with another template, dtype
        or version, the earlier answers are discarded and everything is asked again. ``trained_on``, ``undrawn``: see
        `run`.

        Raises:
            EngineChanged: The configuration changed MAX_ENGINE_CHANGES times.
            EvaluationError: The evaluation failed.
        """
        fingerprint = self._gateway.fingerprint(self._run.base_name)
        for _ in range(MAX_ENGINE_CHANGES):
            recorded = self._directory.read(ENGINE, EngineFingerprint)
            if recorded is not None and recorded.fingerprint != fingerprint:
                self._forget_answers()
            self._directory.write(ENGINE, EngineFingerprint(fingerprint=fingerprint))
            kept = self._base_measurements(fingerprint, evaluation)
            asking = self._ask(evaluation, questions, kept, trained_on, undrawn)
            outcome = asyncio.run(run_interruptible(asking, self._check))
            previous, fingerprint = fingerprint, self._gateway.fingerprint(self._run.base_name)
            if fingerprint == previous:
                with suppress(OSError):  # it costs the next evaluation time, not this one its verdict
                    kept.keep()
                if outcome.judged is not None:
                    counted = outcome.judged.counted
                    self._directory.emit_event(outcome.judged.sentence, level="info" if counted else "warn")
                if outcome.voice is not None and evaluation.candidate is not None:
                    self._directory.emit_event(outcome.voice.told(outcome.comparison, evaluation.candidate))
                return outcome
        raise EngineChanged(
            f"the engine's configuration changed {MAX_ENGINE_CHANGES} times during the evaluation; "
            "evaluate again once it is stable"
        )

    def _forget_answers(self) -> None:
        self._directory.emit_event(
            "the engine's template, dtype or version changed since the evaluation started: "
            "earlier answers are discarded and asked again",
            level="warn",
        )
        for name in spec.ANSWER_FILES:
            self._directory.path(name).unlink(missing_ok=True)
        self._directory.write(
            spec.UPLOADED_FILES, UploadedFiles(held_out=self.uploaded().held_out)
        )  # a report on the discarded answers must not be reused

    def _base_measurements(self, fingerprint: str, evaluation: EvaluationSpec) -> BaseMeasurements:
        return BaseMeasurements(
            self._directory.directory.parent.parent / DIRECTORY,
            self._run.base_name,
            fingerprint,
            template_switches=evaluation.template_switches,
            reuse=not self._measures_base,
        )

    async def _ask(
        self,
        evaluation: EvaluationSpec,
        questions: tuple[Question, ...],
        kept: BaseMeasurements,
        trained_on: Sequence[Question],
        undrawn: Sequence[Question],
    ) -> Outcome:
        path, concurrency, settings = self._directory.path, self._concurrency, self._settings()
        endpoint = Endpoint(self._run.gateway, SecretStr(path(protocol.KEY).read_text().strip()))
        switches = evaluation.template_switches
        scorer = HttpScorer(endpoint, path(spec.SCORES), template_switches=switches, concurrency=concurrency)
        on_charge = self._directory.record_charge
        context = WorkerContext(endpoint, scorer, self._directory.directory, settings, concurrency, on_charge)
        return await run(
            evaluation,
            questions,
            answerer=HttpAnswerer(
                endpoint,
                path(spec.ANSWERS),
                endpoints=_outside_endpoints(evaluation, settings),
                max_tokens=evaluation.max_tokens,
                required_filters=evaluation.required_filters,
                groundings=evaluation.groundings,
                template_switches=switches,
                concurrency=concurrency,
                on_charge=on_charge,
            ),
            undrawn=undrawn,
            scorer=scorer,
            suites=suites_of(evaluation, context),
            judge=judge_of(evaluation, context),
            on_stage=self._on_stage,
            record_looks=self._looks.record,
            base_measurements=kept,
            trained_on=trained_on,
        )

    # uploading and recording

    def upload_questions(self, lines: bytes, purpose: str) -> None:
        """Upload the questions to the gateway, once."""
        uploaded = self.uploaded()
        if uploaded.held_out is None:
            held_out = self._gateway.upload_file(f"{self._run.id}-{spec.QUESTIONS}", lines, purpose)
            self._directory.write(spec.UPLOADED_FILES, uploaded.model_copy(update={"held_out": held_out}))

    def upload_report(self, report: EvaluationReport, scores: VerdictScores | None) -> UploadedFiles:
        """Write the report, and the scores of its verdict, and upload them to the gateway, each part once."""
        uploaded = self.uploaded()
        parts = [
            ("report", spec.REPORT, report.model_dump_json(by_alias=True)),
            ("page", spec.PAGE, render(report)),
        ]
        if scores is not None:
            parts.append(("scores", spec.EXAMPLE_SCORES, scores.model_dump_json(by_alias=True)))
        for part, name, content in parts:
            self._check()
            self._directory.path(name).write_text(content, "utf-8")
            if getattr(uploaded, part) is None:
                file_id = self._gateway.upload_file(f"{self._run.id}-{name}", content.encode(), RESULTS_PURPOSE)
                uploaded = uploaded.model_copy(update={part: file_id})
                self._directory.write(spec.UPLOADED_FILES, uploaded)
        return uploaded

    def record(
        self,
        candidate: str,
        record: VerdictRecord,
        files: dict[str, Any],
        repeat_body: dict[str, Any] | None,
        **extra: Any,
    ) -> None:
        """Record a verdict on a version.

        Args:
            candidate: `name@version`.
            record: The verdict.
            files: Ids of the held-out file and of the report's files.
            repeat_body: The request body that repeats the evaluation; None to omit it.
            extra: Further fields of the verdict.
        """
        body = record.model_dump(exclude={"live"}) | extra | {"files": files}
        self._gateway.record_verdict(candidate, body if repeat_body is None else body | {"evaluation": repeat_body})


def _outside_endpoints(evaluation: EvaluationSpec, settings: Settings) -> dict[str, Endpoint]:
    """The operator's endpoints if an arm uses one, else none."""
    if all(arm.endpoint is None for arm in evaluation.arms):
        return {}
    return endpoints.read_endpoints(settings.endpoints).reachable()


def verdict_record(verdict: Verdict) -> VerdictRecord:
    """The part of a verdict that is recorded on the version."""
    return VerdictRecord(
        verdict=verdict.word,
        sentence=verdict.sentence,
        metric=verdict.metric,
        examples=verdict.examples,
        rule=verdict.rule,
    )


def revalidation_record(record: VerdictRecord, revalidation: RevalidationResult) -> VerdictRecord:
    """``record``, with what a comparison with an earlier verdict shows instead of what the evaluation shows alone."""
    decided = {
        "verdict": revalidation.word,
        "sentence": revalidation.sentence,
        "examples": revalidation.examples,
        "rule": revalidation.rule,
    }
    return record.model_copy(update=decided)


def repeat_body(evaluation: EvaluationSpec, held_out: str | None, subject: dict[str, Any]) -> dict[str, Any] | None:
    """The body for `POST /v1/evaluations` that repeats an evaluation, with all defaults resolved.

    Args:
        evaluation: The evaluation to repeat.
        held_out: The id of the held-out file.
        subject: The field `model`, or the result of `repeat_arms`.

    Returns:
        None if the body would be too large.
    """
    body: dict[str, Any] = {
        "held_out": held_out,
        "metric": evaluation.metric.model_dump(by_alias=True, exclude_none=True),
        "suites": list(evaluation.suites),
        "judge": evaluation.judge,
        "max_tokens": evaluation.max_tokens,
        "repeats": evaluation.repeats,
    } | subject
    fits = len(body.get("arms", ())) <= MAX_ARMS and len(json.dumps(body)) <= MAX_BODY_BYTES
    return body if fits else None


def repeat_arms(evaluation: EvaluationSpec, named: Collection[str]) -> dict[str, Any]:
    """The arms as fields of a body. The live arm is omitted unless the client named it: another may be live by then."""
    arms = [
        arm.model_dump(exclude_none=True)
        for arm in evaluation.arms
        if arm.label != evaluation.live or arm.label in named
    ]
    return {"arms": arms, "candidate": evaluation.candidate, "bases": list(evaluation.bases)}
