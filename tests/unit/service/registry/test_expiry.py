"""Versions that expire, as the checkpoints of fine-tuning jobs do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from adapters.names import checkpoint_alias
from service.access.audit import SYSTEM
from service.errors import ModelNotFound
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, RegistryApp

Files = Callable[..., AdapterFiles]
JOB = "ftjob-0f3a9c1b22de77aa01bb22cc"
STEP_20, STEP_40 = checkpoint_alias(JOB, 20), checkpoint_alias(JOB, 40)
A_WEEK = 7 * 86400


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the registry's clock forward by so many seconds."""

    def forward(seconds: float) -> None:
        monkeypatch.setattr("service.registry.alias_records.now", lambda: int(time.time() + seconds))

    return forward


async def push_checkpoint(registry_app: RegistryApp, adapter: AdapterFiles, alias: str) -> int:
    """The number of a version that expires in a week."""
    pushed = await registry_app.push("voice", adapter, alias=alias, expires_at=str(int(time.time()) + A_WEEK))
    assert pushed.status_code == 201, pushed.text
    return int(pushed.json()["version"])


async def test_a_checkpoint_answers_by_its_name_and_is_not_live(registry_app: RegistryApp, files: Files) -> None:
    number = await push_checkpoint(registry_app, files(seed=1), STEP_20)
    shown = (await registry_app.http.get(f"/v1/adapters/voice/versions/{number}")).json()
    assert shown["aliases"] == [STEP_20]
    assert shown["state"] == "ready"
    assert shown["expires_at"] > time.time() + A_WEEK - 60
    target = registry_app.catalog.resolve(ADMIN, f"voice:{STEP_20}")
    assert (target.digest, target.version) == (shown["digest"], number)


async def test_it_is_deleted_when_its_time_is_over(
    registry_app: RegistryApp, files: Files, clock: Callable[[float], None]
) -> None:
    await registry_app.push("voice", files(seed=3))
    number = await push_checkpoint(registry_app, files(seed=1), STEP_20)
    assert await registry_app.registry.deletion.delete_expired() == 0
    clock(A_WEEK + 5)
    assert await registry_app.registry.deletion.delete_expired() == 1
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, f"voice:{STEP_20}")
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, f"voice@{number}")
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1
    rows = [row for row in await registry_app.audit() if row.action == "version.delete"]
    assert [(row.target, row.key_id) for row in rows] == [(f"voice@{number}", SYSTEM.key_id)]


async def test_any_other_alias_keeps_it_for_good(
    registry_app: RegistryApp, files: Files, clock: Callable[[float], None]
) -> None:
    promoted = await push_checkpoint(registry_app, files(seed=1), STEP_20)
    split = await push_checkpoint(registry_app, files(seed=2), STEP_40)
    client = registry_app.http
    assert (await client.put("/v1/adapters/voice/aliases/live", json={"version": promoted})).status_code == 200
    weights = {str(promoted): 1, str(split): 1}
    assert (await client.put("/v1/adapters/voice/aliases/canary", json={"split": weights})).status_code == 200
    assert (await client.delete("/v1/adapters/voice/aliases/canary")).status_code == 200
    clock(10 * A_WEEK)
    assert await registry_app.registry.deletion.delete_expired() == 0
    assert (await client.get(f"/v1/adapters/voice/versions/{split}")).json()["expires_at"] is None


async def test_a_checkpoint_alias_does_not_keep_it(
    registry_app: RegistryApp, files: Files, clock: Callable[[float], None]
) -> None:
    number = await push_checkpoint(registry_app, files(seed=1), STEP_20)
    again = await registry_app.http.put(f"/v1/adapters/voice/aliases/{STEP_40}", json={"version": number})
    assert again.status_code == 200
    clock(A_WEEK + 5)
    assert await registry_app.registry.deletion.delete_expired() == 1


async def test_a_time_that_no_column_holds_is_refused(registry_app: RegistryApp, files: Files) -> None:
    refused = await registry_app.push("voice", files(seed=1), alias="", expires_at="0" + "9" * 30)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_at")


async def test_the_same_weights_pushed_to_stay_stay(
    registry_app: RegistryApp, files: Files, clock: Callable[[float], None]
) -> None:
    adapter = files(seed=1)
    number = await push_checkpoint(registry_app, adapter, STEP_20)
    later = await registry_app.push("voice", adapter, alias="", expires_at=str(int(time.time()) + 3 * A_WEEK))
    assert (later.status_code, later.json()["version"]) == (200, number)
    assert later.json()["expires_at"] > time.time() + 2 * A_WEEK
    sooner = await registry_app.push("voice", adapter, alias="", expires_at=str(int(time.time()) + A_WEEK))
    assert sooner.json()["expires_at"] == later.json()["expires_at"]
    for_good = await registry_app.push("voice", adapter, alias="")
    assert for_good.json()["expires_at"] is None
    clock(10 * A_WEEK)
    assert await registry_app.registry.deletion.delete_expired() == 0


async def test_it_is_deleted_by_hand_without_force(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=3))
    number = await push_checkpoint(registry_app, files(seed=1), STEP_20)
    assert (await registry_app.http.delete(f"/v1/adapters/voice/versions/{number}")).status_code == 204
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, f"voice:{STEP_20}")


@pytest.mark.parametrize("given", ["soon", "-5", "1.5", "1000000000", "99999999999999999999", "٣٤٥٦٧٨٩٠٠٠"])
async def test_a_time_that_is_none_is_refused(registry_app: RegistryApp, files: Files, given: str) -> None:
    refused = await registry_app.push("voice", files(seed=1), expires_at=given)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "expires_at"
    assert "in the future" in refused.json()["error"]["message"]


async def test_settings_alone_may_expire_too(registry_app: RegistryApp, clock: Callable[[float], None]) -> None:
    body = {"name": "terse", "settings": {"system_prompt": "Be terse."}, "expires_at": int(time.time()) + 60}
    assert (await registry_app.http.post("/v1/adapters", json=body | {"alias": ""})).status_code == 201
    past = await registry_app.http.post("/v1/adapters", json=body | {"expires_at": 5})
    assert (past.status_code, past.json()["error"]["param"]) == (400, "expires_at")
    clock(65)
    assert await registry_app.registry.deletion.delete_expired() == 1
