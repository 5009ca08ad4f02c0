"""The request body of a new job: OpenAI's fields, with Hatrack's options in the hyperparameters or the metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from adapters.errors import UnsupportedFeature
from adapters.features import FEATURES, is_unset, refuse_unsupported
from adapters.json_depth import MAX_LEVELS, too_deep
from adapters.protocol.requests import MAX_SUITES, JobFields, JobOptionFields, OperatorsName, OptionName, RequestBody
from trainer.errors import InvalidField, UnknownParameter, UnsupportedValue
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.validation import validated

OPENAIS: Final = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier"})
"""Read only from the hyperparameters: in metadata they are the client's own notes."""
UNSERVABLE: Final = frozenset({*FEATURES, "bias", "init_lora_weights", "peft_type", "task_type"})
"""PEFT's options that an engine may not support; refused even in metadata, where unknown keys are otherwise ignored."""

METHODS: Final = ("supervised", "dpo")
NUMBERS: Final = frozenset(
    {
        *("learning_rate", "learning_rate_multiplier", "lora_alpha", "lora_dropout", "warmup_ratio"),
        *("validation_share", "beta"),
    }
)
OBJECTS: Final = frozenset({"metric", "grounding", "sampling"})
"""Options that may be objects; in metadata, as JSON."""
LISTS: Final = frozenset({"target_modules", "suites"})
TEXTS: Final = frozenset({"system_prompt", "adapter", "promote", "judge"})
"""Options whose metadata value is never parsed as JSON."""


class Options(JobOptionFields):
    """Options of a job besides its hyperparameters."""

    metric: Annotated[str, Field(max_length=40)] | dict[str, Any] = "auto"
    """The primary metric: `auto`, a name, or an object with `name` and `pattern` or `schema`."""
    grounding: dict[str, Any] | None = None
    """The version's grounding, checked by the gateway: its passages stand in the training prompts as well."""
    suites: Annotated[tuple[OptionName, ...], Field(max_length=MAX_SUITES)] | None = None
    """Names of suites; None means the general suite."""
    judge: OperatorsName | None = None
    """Name of a judge in the operator's settings."""


class MethodOptions(RequestBody):
    """OpenAI's `method.supervised` and `method.dpo`."""

    hyperparameters: dict[str, Any] | None = None


class Method(RequestBody):
    """OpenAI's `method`."""

    type: str
    supervised: MethodOptions | None = None
    dpo: MethodOptions | None = None
    reinforcement: dict[str, Any] | None = None


