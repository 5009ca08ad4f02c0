"""By what a job's adapter will be judged: fixed before it is trained, by its training examples or by the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.data.findings import closed_answers
from trainer.data.format import Example
from trainer.data.render import TokenSequence
from trainer.evaluate.arms import NO_ROOM_FOR_ANSWERS, answer_list_fits, max_answer_tokens
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.spec import MetricOptions
from trainer.finetune.spec import JudgingWish, Primary


def choose(
    wish: JudgingWish,
    examples: Sequence[Example],
    sequences: Sequence[TokenSequence],
    *,
    held_out: Sequence[TokenSequence],
    count: Callable[[str], int],
    context: int,
) -> Primary:
    """Fix the metric that decides.

    Args:
        wish: What was asked for.
        examples: What is trained on.
        sequences: The same, rendered.
        held_out: What it is judged by, rendered.
        count: Gives a text's length in tokens.
        context: The engine's, in tokens.

    Raises:
        EvaluationInvalid: There is no such metric, or it may not decide.
    """
    if wish.metric is None:
        chosen = choose_primary(examples)
        name, why = chosen.primary.name, chosen.why
    else:
        asked = MetricOptions(name=wish.metric, pattern=wish.pattern, schema_=wish.json_schema)
        name, why = asked.primary().name, "it was asked for"
    max_tokens = max_answer_tokens(max(sum(sequence.trained) for sequence in sequences), context)
    closed = tuple(sorted(closed_answers(examples) or ()))
    if closed:
        beside = max(len(sequence.tokens) for sequence in (*sequences, *held_out)) + max_tokens
        if not answer_list_fits(closed, beside, count=count, context=context):
            closed, why = (), f"{why}; {NO_ROOM_FOR_ANSWERS}"
    return Primary(
        name=name,
        pattern=wish.pattern,
        json_schema=wish.json_schema,
        why=why,
        answers=closed,
        max_tokens=max_tokens,
    )
