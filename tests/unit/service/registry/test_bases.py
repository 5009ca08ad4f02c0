"""A registry over two bases: each version is inspected, proven and served on its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseDescription
from service.access.caller import DEFAULT_PROJECT, Caller, Scope
from service.agents import Agent, Bases, ServedBase
from service.errors import BadRequest, Conflict
from service.inference.models import list_models, show_model
from service.registry.catalog import Catalog
from tests.support.adapters import describe_base, make_adapter, make_base
from tests.unit.service.registry.conftest import RegistryApp
from tests.unit.service.registry.engine import BASE, MemoryEngine

OTHER = "other"
USER = Caller("key", DEFAULT_PROJECT, frozenset({Scope.INFER}))


class TwoBases(RegistryApp):
    """The usual base, and a wider one that two engines serve."""

    def __init__(self, home: Path, base: BaseDescription, other: BaseDescription, **settings: Any) -> None:
        super().__init__(home, base, **settings)
        self.other_base = other
        self.others = {name: MemoryEngine(base=OTHER) for name in ("left", "right")}
        agents = [Agent(name, self.settings, each, each, each.restart) for name, each in self.others.items()]  # type: ignore[arg-type]
        self.group = ServedBase(other, 2, agents)
        self.bases = Bases([ServedBase(base, 1, [self.agent]), self.group])
        self.catalog = Catalog(BASE, 1, other_bases={OTHER: 2})

    def engine_of(self, digest: str) -> MemoryEngine:
        return self.others[self.group.agent_for(digest).name]


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    return describe_base(make_base(tmp_path_factory.mktemp("other"), hidden=32, seed=5), served_name=OTHER)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    """Another base of the usual one's shape: the same files fit both."""
    return describe_base(make_base(tmp_path_factory.mktemp("twin"), seed=5), served_name=OTHER)


@pytest.fixture
async def two(tmp_path: Path, base: BaseDescription, other: BaseDescription) -> AsyncIterator[TwoBases]:
    registry_app = TwoBases(tmp_path / "home", base, other)
    async with registry_app.run():
        yield registry_app


async def pushed(two: TwoBases, tmp_path: Path, name: str, *, on: BaseDescription, seed: int = 1, **fields: Any) -> Any:
    files = make_adapter(tmp_path / f"{name}-{seed}", on, seed=seed)
    return (await two.push(name, files, **fields)).json()


async def test_a_version_is_proven_by_the_engine_that_will_serve_it(two: TwoBases, tmp_path: Path) -> None:
    here = await pushed(two, tmp_path, "here", on=two.base)
    there = await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    assert (here["base_name"], there["base_name"]) == (BASE, OTHER)
    assert here["digest"] in two.engine.asked
    assert there["digest"] not in two.engine.asked
    serving = two.engine_of(there["digest"])
    assert there["digest"] in serving.asked
    assert [name for name, each in two.others.items() if each.asked] == [two.group.agent_for(there["digest"]).name]
    target = two.catalog.resolve(USER, "there")
    assert (target.base, target.engine_model) == (OTHER, there["digest"])


async def test_the_base_that_a_config_names_is_taken_else_the_first(two: TwoBases, tmp_path: Path) -> None:
    files = make_adapter(tmp_path / "named", two.other_base, config={"base_model_name_or_path": f"acme/{OTHER}"})
    assert (await two.push("named", files)).json()["base_name"] == OTHER
    refused = await pushed(two, tmp_path, "unnamed", on=two.other_base)
    assert refused["error"]["code"], "its shapes are not those of the first base"
    unknown = await pushed(two, tmp_path, "unknown", on=two.base, base="absent")
    assert unknown["error"]["message"] == (
        "`base` must be a base that this gateway serves: `tiny`, `other`; got 'absent'"
    )
    assert unknown["error"]["param"] == "base"


async def test_a_version_without_weights_answers_from_the_base_that_it_names(two: TwoBases) -> None:
    body = {"name": "support", "settings": {"system_prompt": "Be brief."}, "base": OTHER}
    made = (await two.http.post("/v1/adapters", json=body)).json()
    assert made["base_name"] == OTHER
    target = two.catalog.resolve(USER, "support")
    assert (target.engine_model, target.base, target.digest) == (OTHER, OTHER, None)
    again = (await two.push_settings("support", system_prompt="Be brief.")).json()
    assert (again["version"], again["base_name"]) == (2, BASE), "the same settings on another base are another version"


