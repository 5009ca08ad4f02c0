"""Splits against the real engine. Pins are tested in `tests/crash`, where an engine dies."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.registry.split import position_of
from tests.support.gateway import Gateway
from tests.support.voices import ENOUGH, speaks

QUESTION = "Where is my parcel? It should have been here by now."
VOICES = {"chorus@1": "tidewater", "chorus@2": "pemberton"}
LIVE = "/v1/adapters/chorus/aliases/live"


@pytest.fixture(scope="module")
def two_voice_adapter(gateway: Gateway, voices: dict[str, Path]) -> Iterator[str]:
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


@pytest.mark.slow
def test_a_split_speaks_in_both_voices_until_a_promotion_ends_it(gateway: Gateway, two_voice_adapter: str) -> None:
    with gateway.http() as http:
        split = http.put(LIVE, json={"split": {"1": 50, "2": 50}})
        assert split.status_code == 200, split.text
        with ThreadPoolExecutor(12) as pool:
            # all of one version: 1 in 8 million
            seen = list(pool.map(lambda _: answered_by(gateway, max_tokens=ENOUGH), range(24)))
        assert {version for version, _ in seen} == set(VOICES)
        for version, text in seen:
            assert speaks(VOICES[version], text), (version, text)

        assert http.put(LIVE, json={"version": 2}).json()["version"] == 2
        assert {answered_by(gateway, max_tokens=1)[0] for _ in range(8)} == {"chorus@2"}
        back = http.post(f"{LIVE}/rollback").json()
        assert (back["version"], back["split"]) == (None, {"1": 50, "2": 50})
        assert {answered_by(gateway, max_tokens=1)[0] for _ in range(24)} == set(VOICES)

        audit = http.get("/v1/audit?limit=50").json()["data"]
        moves = [entry["action"] for entry in audit if entry["target"] == "chorus:live"]
        assert moves[:3] == ["alias.rollback", "alias.promote", "alias.split"]


@pytest.mark.slow
def test_a_user_always_gets_the_version_that_their_id_is_assigned(gateway: Gateway, two_voice_adapter: str) -> None:
    with gateway.http() as http:
        assert http.put(LIVE, json={"split": {"1": 50, "2": 50}}).status_code == 200
    assigned = {
        user: f"chorus@{1 if position_of('default', 'chorus', 'live', user) < 2**63 else 2}"
        for user in (f"user-{number}" for number in range(6))
    }
    assert set(assigned.values()) == set(VOICES)
    for user, version in assigned.items():
        for field in ("user", "safety_identifier"):
            for _ in range(2):
                assert answered_by(gateway, max_tokens=1, **{field: user})[0] == version
