"""Adapters, their versions, aliases and verdicts."""

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, final

VerdictWord: TypeAlias = Literal["pass", "fail", "not_enough_evidence"]


Servable: TypeAlias = Literal["ok", "other_base", "damaged", "corrupt"]
"""Whether a ready version can serve now. `other_base`: it was proven on another base model; `damaged`: its files are;
`corrupt`: the engine failed under it."""


RevalidationState: TypeAlias = Literal["fresh", "due", "failed"]
"""Whether a version's latest verdict still holds."""


Effect: TypeAlias = Literal["not_applied", "weak", "applied"]
"""How far an adapter moves the base model's answers."""


class Fingerprint(TypedDict):
    """The identity of a served base model: short hashes, and names for the last three fields."""

    weights: str
    config: str
    tokenizer: str
    template: str
    dtype: str
    quantization: str
    engine_version: str


class Sampling(TypedDict):
    """Defaults for request fields; a value in the request wins."""

    temperature: NotRequired[float]
    top_p: NotRequired[float]
    top_k: NotRequired[int]
    min_p: NotRequired[float]
    presence_penalty: NotRequired[float]
    frequency_penalty: NotRequired[float]
    repetition_penalty: NotRequired[float]
    max_tokens: NotRequired[int]
    seed: NotRequired[int]
    stop: NotRequired[str | list[str]]


class GroundingSettings(TypedDict):
    """How a version's prompts are grounded; a request's own `grounding` wins, field by field. Timeouts in seconds."""

    provider: NotRequired[str]
    vector_store_ids: NotRequired[list[str]]
    max_num_results: NotRequired[int]
    filters: NotRequired[dict[str, Any] | None]
    required_filters: NotRequired[list[str]]
    """Attributes of which every request must give a value, or its key carry one."""
    score_threshold: NotRequired[float | None]
    insert_as: NotRequired[Literal["passages", "turns"]]
    """`turns`: examples stand before the conversation as earlier turns, and are not quoted."""
    template: NotRequired[str | None]
    max_passage_tokens: NotRequired[int]
    on_failure: NotRequired[Literal["fail_open", "fail_closed"] | None]
    timeout_s: NotRequired[float | None]


class PromptExample(TypedDict):
    """A question and its answer, shown in every prompt of a version as an earlier turn."""

    user: str
    assistant: str


class AdapterSettings(TypedDict):
    """What a version has beside its weights; changed settings make a new version."""

    system_prompt: NotRequired[str | None]
    examples: NotRequired[list[PromptExample]]
    """Stand before the conversation, after its system message."""
    sampling: NotRequired[Sampling]
    """Defaults for request fields; a value in the request wins."""
    grounding: NotRequired[GroundingSettings | None]


class ReferenceAgreement(TypedDict):
    """The adapter's effect in the engine against the trainer's measurement (`metadata.proof`), in nats per token."""

    disagreement: float
    """Difference between the two effects."""
    tolerance: float
    """Largest difference allowed."""
    base_gap: float
    """Difference between the two measurements of the base model."""
    effect: float
    """The trainer's measurement of the effect."""
    conclusive: bool
    """Whether the effect exceeds the tolerance; if not, agreement proves nothing."""


class PlainTextPerplexity(TypedDict):
    """Perplexity of one long plain text under the base model and under the adapter, both from the engine."""

    text_id: str
    """Perplexities are comparable only over the same text."""
    tokens: int
    """Tokens of the text that fit the context; with 512 or fewer, no long prompt was tested."""
    base: float
    adapter: float
    ratio: float
    """`adapter` divided by `base`; a version is held back at 10 or more."""


class MixedBatchProof(TypedDict):
    """How far each model's answers move when all run in one batch instead of alone, in nats per token."""

    base: float
    adapter: float
    neighbour: NotRequired[float | None]
    """Another loaded adapter; None if there was none."""


@final
class AdapterProof(TypedDict):
    """Evidence that the engine applies the adapter: log-probabilities over probe texts, in nats per token."""

    format: Literal[1]
    probes_id: str
    """Numbers compare only over the same probe texts."""
    tokens: int
    noise: float
    """Distance of the base model from itself, run twice."""
    distance: float
    """Mean distance of the adapter from the base model."""
    largest: float
    """Largest distance at any token."""
    effect: Effect
    reference: NotRequired[ReferenceAgreement | None]
    """None if the upload had no `metadata.proof`."""
    perplexity: NotRequired[PlainTextPerplexity | None]
    """Missing if an older gateway proved it."""
    mixed_batch: NotRequired[MixedBatchProof | None]
    """Missing if an older gateway proved it."""
    warnings: list[str]


