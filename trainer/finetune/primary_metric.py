"""The metric that judges a job's adapter: fixed before the training, from its examples or by the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.data.findings import closed_answers
from trainer.data.format import Example
from trainer.data.render import TokenSequence
from trainer.evaluate.arms import NO_ROOM_FOR_ANSWERS, answer_list_fits, max_answer_tokens
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.spec import MetricOptions
from trainer.finetune.spec import EvaluationOptions, PrimaryMetric


def choose(
    options: EvaluationOptions,
    examples: Sequence[Example],
    sequences: Sequence[TokenSequence],
    *,
    held_out: Sequence[TokenSequence],
    count: Callable[[str], int],
    context: int,
    thinking: bool = False,
) -> PrimaryMetric:
    """Choose the primary metric.

    Args:
        options: The requested evaluation options.
        examples: The training examples.
        sequences: The training examples as tokens.
        held_out: The held-out examples as tokens.
        count: Counts the tokens of a text.
        context: The engine's context in tokens.
        thinking: The base's chat template has a thinking block that cannot be turned off.

    Raises:
        EvaluationInvalid: No such metric, or it cannot decide a verdict.
    """
    if options.metric is None:
        chosen = choose_primary(examples)
        name, why = chosen.primary.name, chosen.why
    else:
        requested = MetricOptions(name=options.metric, pattern=options.pattern, schema_=options.json_schema)
        name, why = requested.primary().name, "the request names it"
    longest_reference = max(sum(sequence.trained) for sequence in sequences)
    max_tokens = max_answer_tokens(longest_reference, context, metric=name, thinking=thinking)
    # tool calls are no answers that a prompt could list: the request's tools say what may be called
    calls_tools = any(example.judged.tool_calls for example in examples)
    closed = () if calls_tools else tuple(sorted(closed_answers(examples) or ()))
    if closed:
        beside = max(len(sequence.tokens) for sequence in (*sequences, *held_out)) + max_tokens
        if not answer_list_fits(closed, beside, count=count, context=context):
            closed, why = (), f"{why}; {NO_ROOM_FOR_ANSWERS}"
    return PrimaryMetric(
        name=name,
        pattern=options.pattern,
        json_schema=options.json_schema,
        why=why,
        answers=closed,
        max_tokens=max_tokens,
    )
