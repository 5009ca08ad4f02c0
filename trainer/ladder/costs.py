"""What a rung costs: per 1,000 requests, once, and in a year; the formulas stand in ``adapters.costs``.

The engine time of a request is taken from the evaluation that asked it: all arms were asked at the same time, so the
time that an arm's requests spent in the engine, as a share of all requests' time, is its share of the evaluation's
time. At another load a request costs more or less; the order of the rungs stays.
"""

from __future__ import annotations

from typing import Final

from adapters.costs import MONTHS, Prices, Upkeep, YearCost, year_cost
from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.ladder.spec import Labels
from trainer.runs.protocol import Frozen

PER: Final = 1_000
HOUR_S: Final = 3_600
"""Requests that a running cost is stated for."""


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


class OneTimeCost(Frozen):
    """What making a rung took.

    Attributes:
        device_seconds: Time of the device, a teacher's of the engine included.
        money: With what an outside teacher's tokens cost; None without the price of one of them.
        teacher: Of `money`, what the teacher's answers cost; None without a teacher, or if that is not known.
    """

    device_seconds: float = 0.0
    money: float | None = None
    teacher: float | None = None


def request_cost(scores: ArmScores, arm: ScoredArm, prices: Prices) -> RequestCost:
    """The cost of one of an arm's requests."""
    seconds = scores.wall_seconds * arm.slot_share / arm.requests if arm.requests else 0.0
    return RequestCost(
        prompt_tokens=arm.prompt_tokens,
        completion_tokens=arm.completion_tokens,
        engine_seconds=seconds,
        per_thousand=prices.device(PER * seconds),
        hosted_per_thousand=prices.hosted(PER * arm.prompt_tokens, PER * arm.completion_tokens),
    )


def one_time(device_seconds: float, prices: Prices, labels: Labels | None = None) -> OneTimeCost:
    """The cost of making a rung.

    Args:
        device_seconds: Of its training, or of making its version.
        prices: The operator's.
        labels: What the teacher did, if the rung has one.
    """
    if labels is None:
        return OneTimeCost(device_seconds=device_seconds, money=prices.device(device_seconds))
    teacher = labels.money if labels.outside else prices.device(labels.engine_seconds)
    own = prices.device(device_seconds)
    return OneTimeCost(
        device_seconds=device_seconds + labels.engine_seconds,
        money=None if own is None or teacher is None else own + teacher,
        teacher=teacher,
    )


def rung_year(
    request: RequestCost,
    prices: Prices,
    *,
    training_seconds: float,
    judging_seconds: float,
    examples: int,
    requests_per_month: int | None,
) -> YearCost:
    """The cost of a rung's year.

    Args:
        request: One request of the rung.
        prices: The operator's prices, traffic and rhythm.
        training_seconds: Device time of one training; 0 for a rung without weights, which is not retrained.
        judging_seconds: Device time of one evaluation.
        examples: Training examples; their data work is counted for a rung that is trained.
        requests_per_month: The client's own traffic; None: the operator's setting.
    """
    monthly = prices.requests_per_month if requests_per_month is None else requests_per_month
    upkeep = Upkeep(request.engine_seconds, training_seconds, judging_seconds, examples, MONTHS * monthly)
    return year_cost(upkeep, prices)


def pays_from(simple: tuple[RequestCost, YearCost], other: tuple[RequestCost, YearCost]) -> float | None:
    """From how many requests a month on the other rung costs less in a year; None: never, or the same traffic is not
    priced alike.

    Both years are of the same traffic: what does not depend on it, such as trainings, is weighed against what each
    request saves. Counts money where all prices are set, device time otherwise.
    """
    (per_request, fixed), (other_per_request, other_fixed) = (
        _by_request(*each, in_money=simple[1].total is not None and other[1].total is not None)
        for each in (simple, other)
    )
    saved = per_request - other_per_request
    return max(0.0, (other_fixed - fixed) / (MONTHS * saved)) if saved > 0 else None


def _by_request(request: RequestCost, year: YearCost, *, in_money: bool) -> tuple[float, float]:
    """What a request costs, and what a year costs without any: money, or hours of the device."""
    if in_money:
        return (request.per_thousand or 0.0) / PER, (year.total or 0.0) - (year.requests or 0.0)
    per_request = request.engine_seconds / HOUR_S
    return per_request, year.device_hours - per_request * year.requests_per_year
