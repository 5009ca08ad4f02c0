"""Every change is in the audit: who, what and when; what failed or changed nothing is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import sqlalchemy as sa

from service.access.tables import audit
from service.error_handlers import RequestIds
from service.registry.catalog import Servable
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import KEY, RegistryApp

Files = Callable[..., AdapterFiles]
LIVE = "/v1/adapters/voice/aliases/live"


async def noted(registry_app: RegistryApp) -> list[tuple[str, str]]:
    return [(row.action, row.target) for row in await registry_app.audit()]


async def since(registry_app: RegistryApp, before: int) -> list[tuple[str, str]]:
    return (await noted(registry_app))[before:]


async def test_every_change_is_noted_once_and_what_changes_nothing_is_not(
    registry_app: RegistryApp, files: Files
) -> None:
    adapter = files(seed=1)
    await registry_app.push("voice", adapter)
    await registry_app.push("voice", adapter)
    assert await noted(registry_app) == [("adapter.push", "voice@1"), ("alias.promote", "voice:live")]
    await registry_app.push("voice", files(seed=2), alias="canary")
    await registry_app.push("voice", adapter, alias="canary")
    steps: list[tuple[str, str, Any, list[tuple[str, str]]]] = [
        ("PUT", "/aliases/live", {"version": 2}, [("alias.promote", "voice:live")]),
        ("PUT", "/aliases/live", {"version": 2}, []),
        ("PUT", "/aliases/live", {"split": {"1": 1, "2": 1}}, [("alias.split", "voice:live")]),
        ("PUT", "/aliases/live", {"split": {"1": 1, "9": 1}}, []),
        ("POST", "/aliases/live/rollback", None, [("alias.rollback", "voice:live")]),
        ("PUT", "/pin", None, [("adapter.pin", "voice")]),
        ("PUT", "/pin", None, []),
        ("DELETE", "/pin", None, [("adapter.unpin", "voice")]),
        ("DELETE", "/pin", None, []),
        ("DELETE", "/aliases/canary", None, [("alias.delete", "voice:canary")]),
        ("DELETE", "/aliases/canary", None, []),
        ("POST", "/versions/1/prove", None, [("version.prove", "voice@1")]),
        ("DELETE", "/versions/2", None, []),
        ("DELETE", "/versions/2?force=true", None, [("version.delete", "voice@2")]),
        ("DELETE", "?force=true", None, [("adapter.delete", "voice")]),
    ]
    for method, path, body, expected in steps:
        before = len(await noted(registry_app))
        await registry_app.http.request(method, f"/v1/adapters/voice{path}", json=body)
        assert await since(registry_app, before) == expected, (method, path)
    assert (await noted(registry_app))[2:5] == [
        ("adapter.push", "voice@2"),
        ("alias.promote", "voice:canary"),
        ("alias.promote", "voice:canary"),
    ]


async def test_details_say_what_moved_and_where(registry_app: RegistryApp, files: Files) -> None:
    first = (await registry_app.push("voice", files(seed=1))).json()
    await registry_app.push("voice", files(seed=2))
    await registry_app.http.put(LIVE, json={"split": {"1": 90, "2": 10}})
    await registry_app.http.post(f"{LIVE}/rollback")
    await registry_app.http.delete("/v1/adapters/voice/versions/1?force=true")
    details = {row.action: row.detail for row in await registry_app.audit()}
    assert details["alias.split"] == {"split": {"1": 90, "2": 10}, "because": "split"}
    assert details["alias.rollback"] == {"version": 1, "because": "rollback"}
    assert details["alias.promote"] == {"version": 1, "because": "push"}
    assert details["version.delete"] == {"digest": first["digest"], "aliases": ["live"]}


async def test_the_entry_names_the_key_the_project_and_the_request(registry_app: RegistryApp, files: Files) -> None:
    key = await registry_app.key("acme")
    transport = httpx.ASGITransport(app=RequestIds(registry_app.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=key) as theirs:
        parts = {"config": ("c.json", files(seed=1).config), "weights": ("w.safetensors", files(seed=1).weights)}
        pushed = await theirs.post("/v1/adapters", data={"name": "voice"}, files=parts, headers={"x-request-id": "r-1"})
    assert pushed.status_code == 201, pushed.text
    for row in await registry_app.audit():
        assert (row.project, row.key_name, row.request_id) == ("acme", "a key of the tests", "r-1")
        assert row.key_id not in ("admin", "system")
    await registry_app.push("voice", files(seed=2), headers={"openai-project": "acme"})
    last = (await registry_app.audit())[-1]
    assert (last.key_id, last.project, last.action, last.target) == ("admin", "acme", "adapter.push", "voice@2")


async def test_what_a_proof_in_the_background_does_is_the_pushers_and_after_a_restart_the_gateways(
    registry_app: RegistryApp, files: Files
) -> None:
    await registry_app.push("voice", files(seed=1), query="?wait=false")
    await registry_app.registry.wait_idle()
    registry_app.engine.effect = 0
    await registry_app.push("weak", files(seed=2), query="?wait=false")
    await registry_app.registry.wait_idle()
    assert [(row.key_id, row.action, row.target) for row in await registry_app.audit()] == [
        ("admin", "adapter.push", "voice@1"),
        ("admin", "version.ready", "voice@1"),
        ("admin", "alias.promote", "voice:live"),
        ("admin", "adapter.push", "weak@1"),
        ("admin", "version.reject", "weak@1"),
    ]
    assert ((await registry_app.audit())[-1].detail or {})["code"] == "not_applied"

    registry_app.engine.down = True
    key = await registry_app.key("acme")
    await registry_app.push("late", files(seed=3), query="?wait=false", headers=key)
    await registry_app.registry.close()
    again = RegistryApp(registry_app.settings.home, registry_app.base)
    async with again.run():
        await again.registry.wait_idle()
        told = [(row.key_id, row.project, row.action, row.target) for row in await again.audit()][-2:]
    assert told == [
        ("system", "acme", "version.ready", "late@1"),
        ("system", "acme", "alias.promote", "late:live"),
    ]


async def test_a_conviction_is_noted_in_each_project_that_it_touches(registry_app: RegistryApp, files: Files) -> None:
    key, adapter = await registry_app.key("acme"), files(seed=1)
    digest = (await registry_app.push("voice", adapter)).json()["digest"]
    await registry_app.push("twin", adapter, headers=key)
    registry_app.engine.not_finite.add(digest)
    registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    told = [
        (row.key_id, row.project, row.target) for row in await registry_app.audit() if row.action == "version.corrupt"
    ]
    assert sorted(told) == [("system", "acme", "twin@1"), ("system", "default", "voice@1")]


async def test_a_change_that_cannot_be_noted_does_not_happen(registry_app: RegistryApp, files: Files) -> None:
    for seed in (1, 2):
        await registry_app.push("voice", files(seed=seed))
    await registry_app.database.run(lambda db: audit.drop(db))
    for method, path, body in [
        ("PUT", "/aliases/live", {"version": 2}),
        ("PUT", "/pin", None),
        ("DELETE", "?force=true", None),
    ]:
        answer = await registry_app.http.request(method, f"/v1/adapters/voice{path}", json=body)
        assert answer.status_code == 500, path
    shown = (await registry_app.http.get("/v1/adapters/voice")).json()
    assert (shown["aliases"], shown["pinned"], len(shown["versions"])) == ({"live": 1}, False, 2)


async def test_no_key_stands_in_the_audit(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1), settings={"system_prompt": "a secret of the shop"})
    rows = await registry_app.database.run(lambda db: db.execute(sa.select(audit)).all())
    assert rows
    assert KEY not in str(rows)
    assert "secret of the shop" not in str(rows)


async def test_counts_follow_each_change(registry_app: RegistryApp, files: Files) -> None:
    assert registry_app.registry.counts.adapters == 0
    digest = (await registry_app.push("voice", files(seed=1))).json()["digest"]
    await registry_app.push("voice", files(seed=2))
    await registry_app.push("other", files(seed=3))
    await registry_app.http.put(LIVE, json={"split": {"1": 1, "2": 1}})
    await registry_app.http.put("/v1/adapters/voice/pin")
    counts = registry_app.registry.counts
    assert (counts.adapters, counts.pins, counts.splits) == (2, 1, 1)
    assert dict(counts.ready) == {**dict.fromkeys(Servable, 0), Servable.OK: 3}
    registry_app.engine.down = True
    await registry_app.push("late", files(seed=4), query="?wait=false")
    assert dict(registry_app.registry.counts.unready) == {"proving": 1, "rejected": 0}
    registry_app.engine.down, registry_app.engine.effect = False, 0
    await registry_app.registry.wait_idle()
    assert dict(registry_app.registry.counts.unready) == {"proving": 0, "rejected": 1}
    registry_app.engine.not_finite.add(digest)
    registry_app.registry.report_failure(digest)
    await registry_app.registry.wait_idle()
    assert registry_app.registry.counts.ready[Servable.CORRUPT] == 1
    await registry_app.http.delete("/v1/adapters/voice?force=true")
    assert (registry_app.registry.counts.adapters, registry_app.registry.counts.pins) == (1, 0)
