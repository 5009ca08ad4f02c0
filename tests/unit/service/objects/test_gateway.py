"""Adapters and files of a whole gateway in a bucket: what is served, from where, and what is left where that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adapters.base import BaseDescription
from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from service.objects.adapters import object_names
from tests.support.adapters import describe_base, make_base
from tests.support.s3 import Door, S3Server
from tests.unit.service.gateway_app import BASE
from tests.unit.service.objects.object_gateway import ObjectGateway, open_gateway

LINE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(base_dir: Path) -> BaseDescription:
    return describe_base(base_dir, served_name=BASE)


@pytest.fixture(scope="module")
def way(s3: S3Server) -> Iterator[Door]:
    """The way to the bucket, for all gateways here."""
    made = Door(s3.port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment(made.endpoint).items():
            patch.setenv(name, value)
        yield made
    made.shut()


@pytest.fixture(scope="module")
def url(s3: S3Server, way: Door) -> str:
    return f"s3://{s3.bucket()}/hatrack"


@pytest.fixture(scope="module")
async def gateway(url: str, base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ObjectGateway]:
    async with open_gateway(tmp_path_factory.mktemp("gateway") / "home", base_dir, url) as ready:
        yield ready


async def test_a_pushed_adapter_is_in_the_bucket_and_comes_back_from_it(
    gateway: ObjectGateway, base: BaseDescription
) -> None:
    files = gateway.adapter(base, "pirate", seed=1)
    digest = await gateway.pushed("pirate", files)
    assert set(object_names(digest)) <= gateway.names()
    assert gateway.objects.read(object_names(digest)[1], 10**8) == files.weights
    await gateway.empty_cache()
    assert gateway.local() == set()
    answer = await gateway.chat("pirate")
    assert answer.status_code == 200, answer.text
    assert gateway.engine.served[-1] == digest
    assert (gateway.gateway.settings.store_dir / digest / WEIGHTS_FILE).read_bytes() == files.weights
    await gateway.empty_cache()
    downloaded = await gateway.http.get("/v1/adapters/pirate/versions/1/files/weights")
    assert downloaded.content == files.weights


@pytest.mark.parametrize("which", [CONFIG_FILE, WEIGHTS_FILE, "missing"])
async def test_a_damaged_object_is_refused_and_mended_by_the_next_push(
    which: str, gateway: ObjectGateway, base: BaseDescription
) -> None:
    files = gateway.adapter(base, "fragile", seed=2)
    digest = await gateway.pushed("fragile", files)
    await gateway.empty_cache()
    config, weights = object_names(digest)
    if which == "missing":
        gateway.objects.delete([config])
    else:
        gateway.objects.replace(config if which == CONFIG_FILE else weights, b"x" * 700)
    served, local = len(gateway.engine.served), gateway.local()
    for _ in range(2):
        answer = await gateway.chat("fragile")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_damaged")
    version = (await gateway.http.get("/v1/adapters/fragile/versions/1")).json()
    assert version["servable"] == "damaged"
    assert gateway.local() == local, "nothing was taken in under any name"
    assert list((gateway.gateway.settings.store_dir / ".staging").iterdir()) == []
    assert len(gateway.engine.served) == served, "the engine was not asked"
    assert await gateway.pushed("fragile", files) == digest
    assert (await gateway.chat("fragile")).status_code == 200
    await gateway.empty_cache()
    assert (await gateway.chat("fragile")).status_code == 200


async def test_an_object_that_was_put_back_serves_again_by_itself(
    gateway: ObjectGateway, base: BaseDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await gateway.pushed("lost", gateway.adapter(base, "lost", seed=6))
    config = object_names(digest)[0]
    content = gateway.objects.read(config, 10**6)
    gateway.objects.delete([config])
    await gateway.empty_cache()
    assert (await gateway.chat("lost")).status_code == 409
    await gateway.pushed("lost", gateway.adapter(base, "lost", seed=7))  # the adapter is read again meanwhile
    assert (await gateway.chat("lost@1")).status_code == 409
    gateway.objects.replace(config, content)
    gateway.copies._failed[digest] = (0.0, gateway.copies._failed[digest][1])  # half a minute later
    assert (await gateway.chat("lost@1")).status_code == 200
    assert (await gateway.http.get("/v1/adapters/lost/versions/1")).json()["servable"] == "ok"


async def test_without_the_bucket_only_what_is_cold_fails(
    gateway: ObjectGateway, base: BaseDescription, way: Door
) -> None:
    cold = await gateway.pushed("cold", gateway.adapter(base, "cold", seed=3))
    await gateway.empty_cache()
    warm = await gateway.pushed("warm", gateway.adapter(base, "warm", seed=4))
    assert cold not in gateway.local()
    before, local = gateway.names(), gateway.local()
    assert warm in local
    way.shut()
    try:
        assert (await gateway.chat("warm")).status_code == 200
        assert (await gateway.chat(BASE)).status_code == 200
        for _ in range(2):
            answer = await gateway.chat("cold")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        answer = await gateway.push("new", gateway.adapter(base, "new", seed=5))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert (await gateway.http.get("/v1/adapters/new")).status_code == 404
        assert (await gateway.chat("warm")).status_code == 200
    finally:
        way.open()
    assert list((gateway.gateway.settings.store_dir / ".staging").iterdir()) == []
    assert gateway.local() == local
    assert gateway.names() == before
    gateway.copies.cache._away_until = 0
    assert (await gateway.chat("cold")).status_code == 200
    assert cold in gateway.local()


async def test_a_bucket_that_stalls_holds_up_no_warm_adapter(
    gateway: ObjectGateway, base: BaseDescription, way: Door
) -> None:
    names = [f"stalled-{number}" for number in range(12)]  # more than there are threads
    for number, name in enumerate(names):
        await gateway.pushed(name, gateway.adapter(base, name, seed=10 + number))
    await gateway.empty_cache()
    await gateway.pushed("ready", gateway.adapter(base, "ready", seed=9))
    way.stall()
    cold = [asyncio.create_task(gateway.chat(name)) for name in names]
    try:
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            assert (await gateway.chat("ready")).status_code == 200
            assert (await gateway.http.get("/v1/adapters")).status_code == 200
        assert not any(task.done() for task in cold)
    finally:
        way.flow()
    assert {(await task).status_code for task in cold} == {200}


async def test_what_the_engine_has_loaded_is_not_evicted(gateway: ObjectGateway, base: BaseDescription) -> None:
    loaded = await gateway.pushed("loaded", gateway.adapter(base, "loaded", seed=30))
    other = await gateway.pushed("other", gateway.adapter(base, "other", seed=31))
    gateway.engine.report["loaded"] = [loaded]
    try:
        await gateway.chat("other")
        await gateway.look()
        assert gateway.copies.kept() == {loaded}
        await gateway.empty_cache(forgotten=False)
        assert loaded in gateway.local()
        assert other not in gateway.local()
    finally:
        gateway.engine.report["loaded"] = []


async def test_two_gateways_push_the_same_adapter_at_once(
    gateway: ObjectGateway, base: BaseDescription, base_dir: Path, url: str, tmp_path: Path
) -> None:
    files = gateway.adapter(base, "twin", seed=40)
    async with open_gateway(tmp_path / "home", base_dir, url) as second:
        first_digest, second_digest = await asyncio.gather(gateway.pushed("twin", files), second.pushed("twin", files))
        assert first_digest == second_digest
        for each in (gateway, second):
            await each.empty_cache()
            assert (await each.chat("twin")).status_code == 200
    assert {name for name in gateway.names() if first_digest in name} == set(object_names(first_digest))


# files


async def upload(gateway: ObjectGateway, content: bytes = LINE) -> str:
    answer = await gateway.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def test_a_file_is_in_the_bucket_and_comes_back_from_it(gateway: ObjectGateway) -> None:
    content = LINE * 1000
    file_id = await upload(gateway, content)
    assert gateway.names("files") >= {f"files/{file_id}"}
    await gateway.empty_cache()
    assert not (gateway.gateway.settings.files_dir / file_id).exists()
    answer = await gateway.http.get(f"/v1/files/{file_id}/content")
    assert (answer.status_code, answer.content) == (200, content)
    assert (await gateway.http.delete(f"/v1/files/{file_id}")).status_code == 200
    assert f"files/{file_id}" not in gateway.names("files")
    assert not (gateway.gateway.settings.files_dir / file_id).exists()


async def test_a_damaged_file_is_not_shown(gateway: ObjectGateway) -> None:
    file_id = await upload(gateway)
    await gateway.empty_cache()
    gateway.objects.replace(f"files/{file_id}", LINE[:-2] + b" \n")
    answer = await gateway.http.get(f"/v1/files/{file_id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "file_damaged")
    assert not (gateway.gateway.settings.files_dir / file_id).exists()


async def test_without_the_bucket_no_file_is_listed_that_is_not_there(gateway: ObjectGateway, way: Door) -> None:
    warm = await upload(gateway)
    listed = (await gateway.http.get("/v1/files")).json()["data"]
    way.shut()
    try:
        answer = await gateway.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t", LINE)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert (await gateway.http.get(f"/v1/files/{warm}/content")).content == LINE
        assert (await gateway.http.get("/v1/files")).json()["data"] == listed
    finally:
        way.open()
        gateway.copies.cache._away_until = 0
    assert list((gateway.gateway.settings.files_dir / ".incoming").iterdir()) == []
