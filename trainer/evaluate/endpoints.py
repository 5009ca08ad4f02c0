"""Outside endpoints and judges, as the operator's file names them; read and checked when the trainer starts.

The file is TOML (JUDGES.md has an example): `[endpoints.NAME]` with `url`, `model` and `key_env` or `key_file`, and
`[judges.NAME]` with `endpoint`, `model`, `rubric` and what it takes until the judge counts. A request names one of
them and never carries a URL.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from trainer.config import secret_from_environment
from trainer.errors import EndpointUnknown, SettingsError
from trainer.evaluate.arms import Frozen
from trainer.evaluate.wire import Endpoint

MOST_FILE_BYTES: Final = 1024 * 1024
OURS: Final = frozenset({"model", "messages", "n", "stream"})
"""Fields of a request that an evaluation stands on."""


class EndpointSettings(Frozen):
    """An OpenAI-compatible API. ``url`` with or without `/v1`; ``model`` is what a judge asks that names none.

    ``max_tokens_field``, ``send_temperature`` and ``fields``: see `Endpoint`.
    """

    url: str = Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")
    model: str | None = Field(None, min_length=1)
    key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    key_file: Path | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_temperature: bool = True
    fields: dict[str, Any] = Field(default_factory=dict)

    @field_validator("fields")
    @classmethod
    def _may_be_sent(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(OURS & set(value))
        if ours:
            raise ValueError(f"{ours[0]!r} is not the settings' to say; nor are {', '.join(sorted(OURS - {ours[0]}))}")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"it cannot be sent as JSON: {error}") from error
        return value

    @field_validator("url")
    @classmethod
    def _without_v1(cls, value: str) -> str:
        return value.rstrip("/").removesuffix("/v1").rstrip("/")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("the key is named by `key_env` or by `key_file`, not by both")
        return self


class JudgeSettings(Frozen):
    """A judge, and from when on it counts.

    ``rubric``: what makes an answer better, in words. ``least_kappa``: Cohen's κ with people that it has to reach, over
    at least ``least_reviews`` pairs. ``review_share``: of an evaluation's pairs that people are asked about; never
    fewer than ``least_reviews``, or all of them.
    """

    endpoint: str
    model: str = Field(min_length=1)
    rubric: str = Field(min_length=20, max_length=20_000)
    least_kappa: float = Field(0.6, ge=0, le=1)
    least_reviews: int = Field(50, ge=50, le=10_000)
    review_share: float = Field(0.1, ge=0.05, le=1)
    max_tokens: int = Field(512, ge=16, le=8_192)

    @property
    def digest(self) -> str:
        """What an agreement with people was found for: another model or rubric has to earn its own."""
        content = json.dumps([self.endpoint, self.model, self.rubric], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Outside(Frozen):
    """All that the file names."""

    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)
    judges: dict[str, JudgeSettings] = Field(default_factory=dict)

    @field_validator("endpoints", "judges")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = [name for name in value if not _is_name(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name: small letters, digits, dots, dashes, underscores, 64 at most")
        return value

    @model_validator(mode="before")
    @classmethod
    def _models_of_endpoints(cls, value: Any) -> Any:
        """A judge without a model asks its endpoint's."""
        if not isinstance(value, dict) or not isinstance(value.get("judges"), dict):
            return value
        endpoints = value.get("endpoints")
        judges = dict(value["judges"])
        for name, judge in judges.items():
            if isinstance(judge, dict) and isinstance(endpoints, dict):
                known = endpoints.get(str(judge.get("endpoint")))
                model = known.get("model") if isinstance(known, dict) else None
                judges[name] = judge if model is None else {"model": model, **judge}
        return {**value, "judges": judges}

    @model_validator(mode="after")
    def _all_there(self) -> Self:
        for name, judge in self.judges.items():
            if judge.endpoint not in self.endpoints:
                known = ", ".join(sorted(self.endpoints)) or "none"
                raise ValueError(f"judge {name!r}: no endpoint is named {judge.endpoint!r}; there are: {known}")
        return self

    def check_endpoint(self, name: str) -> None:
        """Raises EndpointUnknown, naming those that are known."""
        if name not in self.endpoints:
            raise EndpointUnknown(_unknown("endpoint", name, self.endpoints))

    def judge(self, name: str) -> JudgeSettings:
        """The judge of that name. Raises EndpointUnknown, naming those that are known."""
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
                found.url,
                _key(name, found),
                max_tokens_field=found.max_tokens_field,
                temperature=found.send_temperature,
                fields=found.fields,
            )
            for name, found in self.endpoints.items()
        }


def _is_name(name: str) -> bool:
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789")
    return 0 < len(name) <= 64 and name[0] in letters and set(name) <= letters | set("._-")


def _unknown(kind: str, name: str, known: dict[str, Any]) -> str:
    listed = ", ".join(sorted(known)) or "none: HATRACK_TRAINER_ENDPOINTS names no file with any"
    return f"the operator's settings name no {kind} {name[:64]!r}; there are: {listed}"


def _key(name: str, found: EndpointSettings) -> SecretStr | None:
    if found.key_env is not None:
        value = secret_from_environment(found.key_env)
        if value is None:
            raise SettingsError(f"endpoint {name!r}: the variable {found.key_env} that holds its key is not set")
        return SecretStr(value)
    if found.key_file is None:
        return None
    try:
        value = found.key_file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"endpoint {name!r}: its key cannot be read from {found.key_file}: {error}") from error
    if not value or not value.isprintable() or not value.isascii():
        raise SettingsError(f"endpoint {name!r}: {found.key_file} holds no key")
    return SecretStr(value)


def read(path: Path | None) -> Outside:
    """What the file names, keys found as well; nothing where no file is named.

    Raises:
        SettingsError: The file cannot be read or says something that is not allowed; the message names the place.
    """
    if path is None:
        return Outside()
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise SettingsError(f"HATRACK_TRAINER_ENDPOINTS: {path} has more than {MOST_FILE_BYTES} bytes")
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"HATRACK_TRAINER_ENDPOINTS: {path} cannot be read as TOML: {error}") from error
    try:
        outside = Outside.model_validate(found)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"]) or "the whole"
            lines.append(f"{path}, {place}: {item['msg'].removeprefix('Value error, ')}")
        raise SettingsError("\n".join(lines)) from error
    outside.reachable()
    return outside
