"""What a body names of metrics, suites and the operator's settings, looked up before an evaluation is made."""

from __future__ import annotations

from trainer.config import Settings
from trainer.errors import EvaluationError, Invalid
from trainer.evaluate.endpoints import read
from trainer.evaluate.plugs import check_available
from trainer.evaluate.spec import check_suites, read_metric
from trainer.evaluations.asked import EvaluationBody


def check_wishes(body: EvaluationBody, settings: Settings) -> None:
    """Look everything up. Blocks for a moment: it reads the operator's file, and may try the sandbox.

    Raises:
        Invalid: There is no such metric, suite, endpoint or judge, or it cannot be had here; the metric may not decide.
    """
    param = "metric"
    try:
        read_metric(body.metric)
        param = "suites"
        check_suites(body.suites)
        check_available(body.suites, settings)
        outside = read(settings.endpoints)
        for index, arm in enumerate(body.arms or ()):
            param = f"arms.{index}.endpoint"
            if arm.endpoint is not None:
                outside.check_endpoint(arm.endpoint)
        param = "judge"
        if body.judge is not None:
            outside.judge(body.judge)
    except EvaluationError as error:
        raise Invalid(f"`{param}`: {error.message}", param=param) from error
