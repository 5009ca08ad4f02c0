"""Costs, budgets, estimates and years. Amounts are in the operator's currency, None where a price is not set."""

from typing import Literal, NotRequired, TypedDict

from service.client.types.training import Hyperparameters, JobPlan


class Seconds(TypedDict):
    """Device time, s."""

    serving: float
    """Callers' requests: their share of the engine's time."""
    evaluating: float
    """Requests of runs, which judge."""
    training: float | None
    """Jobs' workers until the version was registered; None: not available."""


class Outside(TypedDict):
    """What the operator's endpoints outside were asked: teachers, judges, compared arms."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None
    """At the prices of the time of each answer; None if the cost of one of the requests is not known."""
    unpriced_requests: int
    """Whose cost is not known."""


class Money(TypedDict):
    """The same at the price of the device, and what endpoints outside charged."""

    serving: float
    evaluating: float
    training: float | None
    outside: float | None
    total: float | None
    """None if a part is not available."""


class CostRow(TypedDict):
    """Time and money of one group. Fields that the query does not group by are missing."""

    object: Literal["cost"]
    id: str
    start: int
    end: int
    project: NotRequired[str]
    key: NotRequired[str]
    """The key's id. Runs and their requests count for the key that created them."""
    key_name: NotRequired[str | None]
    adapter: NotRequired[str | None]
    version: NotRequired[int | None]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: Seconds
    device_hours: float | None
    outside: Outside | None
    """None: not available."""
    money: Money | None
    hosted: float | None
    """The same tokens at a hosted model's prices."""


class EngineCost(TypedDict):
    """The whole engine in the period, whoever asked."""

    busy_seconds: float
    idle_seconds: float
    own_seconds: float
    """Of the busy time, the gateway's own: proofs and warming."""
    busy_money: float | None
    idle_money: float | None
    own_money: float | None
    measured_since: int | None
    """Earlier requests have no engine time."""


class RunsPart(TypedDict):
    """Whether the time of runs, and what endpoints outside charged, is in the answer."""

    available: bool
    reason: str | None


class Prices(TypedDict):
    """The operator's prices."""

    device_hour: float | None
    hosted_input: float | None
    """A million prompt tokens of a hosted model."""
    hosted_output: float | None
    person_hour: float | None


class Budget(TypedDict):
    """A project's budget for a calendar month (UTC)."""

    object: Literal["budget"]
    project: str
    monthly: float
    spent: float | None
    remaining: float | None
    exhausted: bool
    resets_at: int
    runs_available: bool


class DeletedBudget(TypedDict):
    """A removed budget."""

    object: Literal["budget"]
    project: str
    deleted: Literal[True]


class CostPage(TypedDict):
    """A page of costs, over whole buckets of time."""

    object: Literal["list"]
    start: int
    end: int
    currency: str | None
    prices: Prices
    data: list[CostRow]
    engine: EngineCost | None
    """For admins."""
    runs: RunsPart
    budgets: list[Budget]
    has_more: bool


class Rhythm(TypedDict):
    """How often what is done in a year."""

    retrainings_per_year: int
    revalidations_per_year: float
    checked_share: float


class YearTraffic(TypedDict):
    """The traffic that the year is computed for."""

    source: Literal["given", "usage", "setting"]
    requests_per_year: int
    days: float
    requests: int


class YearTraining(TypedDict):
    """The adapter's last training."""

    job: str
    version: int | None
    finished_at: int
    seconds: float
    judging_seconds: float | None
    examples: int


class MeanRequest(TypedDict):
    """The mean of callers' requests to a version."""

    requests: int
    prompt_tokens: float
    completion_tokens: float
    engine_seconds: float | None


class YearTokens(TypedDict):
    """Tokens of a year."""

    prompt: int
    completion: int
    hosted: float | None


class Year(TypedDict):
    """The cost of a year, by what it is for; None where a price or a measurement is missing."""

    requests: float | None
    retraining: float | None
    judging: float | None
    data: float | None
    checks: float | None
    total: float | None
    device_hours: float
    people_hours: float
    requests_per_year: int
    rule_of_thumb: list[float] | None
    """Three and five times the cost of one training."""


class YearVersion(TypedDict):
    """One version's year, if all requests went to it."""

    version: int
    name: str
    has_weights: bool
    live: bool
    request: MeanRequest | None
    tokens: YearTokens | None
    year: Year


class LongPrompt(TypedDict):
    """What a long prompt costs in tokens that weights do not need."""

    source: Literal["given", "usage"]
    tokens_per_request: float
    tokens_per_year: int
    hosted: float | None


class YearAnswer(TypedDict):
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


class Speed(TypedDict):
    """A measured speed of training."""

    tokens_per_second: float
    source: Literal["record", "short_run"]
    """Past jobs, or a few steps of this one."""
    jobs: int


class EstimatedSeconds(TypedDict):
    """Device time, s; None where nothing was measured."""

    starting: float
    training: float
    judging: float | None
    total: float | None


class EstimatedMoney(TypedDict):
    """The same at the price of the device."""

    starting: float
    training: float
    judging: float | None
    total: float | None


class JobEstimate(TypedDict):
    """What a job will take and cost."""

    object: Literal["fine_tuning.job.estimate"]
    adapter: str
    device: str
    examples: int
    held_out: int
    epochs: int
    tokens: int
    hyperparameters: Hyperparameters
    """The values that the job would take, as it would show them."""
    plan: JobPlan
    """As the job would show it, with the reason for each `auto`. The seed is the job's only if it was requested, and
    the grounding and sampling of a version to continue from are not in it."""
    speed: Speed
    seconds: EstimatedSeconds
    money: EstimatedMoney | None
    currency: str | None
