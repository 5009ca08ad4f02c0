"""The evaluation options of a job: those of the request, checked before it is created, and the operator's rules."""

from __future__ import annotations

from trainer.config import Settings
from trainer.errors import EvaluationError, InvalidField
from trainer.evaluate.endpoints import read_endpoints
from trainer.evaluate.evaluations.spec import operator_rules
from trainer.evaluate.factory import check_available
from trainer.evaluate.spec import check_judge_metric, check_suites, read_metric
from trainer.finetune.schemas import JobRequest
from trainer.finetune.spec import EvaluationOptions


def evaluation_options(request: JobRequest, settings: Settings) -> EvaluationOptions:
    """The evaluation options of a request. Blocks: reads the endpoints file and imports modules.

    Raises:
        InvalidField: No such metric, suite or judge, or the metric cannot decide a verdict.
    """
    options, place = request.options, request.place
    try:
        param = place("metric")
        metric = read_metric(options.metric)
        check_judge_metric(metric, options.judge, candidate=True)
        param = place("suites")
        suites = EvaluationOptions.model_fields["suites"].default if options.suites is None else options.suites
        check_suites(suites)
        check_available(suites, settings)
        param = place("judge")
        if options.judge is not None:
            read_endpoints(settings.endpoints).judge(options.judge)
    except EvaluationError as error:
        raise InvalidField(f"`{param}`: {error.message}", param=param) from error
    except RecursionError as error:  # from checking a JSON schema, which takes several calls per level
        raise InvalidField(f"`{param}` is nested too deeply", param=param) from error
    return EvaluationOptions(
        promote=options.promote,
        metric=None if metric is None else metric.name,
        pattern=None if metric is None else metric.pattern,
        json_schema=None if metric is None else metric.schema_,
        suites=tuple(dict.fromkeys(suites)),
        judge=options.judge,
        **operator_rules(settings).model_dump(),
    )