@final
class SettingsProof(TypedDict):
    """Evidence for a version without weights: its prompt renders under the base's chat template, and fits."""

    format: Literal[1]
    kind: Literal["settings"]
    prompt_tokens: int
    """Tokens of system prompt and examples, rendered with a question of one mark."""
    context_tokens: int
    """Tokens that the engine's context holds."""
    warnings: list[str]


class HeldBack(TypedDict):
    """Why `live` moves to the version only by force."""

    code: Literal["perplexity_too_high"]
    message: str
    ratio: float
    limit: float


class Rejection(TypedDict):
    """Why a version was rejected."""

    code: str
    message: str
    param: str | None


class VersionRevalidation(TypedDict):
    """Whether the latest verdict still holds on the current engine."""

    state: RevalidationState
    reasons: list[Literal["tokenizer", "template", "dtype", "quantization", "engine_version", "age", "rule"]]
    """What has changed since the verdict; empty while the state is `fresh`."""


class AdapterVerdict(TypedDict):
    """An evaluation's verdict on a version."""

    object: Literal["adapter.verdict"]
    id: str
    adapter: str
    version: int
    verdict: VerdictWord
    sentence: str
    """The verdict as a sentence."""
    metric: str
    examples: int
    """Number of held-out examples."""
    kind: Literal["training", "evaluation", "revalidation"]
    """What ran the evaluation."""
    evaluation_id: str | None
    files: dict[Literal["report", "page", "held_out", "scores"], str]
    """File ids."""
    base: Fingerprint
    """The base model as served during the evaluation."""
    key_id: str
    """The API key that recorded it."""
    created_at: int
    rule: int
    """Version of the decision rule; later ones are stricter."""
    compared_with: NotRequired[str | None]
    """Of a revalidation: id of the verdict that it was compared with, question by question."""
    holds: NotRequired[bool | None]
    """Whether that verdict still holds; None: neither is shown."""


class RecordedVerdict(AdapterVerdict):
    """A verdict with the request that repeats its evaluation."""

    evaluation: dict[str, Any] | None
    """Body for `POST /v1/evaluations`."""


class AdapterVersion(TypedDict):
    """One version of an adapter."""

    object: Literal["adapter.version"]
    adapter: str
    version: int
    digest: str | None
    """SHA-256 of configuration and weights; the name that the engine knows it by. None: the version has no weights, the
    base answers with its settings."""
    state: Literal["proving", "ready", "rejected"]
    servable: Servable
    aliases: list[str]
    """Aliases that point to it, alone or in a split."""
    rank: int | None
    """None without weights."""
    alpha: float | None
    """None without weights."""
    target_modules: list[str]
    bytes: int
    """Size of the weights file; 0 without weights."""
    base: Fingerprint
    """The base model that it was uploaded for."""
    base_name: str | None
    """The served name of the base that it serves on; None: of none that is served now."""
    created_at: int
    expires_at: int | None
    """Unix time in seconds, of a job's checkpoint that only its own alias points to."""
    settings: AdapterSettings
    metadata: dict[str, Any]
    proof: AdapterProof | SettingsProof | None
    """None until it is proven; without weights a SettingsProof, which has the key `kind`."""
    held_back: HeldBack | None
    """None if `live` may move to it."""
    warnings: list[str]
    verdict: AdapterVerdict | None
    """The latest; None if it was never evaluated."""
    revalidation: VersionRevalidation | None
    """None if it was never evaluated."""
    reason: NotRequired[Rejection | None]
    """Only for a rejected version."""


class Adapter(TypedDict):
    """An adapter with its aliases and its versions, except rejected ones."""

    object: Literal["adapter"]
    name: str
    created_at: int
    aliases: dict[str, int | None]
    """Version by alias; None for a split alias (see `splits`)."""
    splits: dict[str, dict[str, int]]
    """For each split alias, weights by version."""
    pinned: bool
    """Whether the engine keeps the live version loaded."""
    versions: list[AdapterVersion]


class AliasMove(TypedDict):
    """A move of an alias; `version` and `split` are None where it was deleted."""

    version: int | None
    split: dict[str, int] | None
    action: Literal["push", "promote", "split", "rollback", "delete"]
    created_at: int


class AdapterAlias(TypedDict):
    """Where an alias points: either `version` or `split` is set."""

    object: Literal["adapter.alias"]
    adapter: str
    alias: str
    version: int | None
    split: dict[str, int] | None
    """Weights by version."""
    history: list[AliasMove]
    """All its moves, newest first."""


class DeletedAlias(TypedDict):
    """A deleted alias."""

    object: Literal["adapter.alias"]
    adapter: str
    alias: str
    deleted: Literal[True]


class AdapterPin(TypedDict):
    """Whether the engine keeps an adapter's live version loaded."""

    object: Literal["adapter.pin"]
    adapter: str
    pinned: bool
    versions: list[int]
    """Versions kept loaded: those that `live` points at and that have weights; empty if not pinned."""
