"""How a job wants its adapter judged: what was asked for, checked before the job is made, and the operator's rules."""

from __future__ import annotations

from trainer.config import Settings
from trainer.errors import EvaluationError, Invalid
from trainer.evaluate.endpoints import read_endpoints
from trainer.evaluate.evaluations.spec import operator_rules
from trainer.evaluate.factory import check_available
from trainer.evaluate.spec import check_judge_metric, check_suites, read_metric
from trainer.finetune.schemas import JobRequest
from trainer.finetune.spec import JudgingWish


def judging_wish(asked: JobRequest, settings: Settings) -> JudgingWish:
    """What becomes of a body's options. Blocks for a moment: it reads the operator's file, and imports.

    Raises:
        Invalid: There is no such metric, suite or judge, or the metric may not decide.
    """
    options, place = asked.options, asked.place
    try:
        param = place("metric")
        metric = read_metric(options.metric)
        check_judge_metric(metric, options.judge, candidate=True)
        param = place("suites")
        suites = JudgingWish.model_fields["suites"].default if options.suites is None else options.suites
        check_suites(suites)
        check_available(suites, settings)
        param = place("judge")
        if options.judge is not None:
            read_endpoints(settings.endpoints).judge(options.judge)
    except EvaluationError as error:
        raise Invalid(f"`{param}`: {error.message}", param=param) from error
    except RecursionError as error:  # of a schema's check, which takes many calls a level
        raise Invalid(f"`{param}` is nested too deeply", param=param) from error
    return JudgingWish(
        promote=options.promote,
        metric=None if metric is None else metric.name,
        pattern=None if metric is None else metric.pattern,
        json_schema=None if metric is None else metric.schema_,
        suites=tuple(dict.fromkeys(suites)),
        judge=options.judge,
        **operator_rules(settings).model_dump(),
    )
