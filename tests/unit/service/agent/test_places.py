"""Which announced agent becomes which engine, by what it says and when; nothing runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.announcements import GONE_S, RETURN_S, Announcements, _is_here
from service.engine.agent_wire import PROTOCOL, Announcement
from service.errors import HatrackError
from service.fleet import Fleet
from tests.support.adapters import make_base
from tests.unit.service.agent.support import announced_settings
from tests.unit.service.gateway_app import BASE


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("announced-base"))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def places(tmp_path: Path, base_dir: Path) -> tuple[Announcements, Fleet, Clock]:
    """The engines of a gateway, nothing of which runs. It started so long ago that agents of a former run are known."""
    fleet, clock = Fleet.from_settings(announced_settings(tmp_path, base_dir)), Clock()
    announcements = Announcements(fleet, clock=clock)
    announcements.open()
    clock.now += RETURN_S
    return announcements, fleet, clock


def said(instance: str, address: str, **more: Any) -> Announcement:
    told = {"protocol": PROTOCOL, "instance": instance * 32, "base": BASE, "address": address, "slots": 8}
    return Announcement(**told | more)


def test_a_silent_agent_without_a_session_gives_way(places: tuple[Announcements, Fleet, Clock]) -> None:
    announcements, fleet, clock = places
    assert announcements.announce(said("1", "http://10.0.0.1:1", name="a")) == "a"
    with pytest.raises(HatrackError) as refused:
        announcements.announce(said("2", "http://10.0.0.2:1", name="a"))
    assert refused.value.code == "no_free_engine"
    clock.now += GONE_S
    assert announcements.announce(said("2", "http://10.0.0.2:1", name="a")) == "a"
    assert announcements.addresses == {"a": "http://10.0.0.2:1"}
    fleet.parts[0].watched.link.session = "open"  # type: ignore[attr-defined]
    clock.now += 10 * GONE_S
    with pytest.raises(HatrackError):
        announcements.announce(said("3", "http://10.0.0.3:1", name="a"))


def test_what_leaves_is_free_at_once(places: tuple[Announcements, Fleet, Clock]) -> None:
    announcements, fleet, _ = places
    announcements.announce(said("1", "http://10.0.0.1:1"))
    announcements.announce(said("2", "http://10.0.0.2:1"))
    announcements.announce(said("1", "http://10.0.0.1:1", leaving=True))
    assert [each.watched.is_placed for each in fleet.parts] == [False, True], "nobody asks there any more"
    assert announcements.addresses == {"a": None, "b": "http://10.0.0.2:1"}
    announcements.announce(said("9", "http://10.0.0.9:1", leaving=True))  # nobody that is known
    assert announcements.addresses == {"a": None, "b": "http://10.0.0.2:1"}
    assert announcements.announce(said("3", "http://10.0.0.3:1")) == "a"


def test_at_one_address_there_is_one_agent(places: tuple[Announcements, Fleet, Clock]) -> None:
    announcements, fleet, _ = places
    changes: list[dict[str, str | None]] = []
    announcements.on_change(lambda: changes.append(dict(announcements.addresses)))
    announcements.announce(said("1", "http://10.0.0.1:1"))
    announcements.announce(said("2", "http://10.0.0.2:1"))
    assert announcements.announce(said("3", "http://10.0.0.2:1")) == "b", "the former one there has ended"
    assert announcements.announce(said("4", "http://10.0.0.1:1", name="a")) == "a"
    assert len(changes) == 2, "nothing is elsewhere"
    announcements.announce(said("4", "http://10.0.0.1:1", leaving=True))
    assert announcements.announce(said("5", "http://10.0.0.2:1", name="a")) == "a"
    assert changes[-1] == {"a": "http://10.0.0.2:1", "b": None}
    assert [each.watched.is_placed for each in fleet.parts] == [True, False]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8002", "http://[::1]:8002", "http://localhost:1", "unix:/a"])
def test_an_agent_elsewhere_is_not_at_an_address_of_this_machine(
    places: tuple[Announcements, Fleet, Clock], address: str
) -> None:
    announcements, _, _ = places
    with pytest.raises(HatrackError, match=r"must be one that the gateway reaches.*HATRACK_AGENT_URL"):
        announcements.announce(said("1", address), is_here=False)
    assert not announcements.addresses
    assert announcements.announce(said("1", address)) == "a"


@pytest.mark.parametrize(
    ("client", "server", "is_here"),
    [
        (None, ("/run/g.sock", None), True),
        (("127.0.0.1", 40000), ("127.0.0.1", 8000), True),
        (("10.0.0.4", 40000), ("10.0.0.4", 8000), True),
        (("10.0.0.5", 40000), ("10.0.0.4", 8000), False),
        (("10.0.0.5", 40000), None, False),
    ],
)
def test_which_agent_runs_on_this_machine(client: Any, server: Any, is_here: bool) -> None:
    assert _is_here({"client": client, "server": server}) == is_here


@pytest.fixture
def restarted(places: tuple[Announcements, Fleet, Clock]) -> tuple[Announcements, Clock]:
    """The same engines at a gateway that has just started again: it has heard no agent yet."""
    _, fleet, clock = places
    announcements = Announcements(fleet, clock=clock)
    clock.now += 10 * RETURN_S  # its start took that long
    announcements.open()
    return announcements, clock


def refusal(announcements: Announcements, told: Announcement) -> tuple[int, str | None]:
    with pytest.raises(HatrackError) as refused:
        announcements.announce(told)
    return refused.value.status, refused.value.code


def test_an_unknown_agent_takes_no_engine_whose_agent_may_return(restarted: tuple[Announcements, Clock]) -> None:
    announcements, clock = restarted
    unknown = said("3", "http://10.0.0.3:1")
    clock.now += RETURN_S - 1
    assert refusal(announcements, unknown) == (503, "engine_unavailable")
    assert not announcements.addresses, "fronts go on with what they know"
    assert announcements.announce(said("1", "http://10.0.0.1:1", last="a")) == "a", "it is the same as before"
    assert refusal(announcements, unknown) == (503, "engine_unavailable")
    clock.now += 1
    assert announcements.announce(unknown) == "b", "whoever was `b` does not return"
    assert announcements.addresses == {"a": "http://10.0.0.1:1", "b": "http://10.0.0.3:1"}


def test_an_engine_that_was_announced_since_the_start_waits_for_nobody(restarted: tuple[Announcements, Clock]) -> None:
    announcements, _ = restarted
    assert announcements.announce(said("1", "http://10.0.0.1:1", name="b")) == "b"
    announcements.announce(said("1", "http://10.0.0.1:1", leaving=True))
    assert announcements.announce(said("2", "http://10.0.0.2:1")) == "b"


def test_an_agent_whose_former_engine_is_taken_takes_no_other_ones(restarted: tuple[Announcements, Clock]) -> None:
    announcements, clock = restarted
    announcements.announce(said("1", "http://10.0.0.1:1", name="a"))
    assert refusal(announcements, said("2", "http://10.0.0.2:1", last="a")) == (503, "engine_unavailable")
    clock.now += RETURN_S
    announcements.announce(said("1", "http://10.0.0.1:1", name="a"))
    assert announcements.announce(said("2", "http://10.0.0.2:1", last="a")) == "b"


def test_an_agent_becomes_a_free_engine_that_has_its_slots(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.announcements.RETURN_S", 0.0)
    announcements = Announcements(Fleet.from_settings(announced_settings(tmp_path, base_dir, slots=(4, 8))))
    announcements.open()
    assert announcements.announce(said("2", "http://10.0.0.2:1", slots=8)) == "b", "`a` is free, and has 4"
    with pytest.raises(HatrackError, match=r"has 8 adapter slots .* free for it have 4 \(`a`\)$") as refused:
        announcements.announce(said("3", "http://10.0.0.3:1", slots=8))
    assert refused.value.code == "agent_slots"
    assert announcements.announce(said("4", "http://10.0.0.4:1", slots=4)) == "a"


def test_two_agents_of_one_address_are_told_apart(places: tuple[Announcements, Fleet, Clock]) -> None:
    announcements, _, _ = places
    announcements.announce(said("1", "http://10.0.0.1:1"))
    assert announcements.announce(said("2", "http://10.0.0.1:1")) == "a", "as one that was started again"
    with pytest.raises(HatrackError, match=r"another agent announces the address 'http://10.0.0.1:1'"):
        announcements.announce(said("1", "http://10.0.0.1:1"))
    assert announcements.announce(said("2", "http://10.0.0.1:1")) == "a"
    announcements.announce(said("2", "http://10.0.0.1:1", leaving=True))
    assert announcements.announce(said("1", "http://10.0.0.1:1")) == "a", "the other one has ended"


def test_who_was_displaced_comes_back_when_the_other_is_not_heard_any_more(
    places: tuple[Announcements, Fleet, Clock],
) -> None:
    announcements, _, clock = places
    for instance in ("1", "2"):
        announcements.announce(said(instance, "http://10.0.0.1:1"))
    with pytest.raises(HatrackError):
        announcements.announce(said("1", "http://10.0.0.1:1"))
    clock.now += GONE_S
    assert announcements.announce(said("1", "http://10.0.0.1:1")) == "a"
