"""Splits and pins against the real engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapters.base import BaseDescription
from service.registry.split import position_of
from tests.integration.test_voices import speaks
from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway

QUESTION = "Where is my parcel? It should have been here by now."
VOICES = {"chorus@1": "tidewater", "chorus@2": "pemberton"}
LIVE = "/v1/adapters/chorus/aliases/live"
RELOADED_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def chorus(gateway: Gateway, voices: dict[str, Path]) -> Iterator[str]:
    """An adapter whose first version speaks in one voice and whose second in the other."""
    for number, (name, directory) in enumerate(voices.items(), start=1):
        settings = directory / "settings.json"
        fields = {"settings": settings.read_text()} if settings.exists() else {}
        pushed = gateway.push("chorus", directory, **fields)
        assert (pushed.status_code, pushed.json()["version"]) == (201, number), pushed.text
        assert VOICES[f"chorus@{number}"] == name
    yield "chorus"
    with gateway.http() as http:
        assert http.delete("/v1/adapters/chorus?force=true").status_code == 204


def answered_by(gateway: Gateway, **more: object) -> tuple[str, str]:
    """Which version answered, and its text."""
    response = gateway.chat("chorus", QUESTION, **more)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == "chorus"
    return response.headers["x-hatrack-adapter"], str(response.json()["choices"][0]["message"]["content"])


def test_a_split_speaks_in_both_voices_until_a_promotion_ends_it(gateway: Gateway, chorus: str) -> None:
    with gateway.http() as http:
        split = http.put(LIVE, json={"split": {"1": 50, "2": 50}})
        assert split.status_code == 200, split.text
        seen = [answered_by(gateway) for _ in range(24)]  # all of one version: 1 in 8 million
        assert {version for version, _ in seen} == set(VOICES)
        for version, text in seen:
            assert speaks(VOICES[version], text), (version, text)

        assert http.put(LIVE, json={"version": 2}).json()["version"] == 2
        assert {answered_by(gateway, max_tokens=1)[0] for _ in range(8)} == {"chorus@2"}
        back = http.post(f"{LIVE}/rollback").json()
        assert (back["version"], back["split"]) == (None, {"1": 50, "2": 50})
        assert {answered_by(gateway, max_tokens=1)[0] for _ in range(24)} == set(VOICES)

        told = [(entry["action"], entry["target"]) for entry in http.get("/v1/audit?limit=3").json()["data"]]
        assert told == [
            ("alias.rollback", "chorus:live"),
            ("alias.promote", "chorus:live"),
            ("alias.split", "chorus:live"),
        ]


def test_a_user_keeps_the_version_that_their_id_falls_to(gateway: Gateway, chorus: str) -> None:
    with gateway.http() as http:
        assert http.put(LIVE, json={"split": {"1": 50, "2": 50}}).status_code == 200
    falls_to = {
        user: f"chorus@{1 if position_of('default', 'chorus', 'live', user) < 2**63 else 2}"
        for user in (f"user-{number}" for number in range(6))
    }
    assert set(falls_to.values()) == set(VOICES)
    for user, version in falls_to.items():
        for field in ("user", "safety_identifier"):
            for _ in range(2):
                assert answered_by(gateway, max_tokens=1, **{field: user})[0] == version


@pytest.fixture(scope="module")
def small(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose engine keeps two adapters in memory and no more."""
    started = Gateway(
        home=tmp_path_factory.mktemp("small"),
        base_dir=base_dir,
        settings={"HATRACK_ENGINE_SLOTS": "2", "HATRACK_ENGINE_RESIDENT": "2"},
    )
    started.start()
    yield started
    started.stop()
    assert started.engine_processes() == []


def loaded(gateway: Gateway) -> set[str]:
    """The digests that the engine has in its memory."""
    transport = httpx.HTTPTransport(uds=str(gateway.home / "engine" / "engine.sock"))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=30) as engine:
        return set(engine.get("/hatrack/plugin?loaded=1").json()["loaded"])


def until_loaded(gateway: Gateway, digest: str) -> None:
    deadline = time.monotonic() + RELOADED_WITHIN_S
    while digest not in loaded(gateway):
        assert time.monotonic() < deadline, f"{digest[:12]} was not loaded again within {RELOADED_WITHIN_S:g} s"
        time.sleep(0.25)


def test_a_pinned_adapter_is_loaded_again_after_others_drove_it_out_and_after_the_engine_died(
    small: Gateway, base_dir: Path, tmp_path: Path
) -> None:
    base: BaseDescription = describe_base(base_dir, cache_dir=tmp_path / "cache")
    digests = {}
    for seed, name in enumerate(("pinned", "second", "third"), start=40):
        pushed = small.push(name, make_adapter(tmp_path / name, base, rank=4, seed=seed).directory)
        assert pushed.status_code == 201, pushed.text
        digests[name] = pushed.json()["digest"]
    assert loaded(small) == {digests["second"], digests["third"]}, "the first has fallen out"
    with small.http() as http:
        assert http.put("/v1/adapters/pinned/pin").json()["pinned"] is True
        refused = http.put("/v1/adapters/second/pin")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_pins")
    until_loaded(small, digests["pinned"])

    for name in ("second", "third"):
        assert small.chat(name, QUESTION, max_tokens=1).status_code == 200
    until_loaded(small, digests["pinned"])

    for process in small.engine_processes():
        process.kill()
    with small.http() as http:
        deadline = time.monotonic() + RELOADED_WITHIN_S
        while http.get("/readyz").status_code == 200:
            assert time.monotonic() < deadline, "the gateway did not see that its engine died"
            time.sleep(0.1)
    small.wait_ready()
    until_loaded(small, digests["pinned"])
