"""A job's last part: its version is judged through the gateway that serves, the verdict is written on it, and a pass
makes it live.

Whatever has been done stands in the folder (``trainer.jobs.spec``), so that a worker that is started again asks nothing
twice, compares with what the first one compared with, and writes one verdict.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import SecretStr

from trainer.config import load_settings
from trainer.data.prepare import Prepared
from trainer.errors import EvaluationInvalid, GatewayRefused, GatewayUnreachable
from trainer.evaluate import spec as evaluation
from trainer.evaluate.arms import GROUNDED, Arm, Frozen, Question, base_at_its_best, questions
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.page.render import render
from trainer.evaluate.plugs import Bench, judge_of, suites_of
from trainer.evaluate.report import Cost, EvaluationReport, build, loss_curve
from trainer.evaluate.run import run
from trainer.evaluate.spec import EvaluationSpec, MetricWish, Outcome, common
from trainer.evaluate.verdict import Rules
from trainer.evaluate.wire import Endpoint
from trainer.jobs import spec
from trainer.jobs.folder import Folder
from trainer.jobs.gateway import Gateway
from trainer.jobs.one_engine import of_one_engine
from trainer.jobs.orders import obeying
from trainer.jobs.promotion import LIVE, Pointer, opponent, promote
from trainer.jobs.spec import Judged, Plan, Primary
from trainer.jobs.taught import Memory, left_out
from trainer.tune.lineage import Metadata

SAID_S: Final = 10.0
"""Least seconds between two events on how far a stage is."""
RESULTS: Final = "fine-tune-results"
EVALS: Final = "evals"
MOST_BODY_BYTES: Final = 60_000
"""Of the evaluation that a verdict carries, so that it can be asked for again."""
NOTHING_HELD_OUT: Final = "Not enough evidence: nothing was held out, so that there is nothing to judge by."
ALL_TAUGHT: Final = (
    "Not enough evidence: all that was held out was taught to a version before this one, or to the one that is live."
)


class Fixed(Frozen):
    """What is compared with what, and where `live` pointed when the judging began."""

    evaluation: EvaluationSpec
    pointer: Pointer
    notes: tuple[str, ...] = ()
    """What one has to know of the comparison, a sentence each, without its full stop."""
    left_out: tuple[str, ...] = ()
    """Ids of held-out questions that were taught to what came before the candidate, or to what serves."""


class Kept(Frozen):
    """Ids of files at the gateway."""

    held_out: str | None = None
    report: str | None = None
    page: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """All that are there, the report first."""
        return tuple(each for each in (self.report, self.page, self.held_out) if each is not None)


class Judging:
    """Judges the version of one job.

    Args:
        check: Raises where the worker is to end.
        name: `name@version`.
    """

    def __init__(
        self,
        job: spec.JobSpec,
        folder: Folder,
        gateway: Gateway,
        check: Callable[[], None],
        *,
        plan: Plan,
        primary: Primary,
        prepared: Prepared,
        metadata: Metadata,
        name: str,
    ) -> None:
        self._job, self._folder, self._gateway, self._check = job, folder, gateway, check
        self._plan, self._primary, self._prepared = plan, primary, prepared
        self._metadata, self._name = metadata, name
        self._said = ("", 0.0)

    def judge(self) -> tuple[Judged, tuple[str, ...]]:
        """The verdict, and the ids of the report's files; a pass has moved `live`, where that was wanted.

        Raises:
            EvaluationError, GatewayUnreachable, GatewayRefused: No verdict can be had.
        """
        judged = self._folder.read(spec.JUDGED, Judged)
        if judged is None:
            judged = self._decide() if self._prepared.held_out else self._undecided()
            self._folder.write(spec.JUDGED, judged)
        fixed = self._folder.read(spec.JUDGING, Fixed)
        expected = fixed.pointer if fixed is not None else None
        return judged.model_copy(update={"live": self._promoted(judged, expected)}), self._kept().ids

    def _promoted(self, judged: Judged, expected: Pointer | None) -> bool:
        """Whether it is live now. The verdict stands, whatever becomes of `live`."""
        try:
            return promote(self._gateway, self._name, judged, self._job.judging.promote, expected, self._folder.say)
        except (GatewayUnreachable, GatewayRefused) as error:
            by_hand = f"`hatrack promote {self._name}` makes it live"
            self._folder.say(f"where `live` points could not be settled: {error.message}. {by_hand}", level="error")
            return False

    def so_far(self) -> dict[str, Any]:
        """What of a result there is, where the judging was cut off: a verdict that stands on the version stays."""
        judged = self._folder.read(spec.JUDGED, Judged)
        return {} if judged is None else {"judged": judged, "files": self._kept().ids}

    def held_out(self) -> str | None:
        """The id of the file with the questions, once it is at the gateway."""
        return self._kept().held_out

    # the verdict

    def _decide(self) -> Judged:
        fixed = self._folder.read(spec.JUDGING, Fixed)
        if fixed is None:
            fixed = self._fix()
            self._folder.write(spec.JUDGING, fixed)
            for note in fixed.notes:
                self._folder.say(note)
        asked = self._questions(fixed)
        if not asked:
            return self._undecided(ALL_TAUGHT)
        self._folder.say(
            f"judging {self._name} by {self._primary.name} on {len(asked)} held-out examples that it has not seen"
            f"{self._of_how_many(len(asked))}, against {', '.join(arm.label for arm in fixed.evaluation.arms[1:])}"
        )
        began = time.monotonic()
        outcome = of_one_engine(
            self._folder,
            self._gateway.fingerprint,
            lambda: asyncio.run(obeying(self._ask(fixed.evaluation, asked), self._check)),
            forget=lambda: self._folder.write(spec.KEPT, Kept(held_out=self._kept().held_out)),
        )
        if outcome.verdict is None:
            raise EvaluationInvalid("an evaluation of a candidate ended without a verdict")
        if outcome.judged is not None:
            self._folder.say(outcome.judged.sentence, level="info" if outcome.judged.counted else "warn")
        report = self._report(outcome, fixed.notes, time.monotonic() - began)
        kept = self._keep(report)
        verdict = outcome.verdict
        judged = Judged(
            verdict=verdict.word, sentence=verdict.sentence, metric=verdict.metric, examples=verdict.examples
        )
        self._record(judged, kept, self._again(fixed.evaluation, kept))
        return judged

    def _undecided(self, why: str = NOTHING_HELD_OUT) -> Judged:
        """Where nothing is held out nothing is asked."""
        judged = Judged(
            verdict="not_enough_evidence",
            sentence=f"{why} At least {self._job.judging.min_examples} examples are needed.",
            metric=self._primary.name,
            examples=0,
        )
        self._record(judged, Kept(), None)
        return judged

    def _fix(self) -> Fixed:
        """Which arms: the candidate, the base at its honest best, and what serves now, each by its version."""
        job, primary = self._job, self._primary
        wish = job.judging
        notes: list[str] = []
        pointer, serving = opponent(self._gateway, self._name, notes.append)
        plan = self._plan
        bases = base_at_its_best(
            job.base_name, system=plan.system_prompt, answers=primary.answers, grounding=plan.grounding
        )
        notes += [GROUNDED] if plan.grounding else []
        there = questions(self._prepared.held_out)
        memory = Memory(self._gateway, self._folder, notes.append)
        taught = memory.taught([job.parent, serving], there, but=self._name)
        notes += [left_out(taught, len(there))] if taught else []
        arms = [Arm(label=self._name, model=self._name), *bases]
        if serving is not None:
            arms.append(Arm(label=LIVE, model=serving))
        return Fixed(
            evaluation=EvaluationSpec(
                arms=tuple(arms),
                candidate=self._name,
                bases=tuple(arm.label for arm in bases),
                live=LIVE if arms[-1].label == LIVE else None,
                metric=MetricWish(name=primary.name, pattern=primary.pattern, schema_=primary.json_schema),
                suites=wish.suites,
                taught=common([example.messages[-1].content for example in self._prepared.training.examples]),
                rules=Rules(
                    min_examples=wish.min_examples,
                    smallest_difference=wish.smallest_difference,
                    budget=Budget(accuracy=wish.forget_accuracy, perplexity=wish.forget_perplexity),
                ),
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
        lines = "".join(question.model_dump_json() + "\n" for question in asked).encode()
        self._folder.path(evaluation.QUESTIONS).write_bytes(lines)
        kept = self._kept()
        if kept.held_out is None and asked:
            name = f"{self._job.id}-{evaluation.QUESTIONS}"
            self._folder.write(spec.KEPT, Kept(held_out=self._gateway.keep(name, lines, EVALS)))
        return asked

    def _of_how_many(self, asked: int) -> str:
        there = len(self._prepared.held_out)
        return f" (drawn from {there})" if there > asked else ""

    # asking

    async def _ask(self, wanted: EvaluationSpec, asked: tuple[Question, ...]) -> Outcome:
        path, at_once, settings = self._folder.path, self._job.judging.concurrency, load_settings()
        endpoint = Endpoint(self._job.gateway, SecretStr(path(spec.KEY).read_text().strip()))
        scorer = HttpScorer(endpoint, path(spec.SCORES), concurrency=at_once)
        bench = Bench(endpoint, scorer, self._folder.directory, settings, at_once)
        return await run(
            wanted,
            asked,
            answerer=HttpAnswerer(endpoint, path(spec.ANSWERS), max_tokens=wanted.max_tokens, concurrency=at_once),
            scorer=scorer,
            suites=suites_of(wanted, bench),
            judge=judge_of(wanted, bench),
            on_stage=self._tell,
        )

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._check()
        before, at = self._said
        if stage != before or done == total or time.monotonic() - at > SAID_S:
            self._said = (stage, time.monotonic())
            self._folder.say(f"{stage}: {done} of {total}", stage=stage, done=done, total=total)

    # what is left of it

    def _kept(self) -> Kept:
        return self._folder.read(spec.KEPT, Kept) or Kept()

    def _report(self, outcome: Outcome, notes: tuple[str, ...], seconds: float) -> EvaluationReport:
        training = self._metadata.training
        return build(
            outcome.comparison,
            outcome.verdict,
            adapter=self._name,
            created_at=datetime.now(UTC),
            loss_curve=loss_curve(self._folder.metrics()),
            data=self._prepared.report,
            lineage=self._metadata.lineage,
            cost=Cost(
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

    def _keep(self, report: EvaluationReport) -> Kept:
        """Write the report and have the gateway keep it, each part once."""
        kept = self._kept()
        for part, name, content in (
            ("report", evaluation.REPORT, report.model_dump_json(by_alias=True)),
            ("page", evaluation.PAGE, render(report)),
        ):
            self._folder.path(name).write_text(content, "utf-8")
            if getattr(kept, part) is None:
                kept_as = self._gateway.keep(f"{self._job.id}-{name}", content.encode(), RESULTS)
                kept = kept.model_copy(update={part: kept_as})
                self._folder.write(spec.KEPT, kept)
        return kept

    def _again(self, wanted: EvaluationSpec, kept: Kept) -> dict[str, Any] | None:
        """The body that asks `POST /v1/evaluations` for the same again; None where it would be too large."""
        arms = [
            {"label": arm.label, "model": arm.model, "prompt": arm.prompt.model_dump()}
            | ({} if arm.grounding is None else {"grounding": arm.grounding})
            for arm in wanted.arms
            if arm.label != LIVE
        ]
        body = {
            "arms": arms,
            "candidate": wanted.candidate,
            "bases": list(wanted.bases),
            "held_out": kept.held_out,
            "metric": wanted.metric.model_dump(exclude_none=True),
            "suites": list(wanted.suites),
            "judge": wanted.judge,
            "max_tokens": wanted.max_tokens,
            "repeats": wanted.repeats,
        }
        return body if len(json.dumps(body)) <= MOST_BODY_BYTES else None

    def _record(self, judged: Judged, kept: Kept, again: dict[str, Any] | None) -> None:
        body = {
            "verdict": judged.verdict,
            "sentence": judged.sentence,
            "metric": judged.metric,
            "examples": judged.examples,
            "kind": "training",
            "files": kept.model_dump(exclude_none=True),
        }
        self._gateway.record_verdict(self._name, body if again is None else body | {"evaluation": again})
        self._folder.say(
            judged.sentence,
            level="info" if judged.verdict == "pass" else "warn",
            verdict=judged.verdict,
            metric=judged.metric,
            examples=judged.examples,
        )
