"""A digest is shared by all projects that pushed the same files: what may mark it corrupt for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters.proof import PROBES, PROBES_ID
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import RegistryApp
from tests.unit.service.registry.engine import TOKENS, MemoryEngine

Files = Callable[..., AdapterFiles]


def claim(effect: float, tokens: int = TOKENS) -> dict[str, Any]:
    """A `metadata.proof` that says that the adapter moves each token's log-probability by so much."""
    rows = [MemoryEngine._row(index, 0.0)[:tokens] for index in range(len(PROBES))]
    probes = [
        {"token_ids": list(range(tokens + 1)), "base": row, "adapter": [value - effect for value in row]}
        for row in rows
    ]
    return {"format": 1, "probes_id": PROBES_ID, "probes": probes}


async def shared(
    registry_app: RegistryApp, files: Files, proof: dict[str, Any]
) -> tuple[str, dict[str, str], dict[str, str]]:
    """One adapter in two projects, in the second with a proof of its owner's: the digest, and a key of each."""
    adapter = files(seed=1)
    victim, attacker = await registry_app.key("victim"), await registry_app.key("attacker")
    pushed = await registry_app.push("voice", adapter, headers=victim)
    assert pushed.status_code == 201, pushed.text
    again = await registry_app.push("mine", adapter, headers=attacker, metadata={"proof": proof})
    assert again.status_code == 201, again.text
    assert again.json()["digest"] == pushed.json()["digest"]
    return pushed.json()["digest"], victim, attacker


async def servable(registry_app: RegistryApp, headers: dict[str, str]) -> str:
    answer = await registry_app.http.get("/v1/adapters/voice/versions/1", headers=headers)
    return str(answer.json()["servable"])


async def test_a_proof_that_its_uploader_wrote_marks_nobodys_version_corrupt(
    registry_app: RegistryApp, files: Files
) -> None:
    digest, victim, attacker = await shared(registry_app, files, claim(0.5))
    registry_app.engine.effects[digest] = (
        0.9  # the claim no longer agrees with what the engine does; the adapter is well
    )
    proven = await registry_app.http.post("/v1/adapters/mine/versions/1/prove", headers=attacker)
    assert (proven.status_code, proven.json()["error"]["code"]) == (422, "diverges_from_reference")
    assert await servable(registry_app, victim) == "ok"
    assert not [row for row in await registry_app.audit() if row.action == "version.corrupt"]


@pytest.mark.parametrize("effect", [0.0, float("nan")])
async def test_what_the_engine_shows_does(registry_app: RegistryApp, files: Files, effect: float) -> None:
    digest, victim, attacker = await shared(registry_app, files, claim(0.5))
    registry_app.engine.effects[digest] = effect
    proven = await registry_app.http.post("/v1/adapters/mine/versions/1/prove", headers=attacker)
    assert proven.status_code == 422
    assert await servable(registry_app, victim) == "corrupt"


@pytest.mark.parametrize("wait", ["true", "false"])
async def test_a_push_without_the_claim_that_was_refused_is_proven_without_it(
    registry_app: RegistryApp, files: Files, wait: str
) -> None:
    adapter = files(seed=1)
    metadata = {"proof": claim(3.0), "run": 1}
    assert (await registry_app.push("mine", adapter, query="?wait=false", metadata=metadata)).status_code == 202
    await registry_app.registry.wait_idle()
    assert (await registry_app.version("mine@1"))["reason"]["code"] == "diverges_from_reference"
    again = await registry_app.push("mine", adapter, query=f"?wait={wait}", metadata={"run": 2})
    assert again.status_code == (200 if wait == "true" else 202), again.text
    await registry_app.registry.wait_idle()
    version = await registry_app.version("mine@1")
    assert (version["state"], version["metadata"]) == ("ready", {"run": 2})
    proven = await registry_app.http.post("/v1/adapters/mine/versions/1/prove")
    assert proven.status_code == 200, proven.text


async def test_a_refused_claim_at_push_marks_nothing(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    victim, attacker = await registry_app.key("victim"), await registry_app.key("attacker")
    await registry_app.push("voice", adapter, headers=victim)
    for proof in (claim(3.0), claim(0.5, TOKENS - 1), {"format": 1}, "?"):
        answer = await registry_app.push("mine", adapter, headers=attacker, metadata={"proof": proof})
        assert answer.status_code == 422, answer.text
        later = await registry_app.push(
            "mine", adapter, headers=attacker, query="?wait=false", metadata={"proof": proof}
        )
        await registry_app.registry.wait_idle()
        assert later.status_code in (202, 422), later.text
    assert await servable(registry_app, victim) == "ok"
