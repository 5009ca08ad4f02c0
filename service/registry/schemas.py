"""What the routes of adapters take and answer, as the API shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from adapters.base import Fingerprint
from service.errors import BadRequest
from service.http.schema import ApiModel
from service.registry.alias_service import ExpectedVersion
from service.registry.catalog import Servable, VersionSettings
from service.registry.json_upload import SourceBody
from service.registry.proof_schemas import AdapterProof
from service.registry.readiness import SettingsProof
from service.registry.revalidation import RevalidationState
from service.registry.split import MAX_TOTAL, MAX_VERSIONS, MIN_VERSIONS, AliasTarget, parse_split
from service.registry.upload import SAMPLING

MAX_EVALUATION_BYTES: Final = 64 * 1024
NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,63}$"
JSON_TYPES: Final[Mapping[type, str]] = {float: "number", int: "integer"}
STOP: Final = {"type": "string", "minLength": 1, "maxLength": 256}
SAMPLING_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Defaults of request fields; values in the request take precedence.",
    "properties": {
        **{
            field: {"type": JSON_TYPES[kind], "minimum": minimum, "maximum": maximum}
            for field, (kind, minimum, maximum) in SAMPLING.items()
        },
        "stop": {"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": 16}]},
    },
    "additionalProperties": False,
}
"""What `upload.parse_settings` takes."""
SPLIT_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": MAX_TOTAL},
            "minProperties": MIN_VERSIONS,
            "maxProperties": MAX_VERSIONS,
        },
        {"type": "null"},
    ]
}
"""What `split.parse_split` takes."""

FileId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
VerdictResult: TypeAlias = Literal["pass", "fail", "not_enough_evidence"]
COMPARED_WITH: Final = "Of a revalidation: the verdict (id) on this version that it was compared with, by question."
HOLDS: Final = "Whether the verdict in `compared_with` still holds; null: neither is shown."
VerdictKind: TypeAlias = Literal["training", "evaluation", "revalidation"]
Weights: TypeAlias = Annotated[
    dict[str, Annotated[int, Field(ge=1, le=MAX_TOTAL)]], Field(min_length=MIN_VERSIONS, max_length=MAX_VERSIONS)
]
"""Of a split, by the versions' numbers."""

# requests


class AdapterSettings(VersionSettings):
    """What belongs to a version beside its weights; changed settings are a new version."""

    sampling: Annotated[Mapping[str, Any], WithJsonSchema(SAMPLING_SCHEMA)] = Field(default_factory=dict)


class AdapterUpload(BaseModel):
    """The parts of an upload; each comes once. A version without weights has `settings`, and neither of the files."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str = Field(
        pattern=NAME,
        description="The adapter's name. The first upload makes the adapter, each further one a version. "
        "Best sent before `weights`: a name that the key may not use then ends the upload at once.",
    )
    config: bytes = Field(
        default_factory=bytes, description="The file adapter_config.json as PEFT saves it, up to 1 MiB."
    )
    weights: bytes = Field(
        default_factory=bytes,
        description="The file adapter_model.safetensors, up to HATRACK_MAX_ADAPTER_MIB. Pickles and archives are "
        "refused unread. Without it and `config` the version has no weights: the base answers, with the `settings`.",
    )
    readme: bytes = Field(default_factory=bytes, description="The adapter's README, up to 1 MiB.")
    metadata: dict[str, Any] = Field(
        default_factory=dict,
        description="Any JSON object up to 256 KiB, shown again with the version. Two fields mean something: `proof` "
        "(what the trainer measured; the engine's answers must agree with it) and `lineage.files` (ids of files that "
        "the version keeps from being deleted).",
    )
    settings: AdapterSettings = Field(default_factory=AdapterSettings)
    alias: str = Field(
        default_factory=str,
        description="The alias to point to the version once it is ready. Left out: `live` for the adapter's first "
        "version; empty: none.",
    )
    expires_at: int | None = Field(
        None,
        description="Unix time in seconds, in the future, at which the version is deleted with its checkpoint aliases "
        "(`ckpt-…`). Pointing any other alias to it keeps it for good, and so does uploading the same again without "
        "this field.",
    )
    base: str | None = Field(
        None,
        description="The served name of the base that the version is for, where a gateway serves several. Left out: "
        "the one that `config` names, if it is served here, else the first of `GET /v1/models`.",
    )


class SettingsUpload(BaseModel):
    """A version whose files the gateway fetches from a `source`, or one without weights: the base answers, with these
    settings."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME, description="The adapter's name.")
    source: SourceBody | None = Field(None, description="Left out: the version has no weights.")
    settings: AdapterSettings = Field(
        default_factory=AdapterSettings, description="Without a `source` at least one of them is set."
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict,
        description="As in an upload with weights. With a `source`, the gateway writes into the field `source` what it "
        "fetched: `url`, `revision` (the commit), `sha256`, `bytes`, `checked_by`, `fetched_at`.",
    )
    alias: str | None = Field(None, description="As in an upload with weights.")
    expires_at: int | None = Field(None, description="As in an upload with weights.")
    base: str | None = Field(None, description="As in an upload with weights.")


