"""What comes from outside as a model of pydantic's, and what is told where it is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adapters.validation import faults, message, path, shown
from trainer.errors import Invalid, RequestError, UnknownParameter

Model = TypeVar("Model", bound=BaseModel)
NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})


def validated(model: type[Model], content: object, where: Mapping[str, str] = NOWHERE) -> Model:
    """The content as a ``model``.

    Args:
        where: The dotted name that a field is told by, where that is not its own.

    Raises:
        Invalid, UnknownParameter: With the field's dotted name, what was found and what is allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, content, where) from error


def _refusal(error: ValidationError, content: object, where: Mapping[str, str]) -> RequestError:
    """The first fault, with the field's dotted name, what was found and what is allowed."""
    found = faults(error)
    field = _field(found[0], content, where)
    told = [fault for fault in found if _field(fault, content, where) == field]
    param = ".".join(field) or None
    name = f"`{param}`" if param else "the body"
    if told[0]["type"] == "missing":
        return Invalid(f"{name} is missing", param=param)
    if told[0]["type"] == "extra_forbidden":
        return UnknownParameter(f"{name} is not known", param=param)
    allowed = " or ".join(dict.fromkeys(message(fault) for fault in told))
    return Invalid(f"{name} is {shown(told[0]['input'])}: {allowed}", param=param)


def _field(fault: ErrorDetails, content: object, where: Mapping[str, str]) -> list[str]:
    """The parts of a field's dotted name."""
    first = str(fault["loc"][0]) if fault["loc"] else ""
    return [where[first]] if first in where else path(fault, content)
