"""The time to the first token of each rung, measured through the gateway.

The evaluations ask for whole answers, many at a time. Here each rung streams a few answers, one at a time, after one
that is not counted: it loads the LoRA into its slot and caches the part of the prompt that all requests share. The
rungs take turns, so that what else the machine does slows all alike. The questions are those of training examples,
which no rung has been asked: the engine would have the others' prompts in its cache.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import Field

from trainer.errors import GatewayRefused, GatewayUnreachable
from trainer.evaluate.arms import PLAIN, Question, with_filters
from trainer.ladder.spec import FIRST_TOKENS, LadderSpec, Rung, RungKey
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import Frozen

REQUESTS: Final = 8
QUICK_REQUESTS: Final = 4
"""Counted requests of each rung."""
ANSWER_TOKENS: Final = 8
"""Only the first is timed."""


class FirstTokens(Frozen):
    """Seconds to the first token by rung, the first of which is not counted; ``failed``: rungs that did not answer."""

    seconds: dict[RungKey, tuple[float, ...]] = Field(default_factory=dict)
    failed: tuple[RungKey, ...] = ()


class FirstToken(Frozen):
    """A rung's time to the first token.

    Attributes:
        median_seconds, slowest_seconds: From sending a request to its first token.
        requests: How many were timed.
    """

    median_seconds: float
    slowest_seconds: float
    requests: int


def first_token(measured: FirstTokens | None, key: RungKey) -> FirstToken | None:
    """A rung's; None if it was not measured."""
    if measured is None or key in measured.failed:
        return None
    seconds = measured.seconds.get(key, ())[1:]
    if not seconds:
        return None
    return FirstToken(median_seconds=statistics.median(seconds), slowest_seconds=max(seconds), requests=len(seconds))


def measure_first_tokens(
    job: LadderSpec,
    rungs: Sequence[Rung],
    questions: Sequence[Question],
    directory: RunDirectory,
    gateway: Gateway,
    check: Callable[[], None],
) -> None:
    """Measure what is not measured yet; writes `FIRST_TOKENS` after each round.

    Args:
        questions: To draw from; no rung has been asked one.
        check: Called before every request; may raise to stop.
    """
    measured = directory.read(FIRST_TOKENS, FirstTokens) or FirstTokens()
    asked = drawn(questions, 1 + (QUICK_REQUESTS if job.body.quick else REQUESTS))
    if not measured.seconds:
        directory.emit_event(f"timing the first token of {len(rungs)} rungs")
    for number, question in enumerate(asked):
        for rung in rungs:
            before = measured.seconds.get(rung.key, ())
            if rung.key in measured.failed or len(before) > number:
                continue
            check()
            try:
                seconds = gateway.first_token_seconds(_body(rung, question, job.template_switches))
            except (GatewayRefused, GatewayUnreachable) as error:
                measured = measured.model_copy(update={"failed": (*measured.failed, rung.key)})
                message = f"the first token of {rung.model} could not be timed: {error.message}"
                directory.emit_event(message, level="warn")
            else:
                timed = measured.seconds | {rung.key: (*before, round(seconds, 4))}
                measured = measured.model_copy(update={"seconds": timed})
        directory.write(FIRST_TOKENS, measured)


def drawn(questions: Sequence[Question], count: int) -> list[Question]:
    """A sample by a hash of each question: the same for every rung."""
    return sorted(questions, key=lambda question: hashlib.sha256(question.text.encode()).digest())[:count]


def _body(rung: Rung, question: Question, template_switches: Mapping[str, bool]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": rung.model,
        "messages": PLAIN.messages(question),
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }
    body |= {"tools": list(question.tools)} if question.tools else {}
    body |= {"chat_template_kwargs": dict(template_switches)} if template_switches else {}
    grounding = with_filters(None, question.filters)
    return body if grounding is None else body | {"grounding": grounding}
