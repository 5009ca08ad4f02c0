"""What an evaluation's worker does, in order: fetch, plan, ask, report, write the verdict down, promote.

Whatever has been done stands in the folder (``trainer.evaluations.spec``), so that a worker that is started again asks
nothing twice and writes one verdict.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import SecretStr, ValidationError

from trainer.config import Settings
from trainer.errors import DataError, GatewayRefused, HeldOutTaught
from trainer.evaluate import endpoints
from trainer.evaluate.arms import Question
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.page.render import render
from trainer.evaluate.plugs import Bench, judge_of, suites_of
from trainer.evaluate.report import Cost, EvaluationReport, build
from trainer.evaluate.run import run
from trainer.evaluate.spec import EvaluationSpec, Outcome
from trainer.evaluate.verdict import Verdict
from trainer.evaluate.wire import Endpoint
from trainer.evaluations.asked import MAX_ARMS
from trainer.evaluations.held_out import read_held_out, refuse_taught
from trainer.evaluations.planning import Plan, Serving, make_plan, meets_live, sample
from trainer.evaluations.spec import PAGE, PROGRESS, QUESTIONS, REPORT, EvaluationJob, EvaluationResult, Kept, Progress
from trainer.jobs import spec
from trainer.jobs.folder import Folder
from trainer.jobs.gateway import Gateway
from trainer.jobs.one_engine import of_one_engine
from trainer.jobs.orders import obeying
from trainer.jobs.promotion import opponent, promote, unread
from trainer.jobs.spec import Judged
from trainer.jobs.taught import Memory, left_out
from trainer.tune.lineage import Lineage

SAID_S: Final = 0.5
"""Least seconds between two words on how far a stage is."""
RESULTS: Final = "fine-tune-results"
MOST_BODY_BYTES: Final = 60_000
"""Of the evaluation that a verdict carries, so that it can be asked for again."""
NOT_WRITTEN: Final = "the key that asked lacks the scope `adapters`: the verdict does not stand on the version"


class Evaluating:
    """Does one evaluation.

    Args:
        settings: The operator's: suites, judges and outside endpoints.
        check: Raises where the worker is to end.
    """

    def __init__(
        self, job: EvaluationJob, folder: Folder, gateway: Gateway, settings: Settings, check: Callable[[], None]
    ) -> None:
        self._job, self._folder, self._gateway = job, folder, gateway
        self._settings, self._check = settings, check
        self._said = ("", 0.0)

    def run(self) -> EvaluationResult:
        """The whole evaluation, from wherever it stands.

        Raises:
            DataError: The held-out file cannot be read.
            HeldOutTaught: The candidate was trained on what is held out.
            EvaluationError, GatewayUnreachable, GatewayRefused: There is no result to be had.
        """
        plan, asked = self._ready()
        outcome = of_one_engine(
            self._folder,
            self._gateway.fingerprint,
            lambda: asyncio.run(obeying(self._ask(plan, asked), self._check)),
            forget=lambda: self._folder.path(spec.KEPT).unlink(missing_ok=True),
        )
        if outcome.judged is not None:
            self._folder.say(outcome.judged.sentence, level="info" if outcome.judged.counted else "warn")
        self._tell("report", 0, 1)
        seconds = time.time() - plan.began_at
        report = self._report(plan, outcome, seconds)
        kept = self._keep(report)
        result = EvaluationResult(
            status="succeeded",
            metric=report.metric,
            examples=len(asked),
            files=tuple(each for each in (kept.report, kept.page) if each is not None),
            seconds=round(seconds, 3),
        )
        live, note = None, None
        if outcome.verdict is not None:
            live, note = self._conclude(plan, outcome.verdict, kept)
            result = result.model_copy(update={"verdict": outcome.verdict.word, "sentence": outcome.verdict.sentence})
        notes = [*plan.notes, *([note] if note is not None else [])]
        return result.model_copy(update={"live": live, "note": ". ".join(notes) or None})

    # before anything is asked

    def _ready(self) -> tuple[Plan, tuple[Question, ...]]:
        job, folder = self._job, self._folder
        self._tell("fetching", 0, 1)
        path = folder.path(spec.HELD_OUT)
        if not path.exists():
            self._gateway.fetch(job.context.held_out, path)
        held_out = read_held_out(job.context.held_out.filename, path.read_bytes())
        plan = folder.read(spec.PLAN, Plan)
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
        lines = "".join(question.model_dump_json() + "\n" for question in asked)
        folder.path(QUESTIONS).write_text(lines, "utf-8")
        if plan is None:
            plan = make_plan(job, held_out, asked, taught, serving=serving, count=self._count)
            folder.write(spec.PLAN, plan)
            folder.say(f"judged by {plan.evaluation.metric.name}: {plan.why}")
            for note in plan.notes:
                folder.say(note)
        return plan, asked

    def _taught(self) -> tuple[Question, ...]:
        """What the candidate was trained on; nothing where that has gone, or cannot be read any more."""
        if not self._job.context.training_files:
            return ()
        file = self._job.context.training_files[0]
        path = self._folder.path(spec.TRAINING)
        try:
            if not path.exists():
                self._gateway.fetch(file, path)
            return read_held_out(file.filename, path.read_bytes())
        except (GatewayRefused, DataError) as error:
            self._folder.say(f"what the version was trained on is not looked at: {error.message}", level="warn")
            return ()

    def _unseen(self, serving: Serving, held_out: Sequence[Question], taught: Sequence[Question]) -> Serving:
        """What serves, with what is left out because it was taught before. Raises HeldOutTaught as `refuse_taught`."""
        context, notes = self._job.context, list(serving.notes)
        if context.candidate is None or not context.records:
            refuse_taught(self._job, held_out, taught, None)
            return serving
        memory = Memory(self._gateway, self._folder, notes.append)
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
        if context.live is not None and not self._gateway.reads_stores(context.live):
            return Serving(notes=(unread(context.live),))
        return Serving(live=context.live)

    def _count(self, text: str) -> int:
        return self._gateway.count_tokens(self._job.base_name, text)

    # asking

    async def _ask(self, plan: Plan, asked: tuple[Question, ...]) -> Outcome:
        path, wanted, at_once = self._folder.path, plan.evaluation, self._job.concurrency
        endpoint = Endpoint(self._job.gateway, SecretStr(path(spec.KEY).read_text().strip()))
        scorer = HttpScorer(endpoint, path(spec.SCORES), concurrency=at_once)
        bench = Bench(endpoint, scorer, self._folder.directory, self._settings, at_once)
        return await run(
            wanted,
            asked,
            answerer=HttpAnswerer(
                endpoint,
                path(spec.ANSWERS),
                endpoints=self._outside(wanted),
                max_tokens=wanted.max_tokens,
                concurrency=at_once,
            ),
            scorer=scorer,
            suites=suites_of(wanted, bench),
            judge=judge_of(wanted, bench),
            on_stage=self._tell,
        )

    def _outside(self, wanted: EvaluationSpec) -> dict[str, Endpoint]:
        """The operator's endpoints, where an arm is at one of them."""
        if all(arm.endpoint is None for arm in wanted.arms):
            return {}
        return endpoints.read(self._settings.endpoints).reachable()

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._check()
        before, at = self._said
        if stage != before or time.monotonic() - at > SAID_S:
            self._said = (stage, time.monotonic())
            self._folder.write(PROGRESS, Progress(stage=stage, done=done, total=total))

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

    def _keep(self, report: EvaluationReport) -> Kept:
        """Write the report and have the gateway keep it, each part once."""
        kept = self._folder.read(spec.KEPT, Kept) or Kept()
        for part, name, content in (
            ("report", REPORT, report.model_dump_json(by_alias=True)),
            ("page", PAGE, render(report)),
        ):
            self._check()
            self._folder.path(name).write_text(content, "utf-8")
            if getattr(kept, part) is None:
                kept_as = self._gateway.keep(f"{self._job.id}-{name}", content.encode(), RESULTS)
                kept = kept.model_copy(update={part: kept_as})
                self._folder.write(spec.KEPT, kept)
        return kept

    def _conclude(self, plan: Plan, verdict: Verdict, kept: Kept) -> tuple[bool | None, str | None]:
        """Write the verdict on the version and move `live` where that is due; whether it is live now, and a note."""
        candidate = self._job.context.candidate
        if candidate is None:
            return None, None
        if not self._job.context.records:
            return None, NOT_WRITTEN
        judged = Judged(
            verdict=verdict.word, sentence=verdict.sentence, metric=verdict.metric, examples=verdict.examples
        )
        body: dict[str, Any] = judged.model_dump(exclude={"live"})
        body |= {"kind": self._job.body.kind, "evaluation_id": self._job.id}
        body["files"] = {**kept.model_dump(exclude_none=True), "held_out": self._job.body.held_out}
        again = self._again(plan)
        self._gateway.record_verdict(candidate, body if again is None else body | {"evaluation": again})
        notes: list[str] = []

        def say(message: str, **more: Any) -> None:
            self._folder.say(message, **more)
            notes.append(message)

        live = promote(self._gateway, candidate, judged, self._job.body.promote, plan.pointer, say)
        return live, notes[-1] if notes else None

    def _again(self, plan: Plan) -> dict[str, Any] | None:
        """The body that asks for the same again, with all that was left open then; None where it would be too large."""
        wanted, body = plan.evaluation, self._job.body
        again: dict[str, Any] = {
            "held_out": body.held_out,
            "metric": wanted.metric.model_dump(by_alias=True, exclude_none=True),
            "suites": list(wanted.suites),
            "judge": wanted.judge,
            "max_tokens": wanted.max_tokens,
            "repeats": wanted.repeats,
        }
        if body.arms is None:
            again["model"] = self._job.context.candidate
        else:
            named = {arm.label for arm in body.arms}
            arms = [
                arm.model_dump(exclude_none=True)
                for arm in wanted.arms
                if arm.label != wanted.live or arm.label in named  # what serves then is another version's affair
            ]
            again |= {"arms": arms, "candidate": wanted.candidate, "bases": list(wanted.bases)}
        fits = len(again.get("arms", ())) <= MAX_ARMS and len(json.dumps(again)) <= MOST_BODY_BYTES
        return again if fits else None
