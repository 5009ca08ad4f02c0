"""Planning an evaluation: arms, metric and limits, fixed from the request and the data before anything is asked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.data.findings import closed_answers
from trainer.evaluate.arms import (
    BARE_BASE_NOTE,
    GROUNDED_NOTE,
    NO_ROOM_FOR_ANSWERS,
    PLAIN,
    TEMPLATE_TOKENS,
    Arm,
    Prompt,
    Question,
    answer_list_fits,
    base_at_its_best,
    check_filters,
    max_answer_tokens,
    required_filters,
)
from trainer.evaluate.base_prompts import BasePrompts, base_prompts, longest, passage_tokens, wanted_examples
from trainer.evaluate.evaluations.contamination import shared_groups_note, shown_answers_note
from trainer.evaluate.evaluations.held_out import as_examples
from trainer.evaluate.evaluations.promotion import LIVE, LivePointer
from trainer.evaluate.evaluations.schemas import adds_bases
from trainer.evaluate.evaluations.spec import REVALIDATION, EvaluationJob, OperatorRules
from trainer.evaluate.forgetting import Budget
from trainer.evaluate.looks import example_key
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.spec import EvaluationSpec, MetricOptions, most_frequent_answers, read_metric
from trainer.evaluate.verdict import Rules
from trainer.runs.protocol import Frozen


class EvaluationPlan(Frozen):
    """The plan of an evaluation. ``pointer``: where `live` pointed when it was made; None if unknown."""

    evaluation: EvaluationSpec
    why: str
    held_out: int
    """Number of held-out examples, of which only some may be asked."""
    pointer: LivePointer | None
    began_at: float
    """Unix seconds."""
    notes: tuple[str, ...] = ()
    """Notes on the comparison for the report, each a sentence without the full stop."""
    left_out: tuple[str, ...] = ()
    """Ids of held-out questions that an ancestor of the candidate, or the live version, was trained on."""
    shown: tuple[str, ...] = ()
    """Those of them that are left out for the candidate's prompt alone, which whoever asks for the evaluation chose."""
    unchecked: bool = False
    """Whether the candidate has training data with which the held-out questions could not be compared."""


@dataclass(frozen=True, slots=True)
class LiveState:
    """What is live under the candidate's name: where `live` points, and the version (`name@3`) to compare with.

    ``left_out``, ``shown``, ``unchecked``: see `EvaluationPlan`.
    """

    pointer: LivePointer | None = None
    live: str | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    unchecked: bool = False


def sample(job: EvaluationJob, questions: Sequence[Question]) -> tuple[Question, ...]:
    """The questions to ask: all, or a sample of `most_examples` (see `draw`)."""
    if len(questions) <= job.most_examples:
        return tuple(questions)
    return draw(questions, job.most_examples)


