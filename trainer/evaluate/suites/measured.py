"""The suites `mmlu` and `gsm8k`: tasks of lm-evaluation-harness over the gateway, before and after training."""

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
"""Few-shot examples are dropped above this length, so that they do not fill a small model's context."""


@dataclass(frozen=True, slots=True)
class SuiteContext:
    """What a suite runs with. ``limit``: maximum questions. The answerer has the suites' own `max_tokens`."""

    scorer: Scorer
    answerer: Answerer
    sources: data.DataSources
    limit: int
    rules: Rules


@dataclass(frozen=True, slots=True)
class PreparedSuite:
    """A suite's tasks, and the questions' ids in the order of the tasks' rows."""

    tasks: dict[str, Any]
    ids: tuple[str, ...]
    source: str


class HarnessSuite:
    """A suite of lm-evaluation-harness.

    Args:
        name: Its name in requests.
        context: The scorer, answerer, data sources, limit and rules to use.
        prepare: Reads the data and builds the tasks; runs on a thread.
        metric: The tasks' metric to use.
        filter_name: Which of their filters extracts the answer.
        chance: The expected accuracy of guessing.
    """

    def __init__(
        self,
        name: str,
        context: SuiteContext,
        prepare: Callable[[SuiteContext], PreparedSuite],
        *,
        metric: str,
        filter_name: str,
        chance: float,
    ) -> None:
        self.name = name
        self._context, self._prepare = context, prepare
        self._metric, self._filter_name, self._chance = metric, filter_name, chance

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """See `Suite`. Also raises SuiteUnavailable if there is no data."""
        prepared = await asyncio.to_thread(self._prepare, self._context)

        async def right_answers(arm: Arm) -> list[bool]:
            def on_progress(done: int, total: int) -> None:
                if on_stage is not None:
                    on_stage(f"{self.name}, {arm.label}", done, total)

            arm_model = harness.ArmModel(arm, self.name, self._context.scorer, self._context.answerer, on_progress)
            scores = await harness.evaluate(
                arm_model, prepared.tasks, metric=self._metric, filter_name=self._filter_name
            )
            return [score > 0.5 for name in prepared.tasks for score in scores[name]]

        base_right, candidate_right = await right_answers(before), await right_answers(after)
        return accuracy_result(
            *(self.name, prepared.source, prepared.ids, base_right, candidate_right),
            chance=self._chance,
            rules=self._context.rules,
        )


def mmlu(context: SuiteContext) -> HarnessSuite:
    """MMLU: four choices by log-probability, with few-shot examples of the same subject if available."""
    return HarnessSuite("mmlu", context, _mmlu, metric="acc", filter_name="none", chance=0.25)


def gsm8k(context: SuiteContext) -> HarnessSuite:
    """GSM8K: eight worked examples, then the problem; the last number in the answer counts."""
    return HarnessSuite("gsm8k", context, _gsm8k, metric="exact_match", filter_name="flexible-extract", chance=0.0)


def _mmlu(context: SuiteContext) -> PreparedSuite:
    harness.check_installed()
    mmlu_data = data.mmlu(context.sources)
    sampled = data.sample(mmlu_data.test, context.limit)
    by_subject: dict[str, list[data.MmluQuestion]] = {}
    for question in sampled:
        by_subject.setdefault(question.subject, []).append(question)
    tasks, ids = {}, []
    for subject, questions in sorted(by_subject.items()):
        shots = _shots(mmlu_data.dev.get(subject, ()))
        name = f"mmlu_{subject}"
        rows = {"test": [question.model_dump() for question in questions]}
        rows["dev"] = [question.model_dump() for question in shots or questions[:1]]
        subject_name = subject.replace("_", " ")
        tasks[name] = harness.task(
            *(name, harness.MMLU, rows),
            description=f"The following are multiple choice questions (with answers) about {subject_name}.\n\n",
            num_fewshot=len(shots),
        )
        ids += [f"{subject}/{number}" for number in range(1, len(questions) + 1)]
    source = f"{len(sampled)} of {len(mmlu_data.test)} {mmlu_data.source}"
    return PreparedSuite(tasks, tuple(ids), source)


def _shots(examples: tuple[data.MmluQuestion, ...]) -> tuple[data.MmluQuestion, ...]:
    """The subject's first MMLU_SHOTS examples, fewer if they are too long together."""
    shots = examples[:MMLU_SHOTS]
    while shots and sum(len(shot.question) + sum(map(len, shot.choices)) for shot in shots) > MAX_SHOTS_CHARS:
        shots = shots[:-1]
    return shots


def _gsm8k(context: SuiteContext) -> PreparedSuite:
    harness.check_installed()
    gsm8k_data = data.gsm8k(context.sources)
    sampled = data.sample(gsm8k_data.test, context.limit)
    rows = {"test": [problem.model_dump() for problem in sampled]}
    task = harness.task("gsm8k", harness.GSM8K, rows)
    ids = tuple(str(number) for number in range(1, len(sampled) + 1))
    return PreparedSuite({"gsm8k": task}, ids, f"{len(sampled)} of {len(gsm8k_data.test)} {gsm8k_data.source}")
