"""A project's flood fills what all have together, and leaves room for those with few requests."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from service.errors import Unavailable
from service.inference.in_flight import InFlight


def test_a_flood_leaves_room_for_projects_with_few_requests() -> None:
    requests = InFlight(16)
    with ExitStack() as flood, ExitStack() as few:
        for _ in range(16):
            flood.enter_context(requests.enter("flood"))
        with pytest.raises(Unavailable, match="16 requests are in flight") as refused:
            requests.enter("flood")
        assert (refused.value.code, refused.value.headers["retry-after"]) == ("overloaded", "1")
        for _ in range(2):
            few.enter_context(requests.enter("few"))
        with pytest.raises(Unavailable, match="18 requests"):
            requests.enter("few")
        for project in ("a", "b"):
            few.enter_context(requests.enter(project))
        with pytest.raises(Unavailable, match="20 requests"):
            requests.enter("c")
        assert requests.count == 20
    assert requests.count == 0


def test_a_request_is_over_however_it_ends() -> None:
    requests = InFlight(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), requests.enter("a"):
            raise ZeroDivisionError
    assert requests.count == 0
    assert not requests._of_project, "nothing is kept of a project without requests"
