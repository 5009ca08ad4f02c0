"""What is compared with what: fixed from what was asked for and from the data, before anything is asked."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.data.findings import closed_answers
from trainer.evaluate.arms import Arm, Frozen, Prompt, Question, base_at_its_best
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.spec import EvaluationSpec, MetricWish, common, read_metric
from trainer.evaluate.verdict import Rules
from trainer.evaluations.held_out import as_examples
from trainer.evaluations.spec import EvaluationJob
from trainer.jobs.primary import LEAST_TOKENS, LONGER, MOST_TOKENS, TOLD_SHARE
from trainer.jobs.promotion import LIVE, Pointer

MEASURED: Final = 3
"""So many of the longest answers are counted in tokens."""


class Plan(Frozen):
    """What is compared with what, and where `live` pointed when that was decided (None: there is no version)."""

    evaluation: EvaluationSpec
    why: str
    held_out: int
    """Examples that there are, where not all of them are asked."""
    pointer: Pointer | None
    began_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves under the candidate's name now: where `live` points, and the version (`name@3`) to compare with."""

    pointer: Pointer | None = None
    live: str | None = None


def sample(job: EvaluationJob, found: Sequence[Question]) -> tuple[Question, ...]:
    """What is asked: all, or as many as may be, drawn in an order that the file alone decides."""
    if len(found) <= job.most_examples:
        return tuple(found)
    drawn = list(found)
    random.Random(job.context.held_out.sha256).shuffle(drawn)  # noqa: S311 - no secret
    return tuple(drawn[: job.most_examples])


def make_plan(
    job: EvaluationJob,
    held_out: Sequence[Question],
    asked: Sequence[Question],
    taught: Sequence[Question],
    *,
    serving: Serving,
    count: Callable[[str], int],
) -> Plan:
    """Fix arms, metric and bounds.

    Args:
        job: What was asked for.
        held_out: All that is held out.
        asked: Those that are asked.
        taught: What the candidate was trained on, as far as it is known.
        serving: What serves now.
        count: Gives a text's length in tokens.

    Raises:
        EvaluationInvalid: The metric needs something that is not given.
    """
    body = job.body
    answers = as_examples([*taught, *held_out])
    metric, why = _metric(job, [*taught, *held_out])
    arms, bases, candidate = _arms(job, tuple(sorted(closed_answers(answers) or ())), count)
    live, arms = _with_live(job, arms, candidate, serving.live)
    evaluation = EvaluationSpec(
        arms=tuple(arms),
        candidate=candidate,
        bases=tuple(bases),
        live=live,
        metric=metric,
        suites=body.suites,
        taught=common([question.reference for question in taught]),
        rules=Rules(
            min_examples=job.min_examples,
            smallest_difference=job.smallest_difference,
            budget=Budget(accuracy=job.forget_accuracy, perplexity=job.forget_perplexity),
        ),
        repeats=body.repeats or job.repeats,
        max_tokens=body.max_tokens or _longest([*taught, *held_out], count),
        judge=body.judge,
    )
    return Plan(evaluation=evaluation, why=why, held_out=len(held_out), pointer=serving.pointer, began_at=time.time())


def _metric(job: EvaluationJob, known: Sequence[Question]) -> tuple[MetricWish, str]:
    wish = read_metric(job.body.metric)
    if wish is not None:
        return wish, "it was asked for"
    chosen = choose_primary(as_examples(known))
    return MetricWish(name=chosen.primary.name), chosen.why


def _arms(
    job: EvaluationJob, closed: tuple[str, ...], count: Callable[[str], int]
) -> tuple[list[Arm], list[str], str | None]:
    """The arms, the bases' labels, and the candidate's."""
    body, context = job.body, job.context
    if body.arms is None:
        candidate = str(context.candidate)
        fits = count("\n".join(f"- {answer}" for answer in closed)) <= TOLD_SHARE * job.context_tokens if closed else 0
        bases = base_at_its_best(job.base_name, system=context.system_prompt, answers=closed if fits else ())
        return [Arm(label=candidate, model=candidate), *bases], [arm.label for arm in bases], candidate
    arms = [
        Arm(
            label=arm.label,
            model=context.models.get(arm.label, arm.model),
            prompt=Prompt(system=arm.prompt.system, answers=arm.prompt.answers),
            grounding=arm.grounding,
            endpoint=arm.endpoint,
        )
        for arm in body.arms
    ]
    return arms, list(body.bases), body.candidate


def _with_live(
    job: EvaluationJob, arms: list[Arm], candidate: str | None, live: str | None
) -> tuple[str | None, list[Arm]]:
    """The label of the arm that serves now, and the arms with it.

    A revalidation asks whether a version still holds, not whether another is better. Of arms that a client named, the
    one that serves is taken; one more is asked only where a pass would replace it.
    """
    if live is None or candidate is None or job.body.kind == "revalidation":
        return None, arms
    others = [arm for arm in arms if arm.label not in (candidate, *job.body.bases)]
    for arm in others:
        if arm.model == live and arm.endpoint is None:
            return arm.label, arms
    labels = {arm.label for arm in arms}
    if (job.body.arms is not None and job.body.promote != "auto") or LIVE in labels:
        return None, arms
    return LIVE, [*arms, Arm(label=LIVE, model=live)]


def _longest(known: Sequence[Question], count: Callable[[str], int]) -> int:
    """How long an answer may become: twice the longest that is known, in tokens."""
    texts = sorted({question.reference for question in known}, key=lambda text: -len(text))[:MEASURED]
    longest = max(count(text) for text in texts)
    return min(max(LONGER * longest, LEAST_TOKENS), MOST_TOKENS)
