"""What a client asks for when it makes a job: OpenAI's body, and ours in its hyperparameters or its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from adapters.errors import UnsupportedFeature
from adapters.features import FEATURES, is_unset, refuse_unsupported
from adapters.json_depth import MAX_LEVELS, too_deep
from adapters.protocol.requests import MAX_SUITES, JobFields, JobOptionFields, OperatorsName, OptionName, RequestBody
from trainer.errors import Invalid, UnknownParameter, Unsupported
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.validation import validated

OPENAIS: Final = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier"})
"""Read from the hyperparameters alone: in metadata they are a note of the client's own."""
UNSERVABLE: Final = frozenset({*FEATURES, "bias", "init_lora_weights", "peft_type", "task_type"})
"""Keys of PEFT's that name what an engine might refuse; asked for in metadata they must not be passed over."""

LISTS: Final = frozenset({"target_modules", "suites"})
TEXTS: Final = frozenset({"system_prompt", "adapter", "promote", "judge"})
"""Values that are text, whatever they look like."""


class Options(JobOptionFields):
    """What is asked for beside the hyperparameters."""

    metric: Annotated[str, Field(max_length=40)] | dict[str, Any] = "auto"
    """The primary metric: `auto`, a name, or an object with `name` and `pattern` or `schema`."""
    suites: Annotated[tuple[OptionName, ...], Field(max_length=MAX_SUITES)] | None = None
    """Names of suites; none: the general one."""
    judge: OperatorsName | None = None
    """Name of a judge of the operator's settings."""


class Inner(RequestBody):
    """OpenAI's `method.supervised`."""

    hyperparameters: dict[str, Any] | None = None


class Method(RequestBody):
    """OpenAI's `method`."""

    type: str
    supervised: Inner | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class CreateBody(JobFields):
    """Body of ``POST /v1/fine_tuning/jobs``."""

    hyperparameters: dict[str, Any] | None = None
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A body that has been understood. ``where`` gives the dotted place of each hyperparameter that was named."""

    body: CreateBody
    wish: HyperparameterRequest
    options: Options
    where: Mapping[str, str]

    def place(self, name: str) -> str:
        """Where a hyperparameter stands in the body, or would."""
        return self.where.get(name, f"hyperparameters.{name}")


def read_body(content: object) -> JobRequest:
    """Understand a body. Raises Invalid, UnknownParameter, Unsupported, with the dotted name of the field."""
    deep = too_deep(content)
    if deep is not None:
        raise Invalid(f"`{deep}` is nested more than {MAX_LEVELS} levels deep", param=deep)
    body = validated(CreateBody, content)
    if body.method is not None and body.method.type != "supervised":
        raise Unsupported(
            f"`method.type` is {body.method.type[:40]!r}; `supervised` is the one that is done here",
            param="method.type",
        )
    for name in ("dpo", "reinforcement"):
        if body.method is not None and getattr(body.method, name) is not None:
            raise Unsupported(f"`method.{name}` does not go with `method.type` supervised", param=f"method.{name}")
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    for name, value, place in _named(body):
        if name in values and values[name] != value:
            raise Invalid(f"`{where[name]}` and `{place}` say two things", param=place)
        values.setdefault(name, value)
        where.setdefault(name, place)
    wish = validated(
        HyperparameterRequest,
        {name: value for name, value in values.items() if name in HyperparameterRequest.model_fields},
        where,
    )
    options = validated(Options, {k: v for k, v in values.items() if k in Options.model_fields}, where)
    return JobRequest(body, wish, options, where)


def _named(body: CreateBody) -> Iterator[tuple[str, Any, str]]:
    """Each hyperparameter with its value and its dotted place. Raises UnknownParameter, Unsupported."""
    inner = body.method.supervised.hyperparameters if body.method and body.method.supervised else None
    for place, given in (("method.supervised.hyperparameters", inner), ("hyperparameters", body.hyperparameters)):
        for name, value in (given or {}).items():
            where = f"{place}.{name[:64]}"
            _servable(name, value, where)
            if name not in HyperparameterRequest.model_fields and name not in Options.model_fields:
                known = ", ".join(
                    f"`{field}`" for field in (*HyperparameterRequest.model_fields, *Options.model_fields)
                )
                raise UnknownParameter(f"`{where}` is not known; known are {known}", param=where)
            if isinstance(value, bool) and name not in ("rslora", "packing", "strict", "drop_long"):
                raise Invalid(f"`{where}` is {json.dumps(value)}, which is no value for it", param=where)
            yield name, _list(value, name) if name in LISTS else value, where
    for name, text in (body.metadata or {}).items():
        where = f"metadata.{name}"
        _servable(name, _plain(text), where)
        if name in Options.model_fields or (name in HyperparameterRequest.model_fields and name not in OPENAIS):
            yield name, _list(text, name) if name in LISTS else _plain(text, name), where


def _servable(name: str, value: Any, where: str) -> None:
    """Refuse what the engine could not serve, by PEFT's name for it."""
    if name not in UNSERVABLE or is_unset(value):
        return
    try:
        refuse_unsupported({name: value})
    except UnsupportedFeature as error:
        raise Unsupported(f"`{where}`: {error.message}", param=where) from error


def _plain(text: str, name: str = "") -> Any:
    """The value that a metadata string stands for; text stays text where text is wanted."""
    if name in TEXTS:
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text, text)
    if name == "metric":
        return found if isinstance(found, dict) else text
    return found if isinstance(found, (bool, int, float)) else text


def _list(value: Any, name: str) -> Any:
    """`target_modules` or `suites` as a list: from JSON's or one with commas; of suites, `none` is the empty one."""
    if not isinstance(value, str) or (name == "target_modules" and value in ("all-linear", "auto")):
        return value
    if value in ("", "none"):
        return []
    if value.startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return value if too_deep(found) is not None else found
    return [part.strip() for part in value.split(",")]
