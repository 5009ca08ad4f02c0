"""An error that crosses from one process to another is there what it was here."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from service.errors import (
    BadGateway,
    Conflict,
    EngineUnavailable,
    HatrackError,
    RequestsLimited,
    StoreUnavailable,
    Unavailable,
)
from service.http.peer_errors import dump_error, load_error


@pytest.mark.parametrize(
    "error",
    [
        EngineUnavailable("the engine is not ready: x", retry_after=7),
        Unavailable("full", code="overloaded", param="p"),
        RequestsLimited("too many", headers={"retry-after": "3", "x-ratelimit-limit-requests": "5"}),
        Conflict("it conflicts"),
    ],
)
def test_class_message_code_and_headers_cross(error: HatrackError) -> None:
    crossed = load_error(orjson.loads(orjson.dumps(dump_error(error))))
    assert type(crossed) is type(error)
    assert (crossed.payload(), crossed.headers) == (error.payload(), error.headers)


def test_the_reason_of_an_object_store_crosses() -> None:
    crossed = load_error(dump_error(StoreUnavailable("the store does not answer", reason="refused")))
    assert isinstance(crossed, StoreUnavailable)
    assert crossed.reason == "refused"


@pytest.mark.parametrize("dumped", [None, [], "x", {}, {"kind": "SystemExit"}, {"kind": "Conflict", "message": "x"}])
def test_what_is_no_error_is_one_of_the_other_process(dumped: Any) -> None:
    assert isinstance(load_error(dumped), BadGateway)
