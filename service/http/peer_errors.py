"""Errors that one of Hatrack's processes raises in another: sent as JSON, raised there as what they were here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service import errors
from service.errors import BadGateway, HatrackError

_CLASSES: Final[Mapping[str, type[HatrackError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, HatrackError)
}
UNNAMED: Final = "HatrackError"


def dump_error(error: HatrackError) -> dict[str, Any]:
    """The error as JSON values."""
    kind = type(error).__name__
    return {
        "kind": kind if kind in _CLASSES else UNNAMED,
        "message": error.message,
        "param": error.param,
        "code": error.code,
        "headers": error.headers,
        "reason": getattr(error, "reason", None),
    }


def load_error(dumped: Any) -> HatrackError:
    """The error that was dumped; BadGateway for what is none."""
    try:
        kind = _CLASSES[dumped["kind"]]
        error = kind.__new__(kind)
        # the classes' own constructors only make the headers, which are here already
        HatrackError.__init__(
            error,
            str(dumped["message"]),
            param=dumped["param"],
            code=dumped["code"],
            headers={str(name): str(value) for name, value in dumped["headers"].items()},
        )
    except (KeyError, TypeError, AttributeError):
        return BadGateway("the error of another process cannot be read")
    if dumped.get("reason") is not None:
        vars(error)["reason"] = str(dumped["reason"])
    return error
