"""What a body names of metrics, suites and the operator's settings, looked up before an evaluation is made."""

from __future__ import annotations

from adapters.protocol.runs import EvaluationContext
from trainer.config import Settings
from trainer.errors import EvaluationError, HeldOutTaught, Invalid
from trainer.evaluate.endpoints import read_endpoints
from trainer.evaluate.evaluations.schemas import EvaluationBody, adds_bases
from trainer.evaluate.factory import check_available
from trainer.evaluate.spec import check_judge_metric, check_suites, read_metric


def check_options(body: EvaluationBody, context: EvaluationContext, settings: Settings) -> None:
    """Look everything up. Blocks for a moment: it reads the operator's file, and may try the sandbox.

    Raises:
        Invalid: There is no such metric, suite, endpoint or judge, or it cannot be had here; the metric may not decide;
            suites are wanted of what is elsewhere; what is held out is what the candidate was trained on.
    """
    if context.candidate is not None and context.held_out.sha256 in {file.sha256 for file in context.training_files}:
        raise Invalid(
            f"`held_out` is the file that {context.candidate} was trained on: name one that it has not seen",
            param="held_out",
            code=HeldOutTaught.code,
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
        raise Invalid(f"`{param}`: {error.message}", param=param) from error
    _check_suite_arms(body, context)


def _check_suite_arms(body: EvaluationBody, context: EvaluationContext) -> None:
    """Suites are put to the candidate and to a base before it, both at the gateway."""
    if body.candidate is None or not body.suites:
        return
    at = {arm.label: arm.endpoint for arm in body.arms or ()}
    said = "suites are put to models of the gateway's alone: send `suites` as [], or name another arm"
    if at[body.candidate] is not None:
        raise Invalid(f"`candidate` is at the endpoint {at[body.candidate]!r}; {said}", param="candidate")
    if not adds_bases(body, context) and all(at[label] is not None for label in body.bases):
        raise Invalid(f"`bases` are all at outside endpoints; {said}", param="bases")
