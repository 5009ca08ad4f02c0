"""What things cost: measured time and counted tokens, multiplied by the operator's prices. One place for every formula.

The gateway (`/v1/costs`), the trainer (estimates, jobs) and the ladder's report all compute here. Amounts are in the
operator's currency. Where a price is not set the amount is None: time and tokens are known, money is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

SECONDS_AN_HOUR: Final = 3600.0
DAYS_A_YEAR: Final = 365
MONTHS: Final = 12
MILLION: Final = 1e6
CHECKS_AN_HOUR: Final = 60
"""Answers that a person checks in an hour, one a minute."""
EXAMPLES_AN_HOUR: Final = 30
"""Examples that a person writes or curates in an hour, one every two minutes."""
RENEWED_SHARE: Final = 0.1
"""Share of the training examples that a retraining renews."""
MAX_DECIMALS: Final = 9
RULE_OF_THUMB: Final = (3.0, 5.0)
"""The field's rule: the upkeep of a year is three to five times the training cost."""


class CostSettings(BaseModel):
    """The operator's prices and rhythm, a part of the settings of gateway and trainer: both read `HATRACK_*`."""

    price_device_hour: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Price of an hour of the device that serves and trains, in your currency. Unset: costs are given "
        "in hours and tokens, and amounts of money are null.",
    )
    price_hosted_input: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Price of a million prompt tokens of a hosted model, for comparison …",
    )
    price_hosted_output: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="… and of a million tokens of its answers."
    )
    price_person_hour: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Price of an hour of a person's work on data and checks; used for the cost of a year.",
    )
    currency: str | None = Field(
        None,
        pattern=r"^[A-Z]{3}$",
        description="Currency of all prices, as its three-letter code (`EUR`); only shown.",
    )
    requests_per_month: int = Field(
        10_000,
        ge=0,
        description="Expected requests of one adapter in a month, where no traffic is measured and none is given.",
    )
    retrainings_per_year: int = Field(
        4, ge=0, le=365, description="How often an adapter's data are renewed, and it is retrained, in a year."
    )
    checked_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="At each revalidation people check as many answers as this share of the training examples; the "
        "field's rule is 5 to 10%.",
    )
    revalidate_days: float = Field(
        90,
        gt=0,
        le=36_500,
        description="Age in days at which a version's verdict expires and the version is due for revalidation.",
    )

    @property
    def prices(self) -> Prices:
        """The prices, for the formulas."""
        return Prices(
            device_hour=self.price_device_hour,
            hosted_input=self.price_hosted_input,
            hosted_output=self.price_hosted_output,
            person_hour=self.price_person_hour,
            currency=self.currency,
            requests_per_month=self.requests_per_month,
            retrainings_per_year=self.retrainings_per_year,
            revalidations_per_year=DAYS_A_YEAR / self.revalidate_days,
            checked_share=self.checked_share,
        )


