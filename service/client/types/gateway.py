"""Models, citations, rendered prompts, health, API keys, the audit log and usage."""

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

EngineState: TypeAlias = Literal["starting", "ready", "stalled", "down"]


class Model(TypedDict):
    """A name that a request may send as `model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: NotRequired[str]
    """The version behind the name, `brand-voice@3`; for a split alias, the alias."""
    parent: NotRequired[str | None]
    """The base model; None for a base, and for an adapter whose base is not served now."""
    type: NotRequired[Literal["chat", "embedding"]]
    """What it is for: the routes that generate, or `/v1/embeddings`. Older gateways do not say."""


class Embedding(TypedDict):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    """Of the text in the request."""
    embedding: list[float] | str
    """A vector of length 1; base64 only where the request asked for it."""


class EmbeddingUsage(TypedDict):
    """Tokens that the model has read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The vectors of a request's texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Citation(TypedDict):
    """A passage that was put into the prompt of a grounded answer."""

    index: int
    """Its number in the prompt, from 1."""
    id: str
    source: str
    """Name of the document: a file name, a title or an address."""
    file_id: str | None
    vector_store_id: str | None
    score: float
    """Higher is better; compares only within one answer."""
    text: str
    """The beginning of the passage, up to 1,000 characters."""
    attributes: dict[str, str | bool | float]
    """Metadata of the document."""
    used: NotRequired[bool]
    """Whether the answer uses it; missing before there is an answer."""


class RenderedGrounding(TypedDict):
    """What retrieval came to for a rendered prompt."""

    outcome: Literal["ok", "empty", "no_room", "late", "broken"]
    citations: list[Citation]


class RenderedPrompt(TypedDict):
    """A chat completion's request as the engine would get it."""

    object: Literal["chat.completion.prompt"]
    model: str
    messages: list[dict[str, Any]]
    """With the version's system prompt and examples, and the retrieved passages."""
    tools: list[dict[str, Any]]
    parameters: dict[str, Any]
    """Every other field, with the version's sampling defaults."""
    grounding: RenderedGrounding | None
    """None if nothing was to be retrieved."""


class EngineHealth(TypedDict):
    """What the engine is doing, why, and since when (Unix seconds)."""

    state: EngineState
    reason: str
    since: float


class TrainerHealth(TypedDict):
    """Whether the trainer answers."""

    state: Literal["off", "starting", "up", "down"]
    """`off`: not configured; `starting`: has not answered yet."""


class NamedEngineHealth(EngineHealth):
    """One of several engines."""

    name: str
    base: str
    """The name of its base."""
    fingerprint: str


class FrontHealth(TypedDict):
    """A front that is connected to the gateway, and since when (Unix seconds)."""

    name: str
    since: float


class Readiness(TypedDict):
    """Whether the gateway answers requests, and the state of its engine and trainer."""

    status: EngineState | Literal["stopping"]
    base: str
    fingerprint: str
    """Hash of the base model and of how the engine runs it."""
    engine: EngineHealth
    engines: NotRequired[list[NamedEngineHealth] | None]
    """Where there are several: each one's state. One that is ready is enough."""
    trainer: TrainerHealth
    fronts: NotRequired[list[FrontHealth] | None]
    """Where fronts may connect: those that are connected."""


class Health(TypedDict):
    """The gateway process is up."""

    status: Literal["ok"]
    version: str


class Error(TypedDict):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    """Dotted path of the request field at fault; None if no field is."""
    code: str | None


Scope: TypeAlias = Literal["infer", "adapters", "knowledge", "train", "admin"]
"""What a key may do; `admin` implies all of them, in every project."""


class Limits(TypedDict):
    """Limits of a key; a missing one or None is unlimited. Days are UTC."""

    requests_per_minute: NotRequired[int | None]
    tokens_per_minute: NotRequired[int | None]
    concurrent: NotRequired[int | None]
    tokens_per_day: NotRequired[int | None]


class KeyObject(TypedDict):
    """An API key, without the key itself."""

    object: Literal["key"]
    id: str
    name: str
    project: str
    hint: str
    """How the key begins, so that its holder can recognise it."""
    scopes: list[Scope]
    adapters: list[str] | None
    """Globs over adapter names; None: all of the project."""
    stores: list[str] | None
    """Globs over vector store names and ids; None: all of the project."""
    filters: dict[str, str | bool | float]
    """Attributes and their values, to which every search with the key is restricted."""
    limits: Limits
    background: bool
    """The key of a job: its requests yield to callers' requests."""
    parent_key_id: str | None
    """The key that created it; revoking that key revokes this one."""
    created_at: int
    expires_at: int | None


class CreatedKey(KeyObject):
    """A new API key: the only response that contains the key itself."""

    key: str


class RotatedKey(TypedDict):
    """The new admin key."""

    object: Literal["key"]
    id: str
    key: str


class DeletedKey(TypedDict):
    """A revoked key."""

    object: Literal["key"]
    id: str
    deleted: Literal[True]


class StorageSpace(TypedDict):
    """Bytes on the disk; ``limit_bytes``: None without a limit."""

    bytes: int
    limit_bytes: int | None


class ProjectStorage(TypedDict):
    """What a project has on the disk."""

    object: Literal["storage"]
    project: str
    files: StorageSpace
    adapters: StorageSpace
    vector_stores: StorageSpace


class AuditEntry(TypedDict):
    """A change, or a count of refused requests."""

    object: Literal["audit.entry"]
    id: int
    created_at: int
    key_id: str
    key_name: str | None
    project: str
    action: str
    target: str
    detail: dict[str, Any] | None
    request_id: str | None


class UsageRow(TypedDict):
    """Requests and tokens of one group. Fields that the query does not group by are missing."""

    object: Literal["usage"]
    id: str
    start: int
    end: int
    project: NotRequired[str]
    key: NotRequired[str]
    """The key's id."""
    key_name: NotRequired[str | None]
    adapter: NotRequired[str | None]
    """The base model's name where it answered; None where nothing did."""
    version: NotRequired[int | None]
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
