"""Validates the metric, suites, endpoints and judge of a request before an evaluation is created."""

from __future__ import annotations

from adapters.protocol.runs import EvaluationContext
from trainer.config import Settings
from trainer.errors import EvaluationError, HeldOutInTraining, InvalidField
from trainer.evaluate.endpoints import read_endpoints
from trainer.evaluate.evaluations.schemas import EvaluationBody, adds_bases
from trainer.evaluate.factory import check_available
from trainer.evaluate.spec import check_judge_metric, check_suites, read_metric


def check_options(body: EvaluationBody, context: EvaluationContext, settings: Settings) -> None:
    """Validate the options. Blocks briefly: it reads the operator's file, and may test the sandbox.

    Raises:
        InvalidField: The metric, a suite, an endpoint or the judge is unknown or unavailable; the metric may not
            decide; suites are requested for outside endpoints; the held-out file is the candidate's training file.
    """
    if context.candidate is not None and context.held_out.sha256 in {file.sha256 for file in context.training_files}:
        raise InvalidField(
            f"`held_out` is the file that {context.candidate} was trained on; use a file it has not seen",
            param="held_out",
            code=HeldOutInTraining.code,
        )
    param = "metric"
    try:
        candidate = body.arms is None or body.candidate is not None
        check_judge_metric(read_metric(body.metric), body.judge, candidate=candidate)
        param = "suites"
        check_suites(body.suites)
        check_available(body.suites, settings)
        outside = read_endpoints(settings.endpoints)
        for index, arm in enumerate(body.arms or ()):
            param = f"arms.{index}.endpoint"
            if arm.endpoint is not None:
                outside.check_endpoint(arm.endpoint)
        param = "judge"
        if body.judge is not None:
            outside.judge(body.judge)
    except EvaluationError as error:
        raise InvalidField(f"`{param}`: {error.message}", param=param) from error
    _check_suite_arms(body, context)


def _check_suite_arms(body: EvaluationBody, context: EvaluationContext) -> None:
    """Suites need the candidate and a base, both served by the gateway."""
    if body.candidate is None or not body.suites:
        return
    endpoint_of = {arm.label: arm.endpoint for arm in body.arms or ()}
    advice = "suites only run on models that the gateway serves: send `suites` as [], or name another arm"
    if endpoint_of[body.candidate] is not None:
        raise InvalidField(
            f"`candidate` is at the endpoint {endpoint_of[body.candidate]!r}; {advice}", param="candidate"
        )
    if not adds_bases(body, context) and all(endpoint_of[label] is not None for label in body.bases):
        raise InvalidField(f"`bases` are all at outside endpoints; {advice}", param="bases")
