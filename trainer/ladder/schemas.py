"""The request body of a new ladder."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict

from adapters.protocol.requests import LadderFields
from trainer.validation import validated


class LadderBody(LadderFields):
    """Body of ``POST /v1/ladders``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)


def read_request(content: dict[str, Any]) -> LadderBody:
    """Parse a client's body. Raises InvalidField, UnknownParameter, with the dotted name of the field."""
    return validated(LadderBody, content)
