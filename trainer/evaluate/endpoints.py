"""Outside endpoints and judges from the operator's file, read and validated when the trainer starts.

The file is TOML (JUDGES.md has an example): `[endpoints.NAME]` with `url`, `model` and `key_env` or `key_file`, and
`[judges.NAME]` with `endpoint`, `model`, `rubric` and the thresholds from which the judge counts. A request refers to
them by name and never carries a URL.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from adapters.costs import TokenPrices
from trainer.config import secret_from_environment
from trainer.errors import EndpointUnknown, SettingsError
from trainer.evaluate.endpoint_client import Endpoint
from trainer.runs.protocol import Frozen

MAX_FILE_BYTES: Final = 1024 * 1024
RESERVED_FIELDS: Final = frozenset({"model", "messages", "n", "stream"})
"""Request fields that an evaluation sets itself."""


class EndpointSettings(Frozen):
    """An OpenAI-compatible API. ``url``: with or without `/v1`. ``model``: default for judges that name none.

    ``max_tokens_field``, ``send_temperature`` and ``fields``: see `Endpoint`. ``teacher``: whether it answers callers'
    prompts (`/v1/teachers`). ``price_input`` and ``price_output``: of a million tokens of prompts and of answers.
    """

    url: str = Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")
    model: str | None = Field(None, min_length=1)
    key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    key_file: Path | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_temperature: bool = True
    fields: dict[str, Any] = Field(default_factory=dict)
    teacher: bool = False
    price_input: float | None = Field(None, ge=0)
    price_output: float | None = Field(None, ge=0)

    @property
    def prices(self) -> TokenPrices | None:
        """What its tokens cost; None unless both prices are set."""
        if self.price_input is None or self.price_output is None:
            return None
        return TokenPrices(input=self.price_input, output=self.price_output)

    @field_validator("fields")
    @classmethod
    def _sendable(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted(RESERVED_FIELDS & set(value))
        if reserved:
            raise ValueError(
                f"{reserved[0]!r} is set by the evaluation; `fields` must not contain "
                f"{', '.join(sorted(RESERVED_FIELDS))}"
            )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot be encoded as JSON: {error}") from error
        return value

    @field_validator("url")
    @classmethod
    def _without_v1(cls, value: str) -> str:
        return value.rstrip("/").removesuffix("/v1").rstrip("/")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("`key_env` and `key_file` conflict; set one")
        if self.teacher and self.model is None:
            raise ValueError("a teacher needs a `model`")
        return self


class JudgeSettings(Frozen):
    """A judge and the thresholds from which it counts.

    ``rubric``: what makes an answer better, in prose. ``least_kappa``: what the lower end of the interval of Cohen's κ
    with people must reach, over at least ``least_reviews`` pairs. ``max_lean``: what the upper end of the interval of
    its lean towards the candidate must stay below; 0.1 is 10 points of 100. ``review_share``: share of an evaluation's
    pairs that people are asked to review; at least ``least_reviews`` pairs, or all of them if there are fewer.
    """

    endpoint: str
    model: str = Field(min_length=1)
    rubric: str = Field(min_length=20, max_length=20_000)
    least_kappa: float = Field(0.5, ge=0, le=1)
    least_reviews: int = Field(100, ge=50, le=10_000)
    max_lean: float = Field(0.1, gt=0, le=0.5)
    review_share: float = Field(0.1, ge=0.05, le=1)
    max_tokens: int = Field(512, ge=16, le=8_192)

    @property
    def digest(self) -> str:
        """Identifies the judge that people agreed with: a different endpoint, model or rubric starts from zero."""
        content = json.dumps([self.endpoint, self.model, self.rubric], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class OperatorEndpoints(Frozen):
    """The contents of the operator's file."""

    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)
    judges: dict[str, JudgeSettings] = Field(default_factory=dict)

    @field_validator("endpoints", "judges")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        invalid = [name for name in value if not _is_name(name)]
        if invalid:
            raise ValueError(
                f"{invalid[0]!r} is not a valid name: use at most 64 lower-case letters, digits, '.', '-' and '_'"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _models_of_endpoints(cls, value: Any) -> Any:
        """A judge without a model uses its endpoint's."""
        if not isinstance(value, dict) or not isinstance(value.get("judges"), dict):
            return value
        endpoints = value.get("endpoints")
        judges = dict(value["judges"])
        for name, judge in judges.items():
            if isinstance(judge, dict) and isinstance(endpoints, dict):
                endpoint = endpoints.get(str(judge.get("endpoint")))
                model = endpoint.get("model") if isinstance(endpoint, dict) else None
                judges[name] = judge if model is None else {"model": model, **judge}
        return {**value, "judges": judges}

    @model_validator(mode="after")
    def _endpoints_exist(self) -> Self:
        for name, judge in self.judges.items():
            if judge.endpoint not in self.endpoints:
                names = ", ".join(sorted(self.endpoints)) or "none"
                raise ValueError(f"judge {name!r}: no endpoint named {judge.endpoint!r}; known: {names}")
        return self

    def check_endpoint(self, name: str) -> None:
        """Raises EndpointUnknown, listing the known names."""
        if name not in self.endpoints:
            raise EndpointUnknown(_unknown("endpoint", name, self.endpoints))

    def judge(self, name: str) -> JudgeSettings:
        """The judge of that name. Raises EndpointUnknown, listing the known names."""
        if name not in self.judges:
            raise EndpointUnknown(_unknown("judge", name, self.judges))
        return self.judges[name]

    def reachable(self) -> dict[str, Endpoint]:
        """The endpoints with their keys, for an `Answerer`.

        Raises:
            SettingsError: A key's variable is unset, or its file cannot be read.
        """
        return {
            name: Endpoint(
                endpoint.url,
                _key(name, endpoint),
                max_tokens_field=endpoint.max_tokens_field,
                temperature=endpoint.send_temperature,
                fields=endpoint.fields,
                prices=endpoint.prices,
            )
            for name, endpoint in self.endpoints.items()
        }


def _is_name(name: str) -> bool:
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789")
    return 0 < len(name) <= 64 and name[0] in letters and set(name) <= letters | set("._-")


def _unknown(kind: str, name: str, known: dict[str, Any]) -> str:
    names = ", ".join(sorted(known)) or "none (see HATRACK_TRAINER_ENDPOINTS)"
    return f"no {kind} named {name[:64]!r} in the operator's settings; known: {names}"


def _key(name: str, endpoint: EndpointSettings) -> SecretStr | None:
    if endpoint.key_env is not None:
        value = secret_from_environment(endpoint.key_env)
        if value is None:
            raise SettingsError(
                f"endpoint {name!r}: the environment variable {endpoint.key_env} (`key_env`) is not set"
            )
        return SecretStr(value)
    if endpoint.key_file is None:
        return None
    try:
        value = endpoint.key_file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"endpoint {name!r}: cannot read the key from {endpoint.key_file} (`key_file`): {error}"
        ) from error
    if not value or not value.isprintable() or not value.isascii():
        raise SettingsError(f"endpoint {name!r}: {endpoint.key_file} (`key_file`) is empty or is not printable ASCII")
    return SecretStr(value)


def read_endpoints(path: Path | None) -> OperatorEndpoints:
    """Read and validate the operator's file, keys included; an empty result if `path` is None.

    Raises:
        SettingsError: The file cannot be read or is invalid; the message names each field.
    """
    if path is None:
        return OperatorEndpoints()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(f"HATRACK_TRAINER_ENDPOINTS: {path} is larger than {MAX_FILE_BYTES} bytes")
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"HATRACK_TRAINER_ENDPOINTS: {path} cannot be read as TOML: {error}") from error
    try:
        endpoints = OperatorEndpoints.model_validate(content)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            location = ".".join(str(part) for part in problem["loc"]) or "the file"
            problems.append(f"{path}, {location}: {problem['msg'].removeprefix('Value error, ')}")
        raise SettingsError("\n".join(problems)) from error
    endpoints.reachable()
    return endpoints
