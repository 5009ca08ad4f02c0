"""Clients that leave, that read a byte a second, that ask for models nobody has: short forms of `loadtests.clients`.

The gateway is `hatrack serve`, the engine a fake one. What is asserted does not depend on the machine's speed: what is
left of them, and what grows from one round to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from loadtests import clients
from loadtests.clients import Part, State, leavers, readers, unknown_names
from loadtests.gateway.standing import Standing, standing

LEAVERS, READERS, NAMES = 200, 40, 5_000
READING_S = 8.0
GROWTH_MIB = 16.0
"""What Python's allocator may keep beyond what a first round has left."""
OWN_DESCRIPTORS = 8
"""Connections of the test's own, and those kept alive to the engine."""
LABELS = 8
"""Series that a status or a route adds when it is first seen."""


@pytest.fixture(scope="module")
def both() -> Iterator[Standing]:
    with standing(sequences=clients.SEQUENCES, pace_ms=20, core=0) as started:
        yield started


def assert_nothing_left(before: State, after: State) -> None:
    assert (after.streams, after.in_flight) == (0, 0)
    assert after.held.threads <= before.held.threads + 1
    assert after.held.descriptors <= before.held.descriptors + OWN_DESCRIPTORS
    assert after.held.rss_mib <= before.held.rss_mib + GROWTH_MIB


def after_two_rounds(first: Part, second: Part) -> None:
    """What the second round leaves is what the first has left."""
    assert_nothing_left(first.states[-1], second.states[-1])


def test_clients_that_leave_in_mid_stream_leave_nothing_behind(both: Standing) -> None:
    rounds = [asyncio.run(leavers(both, LEAVERS)) for _ in range(2)]
    assert rounds[0].states[1].streams == LEAVERS, "they never were in mid-stream"
    after_two_rounds(*rounds)


def test_clients_that_read_a_byte_a_second_leave_nothing_behind(both: Standing) -> None:
    rounds = [asyncio.run(readers(both, READERS, READING_S)) for _ in range(2)]
    assert rounds[0].states[1].streams >= READERS, "they never read"
    after_two_rounds(*rounds)


def test_names_that_nobody_has_make_no_series_and_no_memory(both: Standing) -> None:
    part = asyncio.run(unknown_names(both, NAMES))
    before, warm, *_, after = part.states
    assert after.series <= before.series + LABELS
    assert_nothing_left(warm, after)
    assert f"{NAMES:,} × 404" in part.notes[0]
