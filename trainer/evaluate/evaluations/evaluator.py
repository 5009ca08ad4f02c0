"""What judging a version is made of, whoever asks for it: an evaluation, a revalidation, or the end of a job.

Questions are put through the gateway that serves; the report is kept there; the verdict is written on the version.
Whatever has been done stands in the run directory, so that a worker that is started again asks nothing twice and writes
one verdict.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from pydantic import SecretStr

from trainer.config import Settings
from trainer.errors import EngineMoved
from trainer.evaluate import endpoints
from trainer.evaluate.arms import Frozen, Question
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.schemas import MAX_ARMS
from trainer.evaluate.evaluations.spec import Judged, Kept
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.page.render import render
from trainer.evaluate.plugs import Bench, judge_of, suites_of
from trainer.evaluate.report import EvaluationReport
from trainer.evaluate.run import run
from trainer.evaluate.spec import EvaluationSpec, Outcome
from trainer.evaluate.verdict import Verdict
from trainer.evaluate.wire import Endpoint
from trainer.runs import protocol
from trainer.runs.control import run_interruptible
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

RESULTS: Final = "fine-tune-results"
ENGINE: Final = "engine.json"
MAX_ENGINES: Final = 3
MAX_BODY_BYTES: Final = 60_000
"""Of the evaluation that a verdict carries, so that it can be asked for again."""


class EngineAsked(Frozen):
    """The fingerprint of the base as it was served to whoever answered."""

    fingerprint: str


class Evaluator:
    """Judges for one run.

    Args:
        run_id: Of the run: the names of the files that are kept begin with it.
        url: The gateway's.
        check: Raises where the worker is to end.
        on_stage: Hears how far a stage is: its name, how many are done, of how many.
        concurrency: Requests at once.
        settings: Gives the operator's, once something is asked: suites, judges and outside endpoints.
    """

    def __init__(
        self,
        run_id: str,
        url: str,
        directory: RunDirectory,
        gateway: Gateway,
        check: Callable[[], None],
        on_stage: Callable[[str, int, int], None],
        *,
        concurrency: int,
        settings: Callable[[], Settings],
    ) -> None:
        self._run_id, self._url = run_id, url
        self._directory, self._gateway = directory, gateway
        self._check, self._on_stage = check, on_stage
        self._concurrency, self._settings = concurrency, settings

    def kept(self) -> Kept:
        """Ids of the files that are at the gateway."""
        return self._directory.read(spec.KEPT, Kept) or Kept()

    # asking

    def write_questions(self, asked: Sequence[Question]) -> bytes:
        """Leave what is asked in the run directory; the lines."""
        lines = "".join(question.model_dump_json() + "\n" for question in asked).encode()
        self._directory.path(spec.QUESTIONS).write_bytes(lines)
        return lines

    def ask(self, wanted: EvaluationSpec, asked: tuple[Question, ...]) -> Outcome:
        """Ask all that is not answered yet.

        All answers of a verdict come from one configuration of the engine. Judging outlives a restart of the engine;
        where that comes back with another template, dtype or version, what the former one had answered says nothing
        about what the verdict will be written on: it is asked again.

        Raises:
            EngineMoved: The engine was changed each time.
            EvaluationError: There is no result to be had.
        """
        now = self._gateway.fingerprint()
        for _ in range(MAX_ENGINES):
            known = self._directory.read(ENGINE, EngineAsked)
            if known is not None and known.fingerprint != now:
                self._forget_answers()
            self._directory.write(ENGINE, EngineAsked(fingerprint=now))
            outcome = asyncio.run(run_interruptible(self._ask(wanted, asked), self._check))
            before, now = now, self._gateway.fingerprint()
            if now == before:
                if outcome.judged is not None:
                    counted = outcome.judged.counted
                    self._directory.emit_event(outcome.judged.sentence, level="info" if counted else "warn")
                return outcome
        raise EngineMoved(f"the engine was changed {MAX_ENGINES} times while it was asked")

    def _forget_answers(self) -> None:
        self._directory.emit_event(
            "the engine serves the base in another way than when this began (its template, dtype or version): what "
            "it had answered is asked again",
            level="warn",
        )
        for name in spec.ANSWER_BOOKS:
            self._directory.path(name).unlink(missing_ok=True)
        self._directory.write(spec.KEPT, Kept(held_out=self.kept().held_out))  # a report of those answers is of no use

    async def _ask(self, wanted: EvaluationSpec, asked: tuple[Question, ...]) -> Outcome:
        path, at_once, settings = self._directory.path, self._concurrency, self._settings()
        endpoint = Endpoint(self._url, SecretStr(path(protocol.KEY).read_text().strip()))
        scorer = HttpScorer(endpoint, path(spec.SCORES), concurrency=at_once)
        bench = Bench(endpoint, scorer, self._directory.directory, settings, at_once)
        return await run(
            wanted,
            asked,
            answerer=HttpAnswerer(
                endpoint,
                path(spec.ANSWERS),
                endpoints=_outside(wanted, settings),
                max_tokens=wanted.max_tokens,
                concurrency=at_once,
            ),
            scorer=scorer,
            suites=suites_of(wanted, bench),
            judge=judge_of(wanted, bench),
            on_stage=self._on_stage,
        )

    # what is left of it

    def keep_questions(self, lines: bytes, purpose: str) -> None:
        """Have the gateway keep what is asked, once."""
        kept = self.kept()
        if kept.held_out is None:
            held_out = self._gateway.upload_file(f"{self._run_id}-{spec.QUESTIONS}", lines, purpose)
            self._directory.write(spec.KEPT, kept.model_copy(update={"held_out": held_out}))

    def keep(self, report: EvaluationReport) -> Kept:
        """Write the report and have the gateway keep it, each part once."""
        kept = self.kept()
        for part, name, content in (
            ("report", spec.REPORT, report.model_dump_json(by_alias=True)),
            ("page", spec.PAGE, render(report)),
        ):
            self._check()
            self._directory.path(name).write_text(content, "utf-8")
            if getattr(kept, part) is None:
                kept_as = self._gateway.upload_file(f"{self._run_id}-{name}", content.encode(), RESULTS)
                kept = kept.model_copy(update={part: kept_as})
                self._directory.write(spec.KEPT, kept)
        return kept

    def record(
        self, candidate: str, judged: Judged, files: dict[str, Any], again: dict[str, Any] | None, **more: Any
    ) -> None:
        """Write a verdict on a version.

        Args:
            candidate: `name@version`.
            files: Ids of what it was reached by and what is left of it.
            again: The body that asks for the same again.
            more: Other fields of the verdict.
        """
        body = judged.model_dump(exclude={"live"}) | more | {"files": files}
        self._gateway.record_verdict(candidate, body if again is None else body | {"evaluation": again})


def _outside(wanted: EvaluationSpec, settings: Settings) -> dict[str, Endpoint]:
    """The operator's endpoints, where an arm is at one of them."""
    if all(arm.endpoint is None for arm in wanted.arms):
        return {}
    return endpoints.read(settings.endpoints).reachable()


