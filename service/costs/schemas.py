"""Costs as the API shows them. Amounts are in the operator's currency, null where a price is not set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.http.schema import ApiModel
from service.training.job_schemas import Hyperparameters, JobPlan


class Seconds(ApiModel):
    """Device time, s."""

    serving: float = Field(description="Callers' requests: their share of the engine's time.")
    evaluating: float = Field(description="Requests of runs, which judge: their share of the engine's time.")
    training: float | None = Field(description="Jobs' workers until the version was registered; null: not available.")


class Outside(ApiModel):
    """What the operator's endpoints outside were asked: teachers, judges, compared arms. Counted in no other field."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None = Field(
        description="At the prices of the time of each answer; null if the cost of one of the requests is not known."
    )
    unpriced_requests: int = Field(
        description="Whose cost is not known: the endpoint has no `price_input` and `price_output`, or told no usage."
    )


class Money(ApiModel):
    """The same at the price of the device, and what endpoints outside charged."""

    serving: float
    evaluating: float
    training: float | None
    outside: float | None = Field(description="`outside.money` of the row.")
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
    adapter: str | None = Field(
        None,
        description="The base's name where the base answered; null where nothing did, and where a key asked a teacher.",
    )
    version: int | None = None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: Seconds
    device_hours: float | None = Field(description="All of `seconds`; null if a part of it is not available.")
    outside: Outside | None = Field(description="Endpoints outside; null: not available, as the trainer is down.")
    money: Money | None = Field(description="Null without HATRACK_PRICE_DEVICE_HOUR.")
    hosted: float | None = Field(
        description="The same tokens, the embedder's aside, at HATRACK_PRICE_HOSTED_INPUT and …_OUTPUT; null unless "
        "both are set."
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
    """Whether the time of runs, and what endpoints outside charged, is in the answer."""

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
    runs_available: bool = Field(
        description="Whether the trainer has told the time and the charges of its runs this month."
    )


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


class Speed(ApiModel):
    """A measured speed of training."""

    tokens_per_second: float
    source: Literal["record", "short_run"] = Field(
        description="`record`: the median of past jobs with this method and quantization on this base and device; "
        "`short_run`: a few steps of this job, made for the estimate."
    )
    jobs: int = Field(description="Of `record`: the number of past jobs.")


class EstimatedSeconds(ApiModel):
    """Device time, s; null where nothing was measured."""

    starting: float = Field(description="Loading, preparing, exporting.")
    training: float = Field(description="At most: it may stop early.")
    judging: float | None = Field(description="By past jobs of this kind; null if none has been judged.")
    total: float | None


class EstimatedMoney(ApiModel):
    """The same at the price of the device."""

    starting: float
    training: float
    judging: float | None
    total: float | None


class JobEstimate(ApiModel):
    """What a job will take and cost."""

    object: Literal["fine_tuning.job.estimate"]
    adapter: str
    device: str
    examples: int = Field(description="That are trained on.")
    held_out: int
    epochs: int
    tokens: int = Field(description="Of all epochs.")
    hyperparameters: Hyperparameters = Field(description="The values that the job would take, as it would show them.")
    plan: JobPlan = Field(
        description="As the job would show it, with the reason for each value chosen by `auto`; the seed is the job's "
        "only if it was requested, and the grounding and sampling of a version to continue from are not in it."
    )
    speed: Speed
    seconds: EstimatedSeconds
    money: EstimatedMoney | None = Field(description="Null without HATRACK_PRICE_DEVICE_HOUR.")
    currency: str | None


class Rhythm(ApiModel):
    """How often what is done in a year."""

    retrainings_per_year: int
    revalidations_per_year: float = Field(description="365 / HATRACK_REVALIDATE_DAYS.")
    checked_share: float = Field(
        description="Answers that people check at each revalidation, of the number of training examples."
    )


class YearTraffic(ApiModel):
    """The traffic that the year is computed for."""

    source: Literal["given", "usage", "setting"] = Field(
        description="`usage`: callers' requests of the last 30 days, or since the first one, scaled; `setting`: "
        "HATRACK_REQUESTS_PER_MONTH, since there were none."
    )
    requests_per_year: int
    days: float = Field(description="That were measured.")
    requests: int = Field(description="In these days.")


class YearTraining(ApiModel):
    """The adapter's last training."""

    job: str
    version: int | None
    finished_at: int
    seconds: float = Field(description="Device time without the judging.")
    judging_seconds: float | None = Field(description="Engine time of its judging.")
    examples: int


class MeanRequest(ApiModel):
    """The mean of callers' requests to a version."""

    requests: int
    prompt_tokens: float
    completion_tokens: float
    engine_seconds: float | None = Field(description="Its share of the engine's time; null if none was measured.")


class YearTokens(ApiModel):
    """Tokens of a year."""

    prompt: int
    completion: int
    hosted: float | None = Field(description="The same tokens at a hosted model's prices.")


class Year(ApiModel):
    """The cost of a year, by what it is for; null where a price or a measurement is missing."""

    requests: float | None
    retraining: float | None
    judging: float | None
    data: float | None = Field(description="People's work on renewed examples.")
    checks: float | None = Field(description="People's work on checking answers.")
    total: float | None
    device_hours: float = Field(description="Without what was not measured.")
    people_hours: float
    requests_per_year: int
    rule_of_thumb: list[float] | None = Field(
        description="Three and five times the cost of one training: the field's rule for the upkeep of a year."
    )


class YearVersion(ApiModel):
    """One version's year, if all requests went to it."""

    version: int
    name: str
    has_weights: bool
    live: bool
    request: MeanRequest | None = Field(description="Null if callers have not asked it in the last 30 days.")
    tokens: YearTokens | None
    year: Year


class LongPrompt(ApiModel):
    """What a long prompt costs in tokens that weights do not need."""

    source: Literal["given", "usage"] = Field(
        description="`usage`: the mean prompt of the longest version without weights, less that of the shortest with."
    )
    tokens_per_request: float
    tokens_per_year: int
    hosted: float | None = Field(description="At HATRACK_PRICE_HOSTED_INPUT.")


class YearAnswer(ApiModel):
    """What an adapter's versions cost in a year."""

    object: Literal["cost.year"]
    adapter: str
    currency: str | None
    prices: Prices
    rhythm: Rhythm
    traffic: YearTraffic
    training: YearTraining | None
    runs: RunsPart
    versions: list[YearVersion]
    long_prompt: LongPrompt | None