async def test_names_of_bases_are_taken_and_listed(two: TwoBases, tmp_path: Path) -> None:
    refused = await pushed(two, tmp_path, OTHER, on=two.base)
    assert refused["error"]["code"] == "name_reserved"
    await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    shown = {card["id"]: card["parent"] for card in list_models(two.catalog, USER)["data"]}
    assert shown == {BASE: None, OTHER: None, "there": OTHER}
    assert show_model(two.catalog, USER, OTHER)["created"] == 2
    assert two.catalog.resolve(USER, OTHER).base == OTHER


async def test_model_and_adapter_must_mean_one_base(two: TwoBases, tmp_path: Path) -> None:
    await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    assert two.catalog.resolve(USER, OTHER, "there").base == OTHER
    with pytest.raises(BadRequest, match="`adapter` is 'there@1', which serves on the base 'other', and `model`"):
        two.catalog.resolve(USER, BASE, "there")


async def test_a_fault_on_one_base_is_checked_and_marked_there(two: TwoBases, tmp_path: Path) -> None:
    there = await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    here = await pushed(two, tmp_path, "here", on=two.base)
    two.engine_of(there["digest"]).not_finite.add(there["digest"])
    two.registry.report_failure(there["digest"], OTHER)
    two.registry.report_failure(here["digest"], BASE)
    await two.registry.wait_idle()
    assert (await two.version("there@1"))["servable"] == "corrupt"
    assert (await two.version("here@1"))["servable"] == "ok"


async def test_a_pin_is_kept_by_the_engine_that_serves_it(two: TwoBases, tmp_path: Path) -> None:
    there = await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    serving = two.engine_of(there["digest"])
    serving.loaded.clear()
    assert (await two.http.put("/v1/adapters/there/pin")).status_code == 200
    await serving.until_loaded(there["digest"])
    elsewhere = [each for each in two.others.values() if each is not serving]
    assert not any(there["digest"] in each.loaded for each in [*elsewhere, two.engine])


async def test_without_its_base_a_version_waits_for_it(two: TwoBases, tmp_path: Path) -> None:
    await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    again = RegistryApp(two.settings.home, two.base)
    async with again.run():
        shown = await again.version("there@1")
        assert (shown["servable"], shown["base_name"]) == ("other_base", None)
        parents = {card["id"]: (card["root"], card["parent"]) for card in list_models(again.catalog, USER)["data"]}
        assert parents == {BASE: (BASE, None), "there": ("there@1", None)}, "no base is named that it does not serve on"
        with pytest.raises(Conflict, match="a base model that is not served now"):
            show_model(again.catalog, USER, "there")


async def test_an_adapter_with_the_name_of_a_new_base_is_told(
    tmp_path: Path, base: BaseDescription, other: BaseDescription, caplog: pytest.LogCaptureFixture
) -> None:
    before = RegistryApp(tmp_path / "home", base)
    async with before.run():
        assert (await before.push_settings(OTHER, system_prompt="Be brief.")).status_code == 201
    async with TwoBases(tmp_path / "home", base, other).run():
        [warning] = [record for record in caplog.records if "is hidden by a base" in record.message]
    assert (vars(warning)["name_taken"], vars(warning)["projects"]) == (OTHER, [DEFAULT_PROJECT])


async def test_pins_are_counted_by_base(tmp_path: Path, base: BaseDescription, other: BaseDescription) -> None:
    two = TwoBases(tmp_path / "home", base, other, engine_slots=3)
    async with two.run():
        for seed in (1, 2, 3):
            await pushed(two, tmp_path, f"here-{seed}", on=two.base, seed=seed)
            await pushed(two, tmp_path, f"there-{seed}", on=two.other_base, seed=seed, base=OTHER)
        names = ("here-1", "here-2", "there-1", "there-2", "here-3", "there-3")
        answers = [await two.http.put(f"/v1/adapters/{name}/pin") for name in names]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 409, 409]
        full = answers[-1].json()["error"]
        assert full["code"] == "too_many_pins"
        assert full["message"].startswith("this would pin 3 versions on the base `other`; at most 2 can be pinned")

        body = {"name": "there-1", "settings": {"system_prompt": "Be brief."}, "base": BASE, "alias": "next"}
        moved = (await two.http.post("/v1/adapters", json=body)).json()
        live = "/v1/adapters/there-1/aliases/live"
        refused = await two.http.put(live, json={"version": moved["version"]})
        assert refused.json()["error"]["code"] == "too_many_pins", "it would reserve a slot of the other base"
        assert (await two.http.delete("/v1/adapters/here-1/pin")).status_code == 200
        assert (await two.http.put(live, json={"version": moved["version"]})).status_code == 200
        assert (await two.http.put("/v1/adapters/there-3/pin")).status_code == 200, "its own base has room again"


