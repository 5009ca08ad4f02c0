"""What a rung costs: per 1,000 requests, once, and in a year.

Everything is measured time multiplied by the operator's prices; nothing is assumed but the operator's own numbers. The
engine time of a request is taken from the evaluation that asked it: all arms were asked at the same time, so the time
that an arm's requests spent in the engine, as a share of all requests' time, is its share of the evaluation's time. At
another load a request costs more or less; the order of the rungs stays.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.ladder.spec import Prices
from trainer.runs.protocol import Frozen

SECONDS_AN_HOUR: Final = 3600.0
PER: Final = 1_000
"""Requests that a running cost is stated for."""
MONTHS: Final = 12
REVALIDATIONS_A_YEAR: Final = 4
"""One every 90 days, the gateway's default."""
CHECKED_SHARE: Final = 0.05
"""People check as many answers as this share of the training examples: the low end of the field's 5 to 10%."""
CHECKS_AN_HOUR: Final = 60
"""Answers that a person checks in an hour, one a minute."""
EXAMPLES_AN_HOUR: Final = 30
"""Examples that a person writes or curates in an hour, one every two minutes."""
RENEWED_SHARE: Final = 0.1
"""Share of the training examples that a retraining renews."""
RULE_OF_THUMB: Final = (3.0, 5.0)
"""The field's rule: the upkeep of a year is three to five times the training cost."""


class RequestCost(Frozen):
    """One rung's request, measured.

    Attributes:
        engine_seconds: Engine time, s.
        per_thousand: Cost of 1,000 requests in the operator's currency; None without a price of the device.
        hosted_per_thousand: The same tokens at the operator's price of a hosted model; None without one.
    """

    prompt_tokens: float
    completion_tokens: float
    engine_seconds: float
    per_thousand: float | None = None
    hosted_per_thousand: float | None = None


class YearCost(Frozen):
    """The cost of one year, by what it is for, in the operator's currency (device time, people's time).

    ``device`` and ``people`` are the same in hours, which are known without any price.
    """

    requests: float = 0.0
    retraining: float = 0.0
    judging: float = 0.0
    data: float = 0.0
    checks: float = 0.0
    device_hours: float = 0.0
    people_hours: float = 0.0
    requests_per_year: int = 0
    rule_of_thumb: tuple[float, float] | None = Field(
        None, description="Three to five times the cost of one training, for comparison."
    )

    @property
    def total(self) -> float:
        """The sum."""
        return self.requests + self.retraining + self.judging + self.data + self.checks


class OneTimeCost(Frozen):
    """What making a rung took: seconds of the device, and money."""

    device_seconds: float = 0.0
    money: float = 0.0


def request_cost(scores: ArmScores, arm: ScoredArm, prices: Prices) -> RequestCost:
    """The cost of one of an arm's requests."""
    seconds = scores.wall_seconds * arm.slot_share / arm.requests if arm.requests else 0.0
    hosted = None
    if prices.hosted_input is not None and prices.hosted_output is not None:
        tokens = arm.prompt_tokens * prices.hosted_input + arm.completion_tokens * prices.hosted_output
        hosted = PER * tokens / 1e6
    return RequestCost(
        prompt_tokens=arm.prompt_tokens,
        completion_tokens=arm.completion_tokens,
        engine_seconds=seconds,
        per_thousand=PER * _device(seconds, prices) if prices.device_hour else None,
        hosted_per_thousand=hosted,
    )


def one_time(device_seconds: float, prices: Prices) -> OneTimeCost:
    """The cost of making a rung."""
    return OneTimeCost(device_seconds=device_seconds, money=_device(device_seconds, prices))


def year_cost(
    request: RequestCost,
    prices: Prices,
    *,
    training_seconds: float,
    judging_seconds: float,
    examples: int,
    requests_per_month: int | None,
) -> YearCost:
    """The cost of a year.

    Args:
        request: One request of the rung.
        prices: The operator's prices, traffic and rhythm.
        training_seconds: Device time of one training; 0 for a rung without weights, which is not retrained.
        judging_seconds: Device time of one evaluation.
        examples: Training examples; their data work is counted for a rung that is trained.
        requests_per_month: The client's own traffic; None: the operator's setting.
    """
    monthly = prices.requests_per_month if requests_per_month is None else requests_per_month
    yearly = MONTHS * monthly
    trainings = prices.retrainings_per_year if training_seconds else 0
    evaluations = REVALIDATIONS_A_YEAR + trainings
    renewed = trainings * RENEWED_SHARE * examples
    data_hours = renewed / EXAMPLES_AN_HOUR
    check_hours = REVALIDATIONS_A_YEAR * CHECKED_SHARE * examples / CHECKS_AN_HOUR
    device_seconds = yearly * request.engine_seconds + trainings * training_seconds + evaluations * judging_seconds
    once = _device(training_seconds, prices)
    return YearCost(
        requests=yearly * _device(request.engine_seconds, prices),
        retraining=trainings * once,
        judging=evaluations * _device(judging_seconds, prices),
        data=data_hours * prices.person_hour,
        checks=check_hours * prices.person_hour,
        device_hours=device_seconds / SECONDS_AN_HOUR,
        people_hours=data_hours + check_hours,
        requests_per_year=yearly,
        rule_of_thumb=(RULE_OF_THUMB[0] * once, RULE_OF_THUMB[1] * once) if once else None,
    )


def _device(seconds: float, prices: Prices) -> float:
    return seconds / SECONDS_AN_HOUR * prices.device_hour
