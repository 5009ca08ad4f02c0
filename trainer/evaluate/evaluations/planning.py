"""What is compared with what: fixed from what was asked for and from the data, before anything is asked."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.data.findings import closed_answers
from trainer.evaluate.arms import (
    GROUNDED_NOTE,
    NO_ROOM_FOR_ANSWERS,
    TEMPLATE_TOKENS,
    Arm,
    Frozen,
    Prompt,
    Question,
    answer_list_fits,
    base_at_its_best,
    max_answer_tokens,
)
from trainer.evaluate.evaluations.held_out import as_examples
from trainer.evaluate.evaluations.promotion import LIVE, LivePointer
from trainer.evaluate.evaluations.schemas import adds_bases
from trainer.evaluate.evaluations.spec import EvaluationJob, OperatorRules
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.spec import EvaluationSpec, MetricOptions, most_frequent_answers, read_metric
from trainer.evaluate.verdict import Rules

TEXTS_COUNTED: Final = 3
"""So many of the longest texts, in characters, are counted in tokens."""


class EvaluationPlan(Frozen):
    """What is compared with what, and where `live` pointed when that was decided (None: there is no version)."""

    evaluation: EvaluationSpec
    why: str
    held_out: int
    """Examples that there are, where not all of them are asked."""
    pointer: LivePointer | None
    began_at: float
    """Unix seconds."""
    notes: tuple[str, ...] = ()
    """What one has to know of the comparison, a sentence each, without its full stop."""
    left_out: tuple[str, ...] = ()
    """Ids of held-out questions that were taught to what came before the candidate, or to what serves."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """What serves under the candidate's name now: where `live` points, and the version (`name@3`) to compare with.

    ``left_out``: see `EvaluationPlan`.
    """

    pointer: LivePointer | None = None
    live: str | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


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
    serving: LiveState,
    count: Callable[[str], int],
) -> EvaluationPlan:
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
    known = [*taught, *held_out]
    metric, why = _metric(job, known)
    max_tokens = body.max_tokens or max_answer_tokens(
        _longest((question.reference for question in known), count), job.context_tokens
    )
    closed, untold = _closed_answers(job, known, asked, max_tokens, count)
    arms, bases, candidate = _arms(job, closed)
    live, arms = _with_live(job, arms, candidate, serving.live)
    evaluation = EvaluationSpec(
        arms=tuple(arms),
        candidate=candidate,
        bases=tuple(bases),
        live=live,
        metric=metric,
        suites=body.suites,
        taught=most_frequent_answers([question.reference for question in taught]),
        rules=rules_of(job),
        repeats=body.repeats or job.repeats,
        max_tokens=max_tokens,
        judge=body.judge,
    )
    return EvaluationPlan(
        evaluation=evaluation,
        why=f"{why}; {NO_ROOM_FOR_ANSWERS}" if untold else why,
        held_out=len(held_out),
        pointer=serving.pointer,
        began_at=time.time(),
        notes=(*serving.notes, *([GROUNDED_NOTE] if job.context.grounding and adds_bases(body, job.context) else [])),
        left_out=serving.left_out,
    )


def _closed_answers(
    job: EvaluationJob,
    known: Sequence[Question],
    asked: Sequence[Question],
    max_tokens: int,
    count: Callable[[str], int],
) -> tuple[tuple[str, ...], bool]:
    """The closed set of answers that the base is told, empty where there is none; and whether one had no room."""
    closed = tuple(sorted(closed_answers(as_examples(known)) or ())) if adds_bases(job.body, job.context) else ()
    if not closed:
        return (), False
    beside = _longest_prompt(job, asked, count) + max_tokens
    fits = answer_list_fits(closed, beside, count=count, context=job.context_tokens)
    return (closed, False) if fits else ((), True)


def rules_of(operator: OperatorRules) -> Rules:
    """What a verdict goes by."""
    return Rules(
        min_examples=operator.min_examples,
        smallest_difference=operator.smallest_difference,
        live_margin=operator.live_margin,
        budget=Budget(accuracy=operator.forget_accuracy, perplexity=operator.forget_perplexity),
    )


def _metric(job: EvaluationJob, known: Sequence[Question]) -> tuple[MetricOptions, str]:
    wish = read_metric(job.body.metric)
    if wish is not None:
        return wish, "it was asked for"
    chosen = choose_primary(as_examples(known))
    return MetricOptions(name=chosen.primary.name), chosen.why


def _arms(job: EvaluationJob, closed: tuple[str, ...]) -> tuple[list[Arm], list[str], str | None]:
    """The arms, the bases' labels, and the candidate's. ``closed``: the answers that the base is told."""
    body, context = job.body, job.context
    best = base_at_its_best(job.base_name, system=context.system_prompt, answers=closed, grounding=context.grounding)
    if body.arms is None:
        candidate = str(context.candidate)
        return [Arm(label=candidate, model=candidate), *best], [arm.label for arm in best], candidate
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
    bases = list(body.bases)
    for arm in best if adds_bases(job.body, job.context) else ():
        there = next((one for one in arms if one.model_copy(update={"label": arm.label}) == arm), None)
        if there is None:
            there = arm.model_copy(update={"label": _free_label(arm.label, arms)})
            arms.append(there)
        if there.label not in bases:
            bases.append(there.label)
    return arms, bases, body.candidate


def _free_label(label: str, arms: Sequence[Arm]) -> str:
    """The label, or one like it that no arm has."""
    taken = {arm.label for arm in arms}
    return next(one for one in (label, *(f"{label} ({at})" for at in range(2, 99))) if one not in taken)


def _with_live(
    job: EvaluationJob, arms: list[Arm], candidate: str | None, live: str | None
) -> tuple[str | None, list[Arm]]:
    """The label of the arm that serves now, and the arms with it.

    A revalidation asks whether a version still holds, not whether another is better. Of arms that a client named, the
    one that serves is taken; one more is asked only where a pass would replace it.
    """
    if live is None or candidate is None or not compares_with_live(job, live):
        return None, arms
    others = [arm for arm in arms if arm.label not in (candidate, *job.body.bases)]
    for arm in others:
        if arm == Arm(label=arm.label, model=live):
            return arm.label, arms
    if job.body.arms is not None and job.body.promote != "auto":
        return None, arms  # it is asked, but as one that the candidate is to beat, or with another prompt
    label = _free_label(LIVE, arms)
    return label, [*arms, Arm(label=label, model=live)]


def compares_with_live(job: EvaluationJob, live: str) -> bool:
    """Whether what serves (`name@3`) is asked, too."""
    body = job.body
    if body.kind == "revalidation":
        return False
    return body.arms is None or body.promote == "auto" or live in job.context.models.values()


def _longest_prompt(job: EvaluationJob, asked: Sequence[Question], count: Callable[[str], int]) -> int:
    """What the longest question takes with the candidate's system prompt, in tokens: rather a few too many."""
    longest = _longest(("\n".join(turn.content for turn in question.turns) for question in asked), count)
    turns = max(len(question.turns) for question in asked)
    system = job.context.system_prompt
    return longest + turns * TEMPLATE_TOKENS + (count(system) if system else 0)


def _longest(texts: Iterable[str], count: Callable[[str], int]) -> int:
    """The longest one, in tokens."""
    return max(count(text) for text in sorted(set(texts), key=lambda text: -len(text))[:TEXTS_COUNTED])