def judged_of(verdict: Verdict) -> Judged:
    """What of a verdict stands on the version."""
    return Judged(
        verdict=verdict.word,
        sentence=verdict.sentence,
        metric=verdict.metric,
        examples=verdict.examples,
        rule=verdict.rule,
    )


def body_again(wanted: EvaluationSpec, held_out: str | None, what: dict[str, Any]) -> dict[str, Any] | None:
    """The body that asks `POST /v1/evaluations` for the same again, with all that was left open then.

    Args:
        what: Its `model`, or what `arms_again` gives.

    Returns:
        None where it would be too large.
    """
    again: dict[str, Any] = {
        "held_out": held_out,
        "metric": wanted.metric.model_dump(by_alias=True, exclude_none=True),
        "suites": list(wanted.suites),
        "judge": wanted.judge,
        "max_tokens": wanted.max_tokens,
        "repeats": wanted.repeats,
    } | what
    fits = len(again.get("arms", ())) <= MAX_ARMS and len(json.dumps(again)) <= MAX_BODY_BYTES
    return again if fits else None


def arms_again(wanted: EvaluationSpec, named: Collection[str]) -> dict[str, Any]:
    """The arms as a body has them. What serves then is another version's affair, but where it was named."""
    arms = [arm.model_dump(exclude_none=True) for arm in wanted.arms if arm.label != wanted.live or arm.label in named]
    return {"arms": arms, "candidate": wanted.candidate, "bases": list(wanted.bases)}