class AliasRequest(BaseModel):
    """Where an alias is to point: to one `version`, or split over several; send one of the two."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: int | None = Field(None, ge=1, le=2**31 - 1)
    split: Annotated[dict[str, int] | None, WithJsonSchema(SPLIT_SCHEMA)] = Field(
        None,
        description='Weights by version, as in `{"3": 90, "4": 10}`: each answers its share of the requests. '
        f"Together they are at most {MAX_TOTAL}.",
    )
    expected: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="Move the alias only if it points to this version now (null: only if it does not exist). "
        "Left out: wherever it points.",
    )
    force: bool = Field(False, description="Move `live` even to versions that are held back from it.")

    @property
    def target(self) -> AliasTarget:
        """Where the alias is to point. Raises BadRequest."""
        if (self.version is None) == (self.split is None):
            given = "neither" if self.split is None else "both"
            raise BadRequest(
                f"send either `version` or `split`; got {given}",
                param="version" if self.split is None else "split",
                code="missing_required_parameter" if self.split is None else None,
            )
        return self.version if self.version is not None else parse_split(self.split or {})

    @property
    def where(self) -> ExpectedVersion | None:
        """The expected target of the alias; None if the request states none."""
        return ExpectedVersion(self.expected) if "expected" in self.model_fields_set else None


class VerdictFiles(BaseModel):
    """Ids of the project's files; the version holds them as long as it lives."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    report: FileId | None = None
    page: FileId | None = None
    held_out: FileId | None = None
    scores: FileId | None = None

    def named(self) -> dict[str, str]:
        """The ids that were sent, by field name."""
        return {name: value for name, value in self if value is not None}