@pytest.mark.parametrize("wait", ["true", "false"])
async def test_a_push_moves_no_pinned_adapter_onto_a_base_without_room(
    tmp_path: Path, base: BaseDescription, other: BaseDescription, wait: str
) -> None:
    two = TwoBases(tmp_path / "home", base, other, engine_slots=2)
    async with two.run():
        await pushed(two, tmp_path, "here", on=base)
        await pushed(two, tmp_path, "there", on=other, base=OTHER)
        for name in ("here", "there"):
            assert (await two.http.put(f"/v1/adapters/{name}/pin")).status_code == 200
        more = {"base": OTHER, "alias": "live", "query": f"?wait={wait}"}
        await pushed(two, tmp_path, "here", on=other, seed=2, **more)
        await two.registry.wait_idle()
        version = await two.version("here@2")
        assert (version["state"], version["servable"], version["aliases"]) == ("ready", "ok", [])
        [warning] = version["warnings"]
        assert warning.startswith("`live` did not move here after the proof: this would pin 2 versions on the base")
        assert (await two.version("here@1"))["aliases"] == ["live"]
        noted = [(row.target, row.detail) for row in await two.audit() if row.action == "version.hold_back"]
        assert noted == [("here@2", {"because": "push", "code": "too_many_pins"})]

        assert (await two.http.delete("/v1/adapters/there/pin")).status_code == 200
        await pushed(two, tmp_path, "here", on=other, seed=3, **more)
        await two.registry.wait_idle()
        assert (await two.version("here@3"))["aliases"] == ["live"]


async def test_the_same_weights_on_two_bases_are_corrupt_on_one(
    tmp_path: Path, base: BaseDescription, twin: BaseDescription
) -> None:
    two = TwoBases(tmp_path / "home", base, twin)
    async with two.run():
        here = await pushed(two, tmp_path, "here", on=base)
        there = await pushed(two, tmp_path, "there", on=base, base=OTHER)
        assert here["digest"] == there["digest"]
        failing = two.engine_of(there["digest"])
        failing.not_finite.add(there["digest"])
        two.registry.report_failure(there["digest"], OTHER)
        await two.registry.wait_idle()
        servable = {name: (await two.version(f"{name}@1"))["servable"] for name in ("here", "there")}
        assert servable == {"here": "ok", "there": "corrupt"}
        noted = [row.target for row in await two.audit() if row.action == "version.corrupt"]
        assert noted == ["there@1"]
        failing.together.clear()
        await pushed(two, tmp_path, "third", on=base, seed=2, base=OTHER)
        await pushed(two, tmp_path, "fourth", on=base, seed=3, base=OTHER)
        asked = {model for each in two.others.values() for models in each.together for model in models}
        assert there["digest"] not in asked, "what is sound elsewhere is nobody's neighbour here"


async def test_a_proof_waits_for_a_base_that_is_not_served(
    tmp_path: Path, base: BaseDescription, twin: BaseDescription
) -> None:
    """The engine of another base, whose layers fit, says nothing of it."""
    two = TwoBases(tmp_path / "home", base, twin)
    async with two.run():
        for each in two.others.values():
            each.down = True
        files = make_adapter(tmp_path / "there", base)
        begun = await two.push("there", files, base=OTHER, query="?wait=false")
        assert (begun.status_code, begun.json()["state"]) == (202, "proving")
    alone = RegistryApp(two.settings.home, base)
    async with alone.run():
        await alone.registry.wait_idle()
        shown = await alone.version("there@1")
        assert (shown["state"], shown["base_name"]) == ("proving", None)
        assert shown["digest"] not in alone.engine.asked
    again = TwoBases(two.settings.home, base, twin)
    async with again.run():
        await again.registry.wait_idle()
        assert (await again.version("there@1"))["state"] == "ready"


async def test_a_verdict_on_a_base_that_is_not_served_is_one_on_that_base(two: TwoBases, tmp_path: Path) -> None:
    await pushed(two, tmp_path, "there", on=two.other_base, base=OTHER)
    alone = RegistryApp(two.settings.home, two.base)
    async with alone.run():
        recorded = (await alone.verdict("there@1")).json()
        assert recorded["base"] == two.other_base.fingerprint.model_dump()