class CostModel(BaseModel):
    """An immutable part of a cost."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Prices(CostModel):
    """The operator's prices, in one currency; None if not set.

    Attributes:
        device_hour: Of the device that serves and trains.
        hosted_input, hosted_output: Per million tokens of a hosted model, for comparison.
        person_hour: Of a person's work on data and checks.
        currency: Three-letter code.
        requests_per_month: Expected traffic of one adapter.
        retrainings_per_year: How often data and adapter are renewed.
        revalidations_per_year: How often a version is judged again without a retraining.
        checked_share: Answers that people check at each revalidation, as a share of the training examples.
    """

    device_hour: float | None = None
    hosted_input: float | None = None
    hosted_output: float | None = None
    person_hour: float | None = None
    currency: str | None = None
    requests_per_month: int = 10_000
    retrainings_per_year: int = 4
    revalidations_per_year: float = DAYS_A_YEAR / 90
    checked_share: float = 0.05

    @model_validator(mode="before")
    @classmethod
    def _zero_was_unset(cls, value: Any) -> Any:
        """Ladders of an earlier release wrote 0 for a price that was not set, and had no currency."""
        if isinstance(value, dict) and value and "revalidations_per_year" not in value and "currency" not in value:
            return {
                name: None if name in ("device_hour", "person_hour") and price == 0 else price
                for name, price in value.items()
            }
        return value

    def device(self, seconds: float) -> float | None:
        """The cost of device time in seconds; None without a price."""
        return _priced(seconds / SECONDS_AN_HOUR, self.device_hour)

    def people(self, hours: float) -> float | None:
        """The cost of people's work in hours; None without a price."""
        return _priced(hours, self.person_hour)

    def hosted(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """The cost of tokens at a hosted model; None unless both prices are set."""
        if self.hosted_input is None or self.hosted_output is None:
            return None
        return (prompt_tokens * self.hosted_input + completion_tokens * self.hosted_output) / MILLION


class TokenPrices(CostModel):
    """What an endpoint outside charges for a million tokens of prompts and of answers, in the operator's currency."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / MILLION


class YearCost(CostModel):
    """The cost of one year, by what it is for; amounts are None where a price that they need is not set.

    Attributes:
        requests, retraining, judging: Device time.
        data, checks: People's work: renewed examples, checked answers.
        total: The sum; None if a part is None.
        device_hours, people_hours: The same in hours, which are known without any price.
        rule_of_thumb: Three to five times the cost of one training, for comparison.
    """

    requests: float | None = None
    retraining: float | None = None
    judging: float | None = None
    data: float | None = None
    checks: float | None = None
    total: float | None = None
    device_hours: float = 0.0
    people_hours: float = 0.0
    requests_per_year: int = 0
    rule_of_thumb: tuple[float, float] | None = Field(
        None, description="Three to five times the cost of one training, for comparison."
    )


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What a year is computed from, for one version; None if it is not known.

    Attributes:
        engine_seconds: Of one request.
        training_seconds: Device time of one training; 0 without weights, which are not retrained.
        judging_seconds: Device time of one evaluation.
        examples: Training examples; their data work is counted for a version that is trained.
        requests_per_year: The traffic.
    """

    engine_seconds: float | None
    training_seconds: float | None
    judging_seconds: float | None
    examples: int | None
    requests_per_year: int


def year_cost(upkeep: Upkeep, prices: Prices) -> YearCost:
    """The cost of a year; the formulas are explained in `service/costs/COSTS.md`.

    What is not known is None in money, and left out of the hours.
    """
    trainings = 0 if upkeep.training_seconds == 0 else prices.retrainings_per_year
    revalidations = prices.revalidations_per_year
    device_s = {
        "requests": _times(upkeep.requests_per_year, upkeep.engine_seconds),
        "retraining": _times(trainings, upkeep.training_seconds),
        "judging": _times(revalidations + trainings, upkeep.judging_seconds),
    }
    people_h = {
        "data": _times(trainings * RENEWED_SHARE / EXAMPLES_AN_HOUR, upkeep.examples),
        "checks": _times(revalidations * prices.checked_share / CHECKS_AN_HOUR, upkeep.examples),
    }
    parts = {name: None if value is None else prices.device(value) for name, value in device_s.items()}
    parts |= {name: None if value is None else prices.people(value) for name, value in people_h.items()}
    once = prices.device(upkeep.training_seconds) if trainings and upkeep.training_seconds else None
    return YearCost(
        **parts,
        total=total(*parts.values()),
        device_hours=sum(value or 0.0 for value in device_s.values()) / SECONDS_AN_HOUR,
        people_hours=sum(value or 0.0 for value in people_h.values()),
        requests_per_year=upkeep.requests_per_year,
        rule_of_thumb=None if once is None else (RULE_OF_THUMB[0] * once, RULE_OF_THUMB[1] * once),
    )


def _times(count: float, each: float | None) -> float | None:
    """``count`` times something; nothing of something unknown is nothing."""
    if not count:
        return 0.0
    return None if each is None else count * each


def total(*parts: float | None) -> float | None:
    """The sum; None if a part is not known: a sum that leaves something out would look like a price."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _priced(amount: float, price: float | None) -> float | None:
    """Nothing costs nothing at any price; something costs an unknown amount without one."""
    if not amount:
        return 0.0
    return None if price is None else amount * price


def amount_text(amount: float) -> str:
    """An amount with as many digits as it needs, two significant ones at least: `1,235`, `12.50`, `0.0042`."""
    if abs(amount) >= 1000:
        return f"{amount:,.0f}"
    if amount == 0 or abs(amount) >= 0.01:
        return f"{amount:,.2f}"
    return f"{amount:.{min(MAX_DECIMALS, 1 - math.floor(math.log10(abs(amount))))}f}"
