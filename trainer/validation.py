"""What comes from outside as a model of pydantic's, and what is told where it is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

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
        raise _refusal(error, where) from error


def _refusal(error: ValidationError, where: Mapping[str, str]) -> RequestError:
    """The first fault, with the field's dotted name, what was found and what is allowed."""
    faults = error.errors(include_url=False)
    path = _path(faults[0]["loc"], where)
    told = [fault for fault in faults if _path(fault["loc"], where) == path]
    param = ".".join(path) or None
    name = f"`{param}`" if param else "the body"
    if told[0]["type"] == "missing":
        return Invalid(f"{name} is missing", param=param)
    if told[0]["type"] == "extra_forbidden":
        return UnknownParameter(f"{name} is not known", param=param)
    allowed = " or ".join(dict.fromkeys(fault["msg"] for fault in told))
    return Invalid(f"{name} is {str(told[0]['input'])[:100]!r}: {allowed}", param=param)


def _path(loc: tuple[int | str, ...], where: Mapping[str, str]) -> list[str]:
    """The parts of a field's dotted name. Behind a hyperparameter's name pydantic tells the branches of its union."""
    if loc and loc[0] in where:
        return [where[str(loc[0])]]
    return [str(part)[:64] for part in loc if part != "[key]"]
