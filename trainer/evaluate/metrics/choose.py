"""Choosing the primary metric, from the data or by name. Never perplexity: any tuning of style lowers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer.data.findings import closed_answers
from trainer.data.format import Example
from trainer.data.split import answer
from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics import similarity
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.metrics.match import Contains, ExactMatch, Regex
from trainer.evaluate.metrics.overlap import EditSimilarity, RougeL, TokenF1
from trainer.evaluate.metrics.similarity import Similarity
from trainer.evaluate.metrics.structure import JsonExact, JsonFields, JsonSchema, JsonValid, ToolCalls, is_json
from trainer.evaluate.metrics.style import JudgePreference, Length, Refusal

NAMES: Final = (
    *("exact_match", "contains", "regex", "json_valid", "json_schema", "json_exact", "json_fields"),
    "tool_calls",
    *("similarity", "token_f1", "rouge_l", "edit_similarity", "judge", "length_words", "refusal"),
)
JUDGE: Final = JudgePreference.name
CALLING_SHARE: Final = 0.5
"""Share of answers that call tools from which the calls decide. With fewer, calls are compared as texts are."""
OVERLAP: Final = (RougeL.name, TokenF1.name, EditSimilarity.name)
"""Metrics that count words or letters in common. Stuffing an answer with frequent words raises them."""
FREE_TEXT: Final = (Similarity.name, *OVERLAP)
"""Metrics that say how close an answer is, not whether it is right: a pass needs a second measure."""


@dataclass(frozen=True, slots=True)
class MetricChoice:
    """The primary and the secondary metrics, and why. ``answers``: the closed set of answers, or empty."""

    primary: Metric
    secondary: tuple[Metric, ...]
    why: str
    answers: tuple[str, ...] = ()


def choose_primary(examples: Sequence[Example], schema: Mapping[str, Any] | None = None) -> MetricChoice:
    """Choose a metric from the training examples' answers; EVALUATION.md, "Metrics", has the reasons.

    Args:
        examples: The training examples: the held-out part may be too small to show that the set of answers is closed.
        schema: A JSON Schema that the answers must satisfy, if there is one.

    Raises:
        EvaluationInvalid: There are no examples.
    """
    if not examples:
        raise EvaluationInvalid("cannot choose a metric: there are no examples")
    style: tuple[Metric, ...] = (Length(), Refusal())
    calling = sum(bool(example.judged.tool_calls) for example in examples)
    if calling >= CALLING_SHARE * len(examples) and schema is None:
        why = f"{calling} of {len(examples)} answers call tools: the same calls must be made, with the same arguments"
        return MetricChoice(ToolCalls(), (JsonFields(), *style), why)
    if schema is not None or all(is_json(answer(example)) for example in examples):
        fits: tuple[Metric, ...] = (JsonSchema(schema),) if schema is not None else ()
        why = (
            "every answer is JSON: it must be valid"
            + (", satisfy the schema" if fits else "")
            + " and equal the reference"
        )
        return MetricChoice(JsonExact(schema), (JsonValid(), *fits, JsonFields(), *style), why)
    counts = closed_answers(examples)
    if counts is not None:
        why = f"the answers are a closed set of {len(counts)}: each question has one right answer"
        return MetricChoice(ExactMatch(), (Contains(), *style), why, tuple(sorted(counts)))
    if similarity.available() and similarity.is_english([answer(example) for example in examples]):
        why = "the answers are free text: the metric is how similar they are to the author's in meaning"
        return MetricChoice(Similarity(), (RougeL(), TokenF1(), *style), why)
    why = (
        "the answers are free text, and there is no embedding model for their language: the metric is how much of the "
        "author's wording they repeat, in the same order"
    )
    return MetricChoice(RougeL(), (TokenF1(), EditSimilarity(), *style), why)


def metric_by_name(name: str, *, pattern: str | None = None, schema: Mapping[str, Any] | None = None) -> Metric:
    """The metric of that name.

    Raises:
        EvaluationInvalid: The metric is unknown, or an option it needs is missing.
    """
    if name == "regex":
        if pattern is None:
            raise EvaluationInvalid("the metric `regex` needs a `pattern`")
        return Regex(pattern)
    if name == "json_schema":
        if schema is None:
            raise EvaluationInvalid("the metric `json_schema` needs a `schema`")
        return JsonSchema(schema)
    if name == "json_exact":
        return JsonExact(schema)
    plain: tuple[Metric, ...] = (
        *(ExactMatch(), Contains(), JsonValid(), JsonFields(), ToolCalls(), TokenF1(), RougeL(), EditSimilarity()),
        *(Similarity(), JudgePreference(), Length(), Refusal()),
    )
    for metric in plain:
        if metric.name == name:
            return metric
    raise EvaluationInvalid(f"no metric named {name[:60]!r}; known: {', '.join(NAMES)}")


def secondary_metrics(name: str, *, schema: bool = False) -> tuple[str, ...]:
    """Names of the secondary metrics to report with a primary metric."""
    if name.startswith("json_"):
        family: tuple[str, ...] = ("json_valid", *(("json_schema",) if schema else ()), "json_exact", "json_fields")
    elif name == ToolCalls.name:
        family = ("json_fields",)
    elif name in (*FREE_TEXT, JUDGE):
        family = ("rouge_l", "token_f1", "edit_similarity")
    else:
        family = ("exact_match", "contains")
    return (*(metric for metric in family if metric != name), "length_words", "refusal")


def primary_metric_by_name(name: str, *, pattern: str | None = None, schema: Mapping[str, Any] | None = None) -> Metric:
    """As `metric_by_name`, for a primary metric. Raises EvaluationInvalid also if the metric may not decide."""
    if name == "perplexity":
        raise EvaluationInvalid("perplexity cannot be the primary metric: any tuning of style lowers it")
    if name == "voice":
        raise EvaluationInvalid(
            "`voice` cannot be the primary metric: it says how an answer sounds, not whether it is right. Verdicts "
            "on free text report it; choose `similarity`, `rouge_l` or `judge`"
        )
    metric = metric_by_name(name, pattern=pattern, schema=schema)
    if not metric.decides:
        raise EvaluationInvalid(
            f"`{name}` cannot be the primary metric: it does not measure whether an answer is right"
        )
    return metric
