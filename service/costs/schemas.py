"""Costs as the API shows them. Amounts are in the operator's currency, null where a price is not set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.http.schema import ApiModel


class Seconds(ApiModel):
    """Device time, s."""

    serving: float = Field(description="Callers' requests: their share of the engine's time.")
    evaluating: float = Field(description="Requests of runs, which judge: their share of the engine's time.")
    training: float | None = Field(description="Jobs' workers until the version was registered; null: not available.")


class Money(ApiModel):
    """The same at the price of the device."""

    serving: float
    evaluating: float
    training: float | None
    total: float | None = Field(description="Null if a part of it is not available.")


class CostRow(ApiModel):
    """Time and money of one group; what it is not grouped by is left out."""

    object: Literal["cost"]
    id: str
    start: int
    end: int
    project: str = ""
    key: str = Field("", description="The key's id. Runs and their requests count for the key that created them.")
    key_name: str | None = None
    adapter: str | None = Field(None, description="The base's name where the base answered; null where nothing did.")
    version: int | None = None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: Seconds
    device_hours: float | None = Field(description="All of `seconds`; null if a part of it is not available.")
    money: Money | None = Field(description="Null without HATRACK_PRICE_DEVICE_HOUR.")
    hosted: float | None = Field(
        description="The same tokens at HATRACK_PRICE_HOSTED_INPUT and …_OUTPUT; null unless both are set."
    )


class EngineCost(ApiModel):
    """The whole engine in the period, whoever asked."""

    busy_seconds: float = Field(description="Any request was in it. Equals the sum of all rows' shares and `own`.")
    idle_seconds: float = Field(description="It was up, and no request was in it.")
    own_seconds: float = Field(description="Of the busy time, the gateway's own: proofs and warming.")
    busy_money: float | None
    idle_money: float | None
    own_money: float | None
    measured_since: int | None = Field(
        description="The first hour in which engine time was measured: earlier requests have none."
    )


class RunsPart(ApiModel):
    """Whether the time of runs is in the answer."""

    available: bool
    reason: str | None


class Prices(ApiModel):
    """The operator's prices; null if not set."""

    device_hour: float | None
    hosted_input: float | None = Field(description="A million prompt tokens of a hosted model.")
    hosted_output: float | None
    person_hour: float | None


class Budget(ApiModel):
    """A project's budget for a calendar month (UTC)."""

    object: Literal["budget"]
    project: str
    monthly: float
    spent: float | None = Field(description="In this month; null without HATRACK_PRICE_DEVICE_HOUR.")
    remaining: float | None = Field(description="Below 0 by what was under way when it was spent.")
    exhausted: bool = Field(description="Inference and new runs answer 429 `insufficient_quota`.")
    resets_at: int
    runs_available: bool = Field(description="Whether the trainer has told the time of its runs this month.")


class CostPage(ApiModel):
    """A page of costs, over whole buckets of time."""

    object: Literal["list"]
    start: int
    end: int
    currency: str | None
    prices: Prices
    data: list[CostRow]
    engine: EngineCost | None = Field(description="For admins; null for others.")
    runs: RunsPart
    budgets: list[Budget]
    has_more: bool