def draw(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """At most ``count`` of the questions, in a random order; the sample depends on the questions alone.

    One that depended on the file's bytes, or on a job's seed, could be drawn anew until a version passes. A question is
    drawn by a hash of its own, so that of a file that has grown most of the same ones are asked.
    """
    return tuple(sorted(questions, key=_draw_key)[:count])


def undrawn(questions: Sequence[Question], drawn: Sequence[Question]) -> tuple[Question, ...]:
    """The questions that are not among those that were drawn of them."""
    ids = {question.id for question in drawn}
    return tuple(question for question in questions if question.id not in ids)


def _draw_key(question: Question) -> tuple[str, str, str]:
    """Pseudo-random, and the same in every file. Of questions that are the same, the reference decides."""
    drawn = hashlib.sha256(f"sample {example_key(question)}".encode()).hexdigest()
    return drawn, question.reference, question.id


def make_plan(
    job: EvaluationJob,
    held_out: Sequence[Question],
    questions: Sequence[Question],
    trained_on: Sequence[Question],
    *,
    live_state: LiveState,
    count: Callable[[str], int],
) -> tuple[EvaluationPlan, tuple[Question, ...]]:
    """Fix arms, metric and limits.

    Args:
        job: The evaluation.
        held_out: All held-out questions.
        questions: The questions to ask.
        trained_on: The candidate's training examples, as far as known.
        live_state: What is live now.
        count: Returns a text's length in tokens.

    Returns:
        The plan, and the questions with the training examples that arms are shown before them.

    Raises:
        EvaluationInvalid: The metric is missing an option, or a question a value of the candidate's required filters.
    """
    body, grounding = job.body, job.context.grounding
    check_filters(questions, grounding, str(job.context.candidate))
    all_questions = [*trained_on, *held_out]
    metric, reason = _metric(job, all_questions)
    max_tokens = _max_tokens(job, all_questions, metric, count)
    other_tokens = _longest_prompt(job, questions, count) + max_tokens
    closed_set, no_room = _closed_answers(job, all_questions, other_tokens, count)
    room = job.context_tokens - other_tokens - passage_tokens(grounding, job.context_tokens)
    prompts = base_prompts(
        *(questions, trained_on, held_out),
        metric=metric,
        answers=closed_set,
        wanted=_wanted_examples(job, closed_set),
        for_bases=_helps_bases(job),
        room=room,
        count=count,
    )
    evaluation = _specification(job, _arms(job, closed_set, prompts), live_state.live, metric, max_tokens, trained_on)
    plan = EvaluationPlan(
        evaluation=evaluation,
        why=f"{reason}; {NO_ROOM_FOR_ANSWERS}" if no_room else reason,
        held_out=len(held_out),
        pointer=live_state.pointer,
        began_at=time.time(),
        notes=(
            *live_state.notes,
            *([GROUNDED_NOTE] if grounding and _helps_bases(job) else []),
            *([BARE_BASE_NOTE] if adds_bases(body, job.context) and not job.context.has_weights else []),
            *prompts.notes,
            *filter(None, [shared_groups_note(questions, trained_on), shown_answers_note(questions, grounding)]),
        ),
        left_out=live_state.left_out,
        shown=live_state.shown,
        unchecked=live_state.unchecked,
    )
    return plan, prompts.questions


@dataclass(frozen=True, slots=True)
class _PlannedArms:
    """The arms, the bases' labels, the candidate's label, and `EvaluationSpec.prompted`."""

    arms: list[Arm]
    bases: list[str]
    candidate: str | None
    prompted: tuple[str, ...] = ()


def _specification(
    job: EvaluationJob,
    planned: _PlannedArms,
    live: str | None,
    metric: MetricOptions,
    max_tokens: int,
    trained_on: Sequence[Question],
) -> EvaluationSpec:
    """The evaluation of the planned arms and of the live version."""
    candidate = planned.candidate
    live_label, arms = _with_live(job, planned.arms, candidate, live)
    return EvaluationSpec(
        arms=tuple(arms),
        candidate=candidate,
        bases=tuple(planned.bases),
        live=live_label,
        metric=metric,
        suites=job.body.suites,
        taught=most_frequent_answers([question.reference for question in trained_on]),
        rules=rules_of(job),
        repeats=job.body.repeats or job.repeats,
        max_tokens=max_tokens,
        template_switches=job.template_switches,
        judge=job.body.judge,
        required_filters=required_filters(job.context.grounding),
        groundings=job.context.groundings,
        prompted=planned.prompted,
    )


def _max_tokens(
    job: EvaluationJob, all_questions: Sequence[Question], metric: MetricOptions, count: Callable[[str], int]
) -> int:
    """The limit for an answer: the request's, or what the longest known reference needs."""
    if job.body.max_tokens:
        return job.body.max_tokens
    longest_reference = longest((question.reference for question in all_questions), count)
    return max_answer_tokens(longest_reference, job.context_tokens, metric=metric.name, thinking=job.thinks)


def _wanted_examples(job: EvaluationJob, closed_set: Sequence[str]) -> int:
    """How many training examples the arms are shown before a question, if there is room for them."""
    requested = max((arm.prompt.examples for arm in job.body.arms or ()), default=0)
    return max(requested, wanted_examples(closed_set) if _helps_bases(job) else 0)


def _helps_bases(job: EvaluationJob) -> bool:
    """Whether the base is compared with at its best; with a candidate without weights, a prompt itself, it is bare."""
    return job.context.has_weights and adds_bases(job.body, job.context)


def _closed_answers(
    job: EvaluationJob, all_questions: Sequence[Question], other_tokens: int, count: Callable[[str], int]
) -> tuple[tuple[str, ...], bool]:
    """The closed set of answers for the base's prompt (or empty), and whether it was left out for lack of room.

    ``other_tokens``: of the longest prompt and the longest answer.
    """
    closed_set = tuple(sorted(closed_answers(as_examples(all_questions)) or ())) if _helps_bases(job) else ()
    # tool calls are no answers that a prompt could list: the request's tools say what may be called
    if not closed_set or any(question.reference_calls for question in all_questions):
        return (), False
    fits = answer_list_fits(closed_set, other_tokens, count=count, context=job.context_tokens)
    return (closed_set, False) if fits else ((), True)


def rules_of(operator: OperatorRules) -> Rules:
    """The verdict's rules from the operator's settings."""
    return Rules(
        min_examples=operator.min_examples,
        smallest_difference=operator.smallest_difference,
        live_margin=operator.live_margin,
        most_examples=operator.most_examples,
        budget=Budget(
            accuracy=operator.forget_accuracy, chat=operator.forget_chat, perplexity=operator.forget_perplexity
        ),
        forget_items=operator.forget_items,
    )


def _metric(job: EvaluationJob, all_questions: Sequence[Question]) -> tuple[MetricOptions, str]:
    options = read_metric(job.body.metric)
    if options is not None:
        return options, "requested"
    chosen = choose_primary(as_examples(all_questions))
    return MetricOptions(name=chosen.primary.name), chosen.why


def _arms(job: EvaluationJob, closed_set: tuple[str, ...], prompts: BasePrompts) -> _PlannedArms:
    """The arms without the live version's. ``closed_set``: the answers listed in the base's prompt."""
    body, context = job.body, job.context
    base_arms = (
        base_at_its_best(
            job.base_name,
            system=context.system_prompt,
            answers=closed_set,
            instructions=prompts.instructions,
            examples=min(wanted_examples(closed_set), prompts.examples),
            grounding=context.grounding,
        )
        if context.has_weights
        else base_at_its_best(job.base_name, system=None)
    )
    if body.arms is None:
        candidate = str(context.candidate)
        return _PlannedArms(
            [Arm(label=candidate, model=candidate), *base_arms], [arm.label for arm in base_arms], candidate
        )
    arms = [
        Arm(
            label=arm.label,
            model=context.models.get(arm.label, arm.model),
            prompt=Prompt(
                system=arm.prompt.system,
                answers=arm.prompt.answers,
                instructions=arm.prompt.instructions,
                examples=min(arm.prompt.examples, prompts.examples),
            ),
            grounding=arm.grounding,
            endpoint=arm.endpoint,
        )
        for arm in body.arms
    ]
    added: list[str] = []
    for arm in base_arms if adds_bases(job.body, job.context) else ():
        same_arm = next((named for named in arms if named.model_copy(update={"label": arm.label}) == arm), None)
        if same_arm is None:
            same_arm = arm.model_copy(update={"label": _free_label(arm.label, arms)})
            arms.append(same_arm)
        added.append(same_arm.label)
    # the plain base goes first: suites are measured on it, whatever a client would have it compared with
    bases = list(dict.fromkeys([*added[:1], *body.bases, *added[1:]]))
    return _PlannedArms(arms, bases, body.candidate, _prompted(job, arms, added))


def _prompted(job: EvaluationJob, arms: Sequence[Arm], added: Sequence[str]) -> tuple[str, ...]:
    """See `EvaluationSpec.prompted`. ``added``: the labels of the base at its best, which a client does not choose.

    A revalidation has the arms of the verdict that it repeats.
    """
    if job.body.kind == REVALIDATION:
        return ()
    chosen = [arm for arm in arms if arm.endpoint is None and arm.label not in added]
    return tuple(arm.label for arm in chosen if arm.prompt != PLAIN or arm.grounding)


def _free_label(label: str, arms: Sequence[Arm]) -> str:
    """The label, with a number appended if an arm has it already."""
    taken = {arm.label for arm in arms}
    return next(
        candidate
        for candidate in (label, *(f"{label} ({number})" for number in range(2, 99)))
        if candidate not in taken
    )


def _with_live(
    job: EvaluationJob, arms: list[Arm], candidate: str | None, live: str | None
) -> tuple[str | None, list[Arm]]:
    """The label of the live arm (None if there is none), and the arms including it.

    If the client named the arms, one of them is used if it is the live version; another is added only if a pass would
    replace the live version.
    """
    if live is None or candidate is None or not compares_with_live(job, live):
        return None, arms
    others = [arm for arm in arms if arm.label not in (candidate, *job.body.bases)]
    for arm in others:
        if arm == Arm(label=arm.label, model=live):
            return arm.label, arms
    if job.body.arms is not None and job.body.promote != "auto":
        return None, arms  # it may be among the arms as a base, or with another prompt
    label = _free_label(LIVE, arms)
    return label, [*arms, Arm(label=label, model=live)]


def compares_with_live(job: EvaluationJob, live: str) -> bool:
    """Whether the live version (`name@3`) is one of the arms. A revalidation does not compare with it."""
    body = job.body
    if body.kind == "revalidation":
        return False
    return body.arms is None or body.promote == "auto" or live in job.context.models.values()


def _longest_prompt(job: EvaluationJob, questions: Sequence[Question], count: Callable[[str], int]) -> int:
    """An upper estimate of the longest prompt in tokens: question, system prompt, examples and template."""
    tokens = longest(("\n".join(turn.text for turn in question.turns) for question in questions), count)
    turns = max(len(question.turns) for question in questions)
    system = job.context.system_prompt
    shown = [text for example in job.context.examples for text in (example.user, example.assistant)]
    examples = count("\n".join(shown)) + len(shown) * TEMPLATE_TOKENS if shown else 0
    return tokens + turns * TEMPLATE_TOKENS + (count(system) if system else 0) + examples
