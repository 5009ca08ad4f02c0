"""Which engine of a base's group an adapter belongs to, and which base a version serves on."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from service.agents import Agent, Bases, ServedBase
from service.config import Settings
from service.errors import BadRequest, SettingsError
from tests.support.adapters import describe_base, make_base

DIGESTS = [sha256(str(number).encode()).hexdigest() for number in range(300)]


class Switch:
    """An engine that can be away, and has a load."""

    def __init__(self, name: str) -> None:
        self.ready, self.load = True, 0
        nobody: Any = None
        self.agent = Agent(
            *(name, Settings(engine_slots=4), nobody, nobody, nobody),
            is_ready=lambda: self.ready,
            load=lambda: self.load,
        )


@pytest.fixture(scope="session")
def group_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("group-base"))


def group(base_dir: Path, *names: str) -> tuple[ServedBase, list[Switch]]:
    switches = [Switch(name) for name in names]
    return ServedBase(describe_base(base_dir), 1, [switch.agent for switch in switches]), switches


def homes(base: ServedBase) -> dict[str, str]:
    return {digest: base.agent_for(digest).name for digest in DIGESTS}


def test_adapters_are_spread_over_the_engines_and_stay_where_they_are(group_base: Path) -> None:
    base, _ = group(group_base, "a", "b", "c")
    share = Counter(homes(base).values())
    assert min(share.values()) > 70, "300 adapters over three engines"
    assert homes(group(group_base, "c", "a", "b")[0]) == homes(base), "whatever order the file has"


def test_an_engine_that_is_added_or_away_moves_no_adapter_of_the_others(group_base: Path) -> None:
    base, switches = group(group_base, "a", "b", "c")
    before = homes(base)
    more = homes(group(group_base, "a", "b", "c", "d")[0])
    assert {more[digest] for digest in DIGESTS if more[digest] != before[digest]} == {"d"}
    switches[1].ready = False
    during = homes(base)
    assert "b" not in during.values()
    assert all(during[digest] == before[digest] for digest in DIGESTS if before[digest] != "b")
    switches[1].ready = True
    assert homes(base) == before


def test_where_none_is_ready_the_first_choice_says_why(group_base: Path) -> None:
    base, switches = group(group_base, "a", "b")
    before = homes(base)
    for switch in switches:
        switch.ready = False
    assert homes(base) == before


def test_what_keeps_to_no_engine_goes_to_the_least_loaded(group_base: Path) -> None:
    base, (a, b) = group(group_base, "a", "b")
    a.load = 3
    assert base.agent_for(None).name == "b"
    b.ready = False
    assert base.agent_for(None).name == "a"


def test_a_version_serves_on_the_base_that_it_was_proven_on(group_base: Path, tmp_path: Path) -> None:
    one, _ = group(group_base, "a")
    other = ServedBase(describe_base(make_base(tmp_path / "other", seed=1), served_name="other"), 1, one.agents)
    bases = Bases([one, other])
    assert bases.serving(other.fingerprint.model_dump()) is other
    third = describe_base(make_base(tmp_path / "third", seed=2))
    assert bases.serving(third.fingerprint.model_dump()) is None
    assert (bases.named(""), bases.named("other"), bases.requested(None, "base")) == (one, other, one)
    with pytest.raises(BadRequest, match=r"`base` must be a base that this gateway serves: `tiny`, `other`; got 'x'"):
        bases.requested("x", "base")


def test_one_model_under_two_names_is_refused(group_base: Path) -> None:
    one, _ = group(group_base, "a")
    again = ServedBase(describe_base(group_base, served_name="again"), 1, one.agents)
    with pytest.raises(SettingsError, match="`tiny` and `again` are the same model under two names"):
        Bases([one, again])