class VerdictRequest(BaseModel):
    """What an evaluation found of a version."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    verdict: VerdictResult
    sentence: str = Field(min_length=1, max_length=4000, description="The verdict in words.")
    metric: str = Field(min_length=1, max_length=64)
    examples: int = Field(ge=0, le=2**53, description="Number of examples that it was judged on.")
    kind: VerdictKind = Field(description="What triggered the evaluation.")
    evaluation_id: str | None = Field(None, min_length=1, max_length=64)
    files: VerdictFiles = Field(default_factory=VerdictFiles)
    evaluation: dict[str, Any] | None = Field(
        None,
        description="The body of `POST /v1/evaluations` that asks for the same evaluation again: what a revalidation "
        f"sends. At most {MAX_EVALUATION_BYTES // 1024} KiB of JSON.",
    )
    rule: int = Field(1, ge=1, le=1_000_000, description="The rule that it was decided by; later ones are stricter.")
    compared_with: str | None = Field(None, min_length=1, max_length=64, description=COMPARED_WITH)
    holds: bool | None = Field(None, description=HOLDS)

    @model_validator(mode="after")
    def _is_comparison(self) -> Self:
        if self.compared_with is not None and self.kind != "revalidation":
            raise ValueError(f"`compared_with` is only for the kind `revalidation`; got the kind `{self.kind}`")
        if self.holds is not None and self.compared_with is None:
            raise ValueError("`holds` needs `compared_with`, the id of the verdict that it is about")
        if self.compared_with is not None and (self.holds is False) != (self.verdict == "fail"):
            raise ValueError(f"with `compared_with`, `holds` is false exactly if it is a `fail`; got `{self.verdict}`")
        return self

    @field_validator("evaluation")
    @classmethod
    def _bounded(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            size = 0 if value is None else len(orjson.dumps(value))
        except orjson.JSONEncodeError:
            raise ValueError("must not be nested that deeply") from None
        if size > MAX_EVALUATION_BYTES:
            raise ValueError(f"must have at most {MAX_EVALUATION_BYTES} bytes as JSON; got {size}")
        return value


# answers: a version


class HeldBack(ApiModel):
    """Why `live` does not move to the version unless it is forced to."""

    code: Literal["perplexity_too_high"]
    message: str
    ratio: float
    limit: float


class Rejection(ApiModel):
    """Why a version was rejected."""

    code: str
    message: str
    param: str | None


class VersionRevalidation(ApiModel):
    """Whether the latest verdict still holds on the engine that runs now."""

    state: RevalidationState
    reasons: list[Literal["tokenizer", "template", "dtype", "quantization", "engine_version", "age", "rule"]] = Field(
        description="What has changed since the latest verdict; none while the state is `fresh`."
    )


class AdapterVerdict(ApiModel):
    """What an evaluation found of a version."""

    object: Literal["adapter.verdict"]
    id: str
    adapter: str
    version: int
    verdict: VerdictResult
    sentence: str = Field(description="The verdict in words.")
    metric: str
    examples: int = Field(description="Number of examples that it was judged on.")
    kind: VerdictKind = Field(description="What triggered the evaluation.")
    evaluation_id: str | None
    files: dict[Literal["report", "page", "held_out", "scores"], str] = Field(description="Ids of files.")
    base: Fingerprint = Field(description="The base as it was served meanwhile.")
    key_id: str = Field(description="Of the API key that recorded it.")
    created_at: int
    rule: int = Field(description="The rule that it was decided by; later ones are stricter.")
    compared_with: str | None = Field(None, description=COMPARED_WITH)
    holds: bool | None = Field(None, description=HOLDS)


class RecordedVerdict(AdapterVerdict):
    """A verdict with the evaluation that led to it."""

    evaluation: dict[str, Any] | None = Field(description="The body of `POST /v1/evaluations` that asks for it again.")


class AdapterVersion(ApiModel):
    """One version of an adapter."""

    object: Literal["adapter.version"]
    adapter: str
    version: int
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = Field(
        description="SHA-256 of what the engine computes with; the engine's name of it. Null: the version has no "
        "weights, the base answers with its settings."
    )
    state: Literal["proving", "ready", "rejected"]
    servable: Servable = Field(
        description="Whether a ready version can serve now: `ok`; `other_base`: it was proven on another base model; "
        "`damaged`: its files are; `corrupt`: the engine failed under it."
    )
    aliases: list[str] = Field(description="The aliases that point to it, alone or in a split.")
    rank: int | None = Field(description="Null without weights.")
    alpha: float | None = Field(description="Null without weights.")
    target_modules: list[str]
    bytes: int = Field(description="Of its weights file; 0 without weights.")
    base: Fingerprint = Field(description="The base that it was uploaded for.")
    base_name: str | None = Field(
        description="Served name of the base that it serves on; null: of none that is served."
    )
    created_at: int
    expires_at: int | None = Field(
        description="When it is deleted: a job's checkpoint, as long as only its own alias points to it. Null: never."
    )
    settings: AdapterSettings
    metadata: dict[str, Any]
    proof: AdapterProof | SettingsProof | None = Field(
        description="Null until it is proven. Without weights: how the prompt renders, with `kind` `settings`."
    )
    held_back: HeldBack | None = Field(description="Null where `live` may move to it.")
    warnings: list[str]
    verdict: AdapterVerdict | None = Field(description="The latest; null where it was never judged.")
    revalidation: VersionRevalidation | None = Field(description="Null where it was never judged.")
    reason: Rejection | None = Field(None, description="Only of a rejected version.")


# answers: adapters, aliases, pins


class Adapter(ApiModel):
    """An adapter with its versions (but the rejected ones) and aliases."""

    object: Literal["adapter"]
    name: str
    created_at: int
    aliases: dict[str, int | None] = Field(
        description="The version that each alias points to; null where it is split (see `splits`)."
    )
    splits: dict[str, Weights] = Field(description="Of the aliases that are split, the weights by version.")
    pinned: bool = Field(description="Whether the engine keeps the live version loaded.")
    versions: list[AdapterVersion]


class AliasMove(ApiModel):
    """One move of an alias; version and split are null where it was deleted."""

    version: int | None
    split: Weights | None
    action: Literal["push", "promote", "split", "rollback", "delete"]
    created_at: int


class AdapterAlias(ApiModel):
    """Where an alias points: to a version, or split over several; the other one is null."""

    object: Literal["adapter.alias"]
    adapter: str
    alias: str
    version: int | None
    split: Weights | None = Field(description="Weights by the versions' numbers.")
    history: list[AliasMove] = Field(description="All its moves, newest first.")


class DeletedAlias(ApiModel):
    """A deleted alias."""

    object: Literal["adapter.alias"]
    adapter: str
    alias: str
    deleted: Literal[True]


class AdapterPin(ApiModel):
    """Whether the engine keeps an adapter's live version loaded."""

    object: Literal["adapter.pin"]
    adapter: str
    pinned: bool
    versions: list[int] = Field(
        description="What is kept loaded: where `live` points, but for versions without weights; none where it is not "
        "pinned."
    )


class AdapterConfig(RootModel[dict[str, Any]]):
    """adapter_config.json as it was uploaded, byte for byte."""
