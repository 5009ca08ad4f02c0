"""A push from the upload to the version: what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapters.base import BaseDescription
from adapters.errors import DiskFull
from adapters.store import WEIGHTS_FILE, Staging, hold_for_engine
from service.access.audit import SYSTEM
from service.errors import ModelNotFound, NoLiveVersion
from service.registry.storage_records import stored_bytes
from service.registry.upload import ReceivedUpload
from tests.unit.service.registry.conftest import ADMIN, RegistryApp
from tests.unit.service.registry.engine import BASE
from tests.unit.service.registry.test_service import Files, code, digest_of_refused


async def test_a_first_push_goes_live_and_later_ones_do_not(registry_app: RegistryApp, files: Files) -> None:
    first = await registry_app.push("voice", files(seed=1), metadata={"run": 1}, settings={"system_prompt": "Ahoy."})
    assert first.status_code == 201, first.text
    shown = first.json()
    assert first.headers["location"] == "/v1/adapters/voice/versions/1"
    assert set(shown) == {
        *("object", "adapter", "version", "digest", "state", "servable", "aliases", "rank", "alpha"),
        *("target_modules", "bytes", "base", "base_name", "created_at", "settings", "metadata", "proof", "warnings"),
        *("verdict", "revalidation", "held_back", "expires_at"),
    }
    assert (shown["object"], shown["adapter"], shown["version"]) == ("adapter.version", "voice", 1)
    assert (shown["state"], shown["servable"], shown["aliases"]) == ("ready", "ok", ["live"])
    assert shown["metadata"] == {"run": 1}
    assert (shown["base"], shown["base_name"]) == (registry_app.base.fingerprint.model_dump(), BASE)
    assert shown["proof"]["distance"] == pytest.approx(0.5)
    target = registry_app.catalog.resolve(ADMIN, "voice")
    assert (target.digest, target.settings.system_prompt) == (shown["digest"], "Ahoy.")

    second = (await registry_app.push("voice", files(seed=2))).json()
    assert (second["version"], second["aliases"]) == (2, [])
    assert registry_app.catalog.resolve(ADMIN, "voice").version == 1
    assert registry_app.catalog.resolve(ADMIN, "voice@2").digest == second["digest"]
    assert registry_app.leftovers() == []


async def test_the_same_again_is_the_same_version(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    first = await registry_app.push("voice", adapter)
    again = await registry_app.push("voice", adapter, alias="canary")
    assert (again.status_code, again.json()["version"]) == (200, first.json()["version"])
    assert again.json()["aliases"] == ["canary", "live"]
    other = await registry_app.push("voice", adapter, settings={"sampling": {"temperature": 0.1}})
    assert (other.status_code, other.json()["version"], other.json()["digest"]) == (201, 2, first.json()["digest"])


async def test_two_pushes_of_one_adapter_at_once_make_one_version(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    answers = await asyncio.gather(*(registry_app.push("voice", adapter) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert {answer.json()["version"] for answer in answers} == {1}


async def test_an_empty_alias_leaves_it_without_one(registry_app: RegistryApp, files: Files) -> None:
    assert (await registry_app.push("voice", files(seed=1), alias="")).json()["aliases"] == []
    with pytest.raises(NoLiveVersion):
        registry_app.catalog.resolve(ADMIN, "voice")
    assert registry_app.catalog.resolve(ADMIN, "voice@1").version == 1


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("nan", (422, "weights_not_finite")),
        ("overflow", (422, "update_too_large")),
        ("wrong_shape", (422, "shape_mismatch")),
        ("dora", (422, "dora_unsupported")),
        ("truncated", (422, "weights_invalid")),
        ("missing_pair", (422, "pair_incomplete")),
        ("unknown_layer", (422, "module_unknown")),
        ("zero_effect", (422, "no_effect")),
    ],
)
async def test_a_refusal_leaves_nothing_behind(
    registry_app: RegistryApp, files: Files, variant: str, expected: tuple[int, str]
) -> None:
    assert code(await registry_app.push("voice", files(variant=variant))) == expected
    assert code(await registry_app.http.get("/v1/adapters/voice")) == (404, "adapter_not_found")
    assert (await registry_app.http.get("/v1/adapters")).json()["data"] == []
    assert registry_app.leftovers() == []
    with pytest.raises(ModelNotFound):
        registry_app.catalog.resolve(ADMIN, "voice")
    assert (await registry_app.push("voice", files(seed=3))).json()["version"] == 1


async def test_the_embedders_name_is_taken_but_for_whom_had_it_first(
    registry_app: RegistryApp, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await registry_app.push_settings("meaning", system_prompt="Be brief.")).status_code == 201
    registry_app.catalog.embedder_name = "meaning"
    again = await registry_app.push_settings("meaning", system_prompt="Be kind.")
    assert (again.status_code, again.json()["version"]) == (201, 2)
    assert not registry_app.catalog.resolve(ADMIN, "meaning").embeds
    await registry_app.registry.close()
    await registry_app.registry.open()
    [warning] = [record for record in caplog.records if "the embedder is hidden" in record.message]
    assert (vars(warning)["name_taken"], vars(warning)["projects"]) == ("meaning", ["default"])
    registry_app.catalog.embedder_name = "another"
    assert code(await registry_app.push_settings("another", system_prompt="Be brief.")) == (422, "name_reserved")


async def test_refusals_with_a_status_of_their_own(registry_app: RegistryApp, files: Files) -> None:
    assert code(await registry_app.push("voice", files(), weights_name="adapter_model.bin")) == (415, "pickle_refused")
    assert code(await registry_app.push(BASE, files())) == (422, "name_reserved")
    assert code(await registry_app.push("No Name", files())) == (422, "name_invalid")
    assert code(await registry_app.push("voice", files(), metadata={"proof": {}})) == (422, "proof_invalid")
    large = files(rank=32, modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    large.weights_path.write_bytes(large.weights + b"\0" * 1024 * 1024)
    assert code(await registry_app.push("voice", large))[0] == 413
    assert registry_app.leftovers() == []


async def test_no_proof_no_version(registry_app: RegistryApp, files: Files) -> None:
    registry_app.engine.effect = 0
    assert code(await registry_app.push("voice", files(seed=1))) == (422, "not_applied")
    assert code(await registry_app.http.get("/v1/adapters/voice/versions/1")) == (404, "adapter_not_found")


async def test_without_waiting_a_failed_proof_stays_readable_at_its_url_only(
    registry_app: RegistryApp, files: Files
) -> None:
    registry_app.engine.effect = 0
    adapter = files(seed=1)
    pushed = await registry_app.push("voice", adapter, query="?wait=false")
    assert (pushed.status_code, pushed.json()["state"]) == (202, "proving")
    await registry_app.registry.wait_idle()
    rejected = (await registry_app.http.get("/v1/adapters/voice/versions/1")).json()
    assert (rejected["state"], rejected["reason"]["code"], rejected["aliases"]) == ("rejected", "not_applied", [])
    assert (await registry_app.http.get("/v1/adapters")).json()["data"] == []
    assert code(await registry_app.http.get("/v1/adapters/voice")) == (404, "adapter_not_found")
    assert code(await registry_app.http.put("/v1/adapters/voice/aliases/live", json={"version": 1})) == (
        409,
        "version_not_ready",
    )

    registry_app.engine.effect = 0.5  # it was no first version: the next one is, and goes live
    other = await registry_app.push("voice", files(seed=2))
    assert (other.json()["version"], other.json()["aliases"]) == (2, ["live"])
    shown = (await registry_app.http.get("/v1/adapters/voice")).json()
    assert [version["version"] for version in shown["versions"]] == [2]

    again = await registry_app.push("voice", adapter)
    assert (again.status_code, again.json()["version"], again.json()["state"]) == (200, 1, "ready")


async def test_a_client_that_leaves_leaves_nothing(registry_app: RegistryApp, files: Files) -> None:
    arrived = asyncio.Event()

    async def hang(write: Callable[[bytes], object]) -> ReceivedUpload:
        write(files(seed=1).weights)
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError("it never comes")

    push = asyncio.create_task(registry_app.registry.pushes.push(ADMIN, hang, wait=True, actor=SYSTEM))
    await arrived.wait()
    assert len(registry_app.leftovers()) == 1
    push.cancel()
    with pytest.raises(asyncio.CancelledError):
        await push
    assert registry_app.leftovers() == []


async def test_damaged_files_heal_by_a_push(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    digest = (await registry_app.push("voice", adapter)).json()["digest"]
    (registry_app.store.path(digest) / WEIGHTS_FILE).write_bytes(b"short")
    assert (await registry_app.http.get("/v1/adapters/voice/versions/1")).json()["servable"] == "damaged"
    assert code(await registry_app.http.post("/v1/adapters/voice/versions/1/prove")) == (409, "version_damaged")
    assert (await registry_app.push("voice", adapter)).json()["servable"] == "ok"


async def test_an_engine_that_is_away_refuses_to_wait_and_leaves_nothing(
    registry_app: RegistryApp, files: Files
) -> None:
    digest = await digest_of_refused(registry_app, files(seed=1))
    assert (await registry_app.http.get("/v1/adapters")).json()["data"] == []
    assert await registry_app.registry.collect() == [digest]


async def test_an_upload_that_breaks_off_leaves_nothing(registry_app: RegistryApp, files: Files) -> None:
    parts = {"config": files(seed=1).config, "weights": ("w.safetensors", files(seed=1).weights)}
    request = registry_app.http.build_request("POST", "/v1/adapters", data={"name": "voice"}, files=parts)
    whole = await request.aread()

    async def half() -> AsyncIterator[bytes]:
        yield whole[: len(whole) // 2]

    cut = await registry_app.http.post(
        "/v1/adapters", content=half(), headers={"content-type": request.headers["content-type"]}
    )
    assert code(cut) == (400, "invalid_multipart")
    assert registry_app.leftovers() == []
    assert registry_app.store.digests() == []


async def test_a_project_s_adapters_are_bounded_together_and_what_is_removed_makes_room(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    first, second = files(seed=1), files(seed=2)
    limit_gib = (len(first.weights) * 1.5) / 2**30
    async with RegistryApp(tmp_path / "home", base, max_adapters_gib=limit_gib).run() as app:
        assert (await app.push("voice", first)).status_code == 201
        full = await app.push("other", second)
        assert (full.status_code, full.json()["error"]["code"]) == (413, "project_storage_full")
        assert full.json()["error"]["param"] == "adapter_model.safetensors"
        assert "HATRACK_MAX_ADAPTERS_GIB" in full.json()["error"]["message"]
        assert (app.leftovers(), len(app.store.digests())) == ([], 1), "it was refused before it was stored"
        assert (await app.push("again", first)).status_code == 201, "the same weights take no more room"
        assert (await app.push("voice", second, headers=await app.key("elsewhere"))).status_code == 201
        for name in ("voice", "again"):
            assert (await app.http.delete(f"/v1/adapters/{name}?force=true")).status_code == 204
        full = await app.push("other", second)
        assert (full.status_code, full.json()["error"]["code"]) == (413, "project_storage_full")
        assert "removed when the engine next starts" in full.json()["error"]["message"]
        assert (await app.push("voice", first)).status_code == 201, "they are there already"
        assert (await app.http.delete("/v1/adapters/voice?force=true")).status_code == 204
        assert len(await app.registry.collect()) == 1
        assert (await app.push("other", second)).status_code == 201


async def test_weights_of_a_refused_push_count_until_they_are_removed(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    first, second = files(seed=1), files(seed=2)
    limit_gib = (len(first.weights) * 1.5) / 2**30
    async with RegistryApp(tmp_path / "home", base, max_adapters_gib=limit_gib).run() as app:
        app.engine.effect = 0
        assert code(await app.push("voice", first)) == (422, "not_applied")
        assert len(app.store.digests()) == 1, "the engine may have loaded them"
        assert await app.database.run(lambda db: stored_bytes(db, "default")) == len(first.weights)
        app.engine.effect = 0.5
        assert code(await app.push("voice", second)) == (413, "project_storage_full")
        shutil.rmtree(app.store.path(app.store.digests()[0]))  # by `hatrack gc`, while no gateway runs
        await app.registry.close()
        await app.registry.open()
        assert await app.database.run(lambda db: stored_bytes(db, "default")) == 0
        assert (await app.push("voice", second)).status_code == 201


async def test_an_upload_for_which_the_disk_has_no_room_does_not_count(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise DiskFull("The disk is full.")

    monkeypatch.setattr(Staging, "commit", full)
    assert (await registry_app.push("voice", files())).status_code == 507
    assert await registry_app.database.run(lambda db: stored_bytes(db, "default")) == 0


async def test_uploads_that_come_at_once_do_not_share_the_last_room(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    made = [files(seed=seed) for seed in (1, 2, 3)]
    limit_gib = (len(made[0].weights) * 1.5) / 2**30
    async with RegistryApp(tmp_path / "home", base, max_adapters_gib=limit_gib).run() as app:
        pushed = await asyncio.gather(*(app.push(f"voice-{number}", each) for number, each in enumerate(made)))
        assert sorted(answer.status_code for answer in pushed) == [201, 413, 413]
        assert len(app.store.digests()) == 1


async def test_nothing_is_removed_while_another_engine_uses_the_store(registry_app: RegistryApp, files: Files) -> None:
    assert (await registry_app.push("voice", files())).status_code == 201
    assert (await registry_app.http.delete("/v1/adapters/voice?force=true")).status_code == 204
    engine = hold_for_engine(registry_app.store.root)
    try:
        assert await registry_app.registry.collect() == []
        assert len(registry_app.store.digests()) == 1
    finally:
        os.close(engine)
    assert len(await registry_app.registry.collect()) == 1


async def test_a_push_that_is_cancelled_while_its_upload_is_cleared_away_holds_no_digest(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    clearing, cleared, calls = asyncio.Event(), threading.Event(), list[int]()
    loop, discard = asyncio.get_running_loop(), Staging.discard

    def slowly(self: Staging) -> None:
        discard(self)
        calls.append(1)
        if len(calls) == 1:  # the commit's own
            return
        loop.call_soon_threadsafe(clearing.set)
        cleared.wait(30)

    monkeypatch.setattr(Staging, "discard", slowly)
    push = asyncio.create_task(registry_app.push("voice", files()))
    await clearing.wait()
    push.cancel()
    cleared.set()
    with pytest.raises(asyncio.CancelledError):
        await push
    assert len(await registry_app.registry.collect()) == 1
