from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from adapters.validation import MAX_PART, faults, path


class Pattern(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pattern: str


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")
    fields: dict[str, int]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    metric: Pattern | Schema | Annotated[str, StringConstraints(min_length=1)] = "auto"
    parts: list[Pattern | int] = []


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        ({}, {"name"}),
        ({"name": 1}, {"name"}),
        ({"name": "a", "metric": ""}, {"metric"}),
        ({"name": "a", "metric": {}}, {"metric.pattern", "metric.fields", "metric"}),
        (
            {"name": "a", "metric": {"fields": {"x": "y"}}},
            {"metric.pattern", "metric.fields", "metric.fields.x", "metric"},
        ),
        ({"name": "a", "parts": [1, {}]}, {"parts.1.pattern", "parts.1"}),
        ({"name": "a", "parts": [1, {"pattern": "x", "more": 1}]}, {"parts.1.more", "parts.1"}),
        ({"name": "a", "x" * 100: 1}, {"x" * MAX_PART}),
        ([], {""}),
        (None, {""}),
    ],
)
def test_an_error_names_the_dotted_path_of_the_value(content: Any, paths: set[str]) -> None:
    """Neither the classes of a union's branches nor pydantic's names of them, also where a branch lacks a field."""
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(content)
    assert {".".join(path(fault, content)) for fault in faults(caught.value)} == paths