class CreateBody(JobFields):
    """Body of ``POST /v1/fine_tuning/jobs``."""

    hyperparameters: dict[str, Any] | None = None
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A parsed body. ``where`` maps each given option to its dotted path in the body."""

    body: CreateBody
    hyperparameters: HyperparameterRequest
    options: Options
    where: Mapping[str, str]

    @property
    def method(self) -> Literal["supervised", "dpo"]:
        """The value of `method.type`."""
        return "dpo" if self.body.method is not None and self.body.method.type == "dpo" else "supervised"

    def place(self, name: str) -> str:
        """The dotted path of a hyperparameter in the body; the default path if it was not given."""
        return self.where.get(name, f"hyperparameters.{name}")


def read_body(content: object) -> JobRequest:
    """Parse a body.

    Raises:
        InvalidField, UnknownParameter, UnsupportedValue: With the field's dotted path as ``param``.
    """
    deep_path = too_deep(content)
    if deep_path is not None:
        raise InvalidField(f"`{deep_path}` is nested more than {MAX_LEVELS} levels deep", param=deep_path)
    body = validated(CreateBody, content)
    _check_method(body.method)
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    for name, value, place in _named(body):
        if name in values and values[name] != value:
            raise InvalidField(f"`{where[name]}` and `{place}` conflict; send one", param=place)
        values.setdefault(name, value)
        where.setdefault(name, place)
    hyperparameters = validated(
        HyperparameterRequest,
        {name: value for name, value in values.items() if name in HyperparameterRequest.model_fields},
        where,
    )
    options = validated(Options, {k: v for k, v in values.items() if k in Options.model_fields}, where)
    if options.drop_long and options.overflow not in (None, "drop"):
        place = where["overflow"]
        raise InvalidField(f"`{place}: {options.overflow}` and `{where['drop_long']}` conflict; send one", param=place)
    if hyperparameters.beta != "auto" and not (body.method is not None and body.method.type == "dpo"):
        raise InvalidField(f"`{where['beta']}` needs `method.type: dpo`", param=where["beta"])
    if "held_out_share" in where and body.validation_file is not None:
        place = where["held_out_share"]
        raise InvalidField(f"`{place}` and `validation_file` conflict; send one", param=place)
    return JobRequest(body, hyperparameters, options, where)


def _check_method(method: Method | None) -> None:
    """Raise UnsupportedValue for an unknown method, or the options of another one."""
    if method is None:
        return
    if method.type not in METHODS:
        allowed = " or ".join(f"`{name}`" for name in METHODS)
        raise UnsupportedValue(f"`method.type` must be {allowed}; got {method.type[:40]!r}", param="method.type")
    for name in (*METHODS, "reinforcement"):
        if name != method.type and getattr(method, name) is not None:
            raise UnsupportedValue(
                f"`method.{name}` is not allowed with `method.type: {method.type}`", param=f"method.{name}"
            )


def _named(body: CreateBody) -> Iterator[tuple[str, Any, str]]:
    """Yield each option with its value and its dotted path. Raises InvalidField, UnknownParameter, UnsupportedValue."""
    kind = body.method.type if body.method is not None else METHODS[0]
    chosen: MethodOptions | None = getattr(body.method, kind) if body.method is not None else None
    inner = chosen.hyperparameters if chosen is not None else None
    for place, given in ((f"method.{kind}.hyperparameters", inner), ("hyperparameters", body.hyperparameters)):
        for name, value in (given or {}).items():
            where = f"{place}.{name[:64]}"
            _servable(name, value, where)
            if name not in HyperparameterRequest.model_fields and name not in Options.model_fields:
                known = ", ".join(
                    f"`{field}`" for field in (*HyperparameterRequest.model_fields, *Options.model_fields)
                )
                raise UnknownParameter(f"`{where}` is not a known hyperparameter; use one of {known}", param=where)
            if isinstance(value, bool) and name not in ("rslora", "packing", "strict", "drop_long"):
                raise InvalidField(f"`{where}` must be {_allowed(name)}; got {json.dumps(value)}", param=where)
            yield name, _list(value, name) if name in LISTS else value, where
    for name, text in (body.metadata or {}).items():
        where = f"metadata.{name}"
        _servable(name, _plain(text), where)
        if name in Options.model_fields or (name in HyperparameterRequest.model_fields and name not in OPENAIS):
            yield name, _list(text, name) if name in LISTS else _plain(text, name), where


def _allowed(name: str) -> str:
    """The types that an option accepts, for the message that refuses a boolean."""
    if name in ("n_epochs", "batch_size", "lora_rank", "max_length", "early_stopping_patience"):
        return 'an integer or "auto"'
    if name in NUMBERS:
        return 'a number or "auto"'
    if name == "held_out_share":
        return "a number"
    if name in LISTS:
        return "a string or a list of strings"
    kinds = {"metric": "a string or an object", "grounding": "an object", "sampling": "an object"}
    return kinds.get(name, "a string")


def _servable(name: str, value: Any, where: str) -> None:
    """Raise UnsupportedValue if the engine cannot serve this PEFT option."""
    if name not in UNSERVABLE or is_unset(value):
        return
    try:
        refuse_unsupported({name: value})
    except UnsupportedFeature as error:
        raise UnsupportedValue(f"`{where}`: {error.message}", param=where) from error


def _plain(text: str, name: str = "") -> Any:
    """Parse a metadata string as a JSON boolean, number or metric; options in `TEXTS` stay strings."""
    if name in TEXTS:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text, text)
    if name in OBJECTS:
        return value if isinstance(value, dict) else text
    return value if isinstance(value, (bool, int, float)) else text


def _list(value: Any, name: str) -> Any:
    """Parse `target_modules` or `suites`: a JSON list or a comma-separated one; `none` or an empty string is `[]`."""
    if not isinstance(value, str) or (name == "target_modules" and value in ("all-linear", "auto")):
        return value
    if value in ("", "none"):
        return []
    if value.startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return value if too_deep(parsed) is not None else parsed
    return [part.strip() for part in value.split(",")]
