"""Validates external input with pydantic and formats the errors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adapters.validation import faults, message, path, shown
from trainer.errors import InvalidField, RequestError, UnknownParameter

Model = TypeVar("Model", bound=BaseModel)
NO_ALIASES: Final[Mapping[str, str]] = MappingProxyType({})


def validated(model: type[Model], content: object, aliases: Mapping[str, str] = NO_ALIASES) -> Model:
    """Validate content as a ``model``.

    Args:
        aliases: Dotted names to report instead of fields' own names.

    Raises:
        InvalidField, UnknownParameter: With the field's dotted name, the given value and what is allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, content, aliases) from error


def _refusal(error: ValidationError, content: object, aliases: Mapping[str, str]) -> RequestError:
    """The error about the first invalid field."""
    all_faults = faults(error)
    field = _field(all_faults[0], content, aliases)
    field_faults = [fault for fault in all_faults if _field(fault, content, aliases) == field]
    param = ".".join(field) or None
    name = f"`{param}`" if param else "the request body"
    if field_faults[0]["type"] == "missing":
        return InvalidField(f"{name} is missing", param=param)
    if field_faults[0]["type"] == "extra_forbidden":
        return UnknownParameter(f"{name} is not known", param=param)
    allowed = " or ".join(dict.fromkeys(message(fault) for fault in field_faults))
    return InvalidField(f"{name} is {shown(field_faults[0]['input'])}: {allowed}", param=param)


def _field(fault: ErrorDetails, content: object, aliases: Mapping[str, str]) -> list[str]:
    """The parts of a field's dotted name."""
    first = str(fault["loc"][0]) if fault["loc"] else ""
    return [aliases[first]] if first in aliases else path(fault, content)
