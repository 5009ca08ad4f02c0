"""The suites `mmlu` and `gsm8k`: lm-evaluation-harness's tasks over the gateway, before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from trainer.evaluate.arms import Arm
from trainer.evaluate.asking import Answerer
from trainer.evaluate.compare import OnStage
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.suites import data, harness
from trainer.evaluate.suites.accuracy import accuracy_result
from trainer.evaluate.verdict import Rules

MMLU_SHOTS: Final = 5
MAX_SHOTS_CHARS: Final = 6_000
"""Above that the examples before a question are fewer: a small model's context is not filled with them."""


@dataclass(frozen=True, slots=True)
class SuiteContext:
    """What a suite asks with. ``limit``: most questions; the answerer's longest answer is the suite's own."""

    scorer: Scorer
    answerer: Answerer
    places: data.DataSources
    limit: int
    rules: Rules


@dataclass(frozen=True, slots=True)
class PreparedSuite:
    """A suite's tasks, and the questions' ids in the order of the tasks' rows."""

    tasks: dict[str, Any]
    ids: tuple[str, ...]
    source: str


class HarnessSuite:
    """A suite of the harness.

    Args:
        name: As it stands in requests.
        bench: What it asks with.
        prepare: Reads the data and makes the tasks; on a thread.
        metric: Which of the tasks' metrics.
        filtered: By which of their filters an answer is read.
        chance: What guessing gets right.
    """

    def __init__(
        self,
        name: str,
        bench: SuiteContext,
        prepare: Callable[[SuiteContext], PreparedSuite],
        *,
        metric: str,
        filtered: str,
        chance: float,
    ) -> None:
        self.name = name
        self._bench, self._prepare = bench, prepare
        self._metric, self._filtered, self._chance = metric, filtered, chance

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """See `Suite`. Raises SuiteUnavailable also: there are no data."""
        prepared = await asyncio.to_thread(self._prepare, self._bench)

        async def rights(arm: Arm) -> list[bool]:
            def told(done: int, total: int) -> None:
                if on_stage is not None:
                    on_stage(f"{self.name}, {arm.label}", done, total)

            asked = harness.ArmModel(arm, self.name, self._bench.scorer, self._bench.answerer, told)
            found = await harness.evaluate(asked, prepared.tasks, metric=self._metric, filtered=self._filtered)
            return [score > 0.5 for name in prepared.tasks for score in found[name]]

        one, other = await rights(before), await rights(after)
        return accuracy_result(
            *(self.name, prepared.source, prepared.ids, one, other), chance=self._chance, rules=self._bench.rules
        )


def mmlu(bench: SuiteContext) -> HarnessSuite:
    """Four choices by log-probability, each subject with its own examples before the question, where there are any."""
    return HarnessSuite("mmlu", bench, _mmlu, metric="acc", filtered="none", chance=0.25)


def gsm8k(bench: SuiteContext) -> HarnessSuite:
    """Eight worked examples, then the problem; the last number of the answer counts."""
    return HarnessSuite("gsm8k", bench, _gsm8k, metric="exact_match", filtered="flexible-extract", chance=0.0)


def _mmlu(bench: SuiteContext) -> PreparedSuite:
    harness.check_installed()
    found = data.mmlu(bench.places)
    drawn = data.sample(found.test, bench.limit)
    by_subject: dict[str, list[data.MmluQuestion]] = {}
    for each in drawn:
        by_subject.setdefault(each.subject, []).append(each)
    tasks, ids = {}, []
    for subject, questions in sorted(by_subject.items()):
        shots = _shots(found.dev.get(subject, ()))
        name = f"mmlu_{subject}"
        rows = {"test": [each.model_dump() for each in questions]}
        rows["dev"] = [each.model_dump() for each in shots or questions[:1]]
        told = subject.replace("_", " ")
        tasks[name] = harness.task(
            *(name, harness.MMLU, rows),
            description=f"The following are multiple choice questions (with answers) about {told}.\n\n",
            num_fewshot=len(shots),
        )
        ids += [f"{subject}/{number}" for number in range(1, len(questions) + 1)]
    shown = f"{len(drawn)} of {len(found.test)} {found.source}"
    return PreparedSuite(tasks, tuple(ids), shown)


def _shots(found: tuple[data.MmluQuestion, ...]) -> tuple[data.MmluQuestion, ...]:
    """As many of the subject's first five as are not too long together."""
    shots = found[:MMLU_SHOTS]
    while shots and sum(len(each.question) + sum(map(len, each.choices)) for each in shots) > MAX_SHOTS_CHARS:
        shots = shots[:-1]
    return shots


def _gsm8k(bench: SuiteContext) -> PreparedSuite:
    harness.check_installed()
    found = data.gsm8k(bench.places)
    drawn = data.sample(found.test, bench.limit)
    rows = {"test": [each.model_dump() for each in drawn]}
    task = harness.task("gsm8k", harness.GSM8K, rows)
    ids = tuple(str(number) for number in range(1, len(drawn) + 1))
    return PreparedSuite({"gsm8k": task}, ids, f"{len(drawn)} of {len(found.test)} {found.source}")
