"""Adapters in an object store: which exist, which copies are taken over, and what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapters.base import BaseDescription
from adapters.errors import Damaged
from adapters.manifest import Manifest
from adapters.store import CONFIG_FILE, WEIGHTS_FILE, Store, digest_of
from service.errors import Conflict, DiskFull
from service.objects.adapters import FOLDER, StoredAdapters, complete_digests, object_names
from service.objects.cache import LocalCache
from service.objects.client import ObjectStore
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    return describe_base(make_base(tmp_path_factory.mktemp("base")), served_name="tiny")


@pytest.fixture
def files(tmp_path: Path, base: BaseDescription) -> Callable[[int], AdapterFiles]:
    return lambda seed: make_adapter(tmp_path / f"adapter-{seed}", base, seed=seed)


@pytest.fixture
async def open_at(objects: ObjectStore) -> AsyncIterator[Callable[[Path], StoredAdapters]]:
    """Opens the same object store from the home of one gateway or another."""
    caches = []

    def make(home: Path) -> StoredAdapters:
        home.mkdir(exist_ok=True)
        caches.append(LocalCache(1 << 30))
        return StoredAdapters(Store(home / "adapters"), objects, caches[-1])

    yield make
    for cache in caches:
        cache._threads.shutdown()


async def commit(adapters: StoredAdapters, files: AdapterFiles) -> str:
    manifest = Manifest.parse(files.config, max_rank=64)
    with adapters.store.stage() as staging:
        staging.weights.write(files.weights)
        digest = digest_of(manifest.canonical(), staging.weights.sha256)
        await adapters.commit(staging, manifest)
    return digest


async def test_another_gateway_brings_what_one_has_committed(
    open_at: Callable[[Path], StoredAdapters], files: Callable[[int], AdapterFiles], tmp_path: Path
) -> None:
    first, second = open_at(tmp_path / "first"), open_at(tmp_path / "second")
    digest = await commit(first, files(1))
    assert await second.digests() == {digest}
    async with second.held(digest, None):
        second.store.verify(digest)
        assert (second.store.path(digest) / WEIGHTS_FILE).read_bytes() == files(1).weights
    with pytest.raises(Conflict) as caught:
        await second.path("0" * 64)
    assert caught.value.code == "version_damaged"
    assert second.is_lost("0" * 64)


async def test_an_object_that_the_disk_has_no_room_for_is_not_fetched(
    files: Callable[[int], AdapterFiles], tmp_path: Path
) -> None:
    """Whoever can write to the bucket must not be able to fill the disk, which has the databases, too."""
    (tmp_path / "objects").mkdir()
    objects, cache = ObjectStore(f"file://{tmp_path / 'objects'}"), LocalCache(1 << 30)
    first = StoredAdapters(Store(tmp_path / "first"), objects, cache)
    digest = await commit(first, files(1))
    os.truncate(tmp_path / "objects" / object_names(digest)[1], 1 << 43)
    second = StoredAdapters(Store(tmp_path / "second"), objects, cache)
    with pytest.raises(DiskFull, match="no room for adapters/"):
        await second.path(digest)
    assert list((tmp_path / "second").rglob("*.safetensors")) == []
    cache._threads.shutdown()


async def test_a_restart_takes_over_sound_copies_and_removes_others(
    open_at: Callable[[Path], StoredAdapters], files: Callable[[int], AdapterFiles], tmp_path: Path
) -> None:
    first = open_at(tmp_path / "home")
    sound, damaged = await commit(first, files(1)), await commit(first, files(2))
    (first.store.path(damaged) / WEIGHTS_FILE).write_bytes(b"short")
    again = open_at(tmp_path / "home")
    await again.open()
    assert again.store.digests() == [sound]
    assert again.copies is not None
    assert again.copies.size(sound) == sum(
        (again.store.path(sound) / n).stat().st_size for n in (CONFIG_FILE, WEIGHTS_FILE)
    )
    async with again.held(damaged):
        again.store.verify(damaged)


async def test_a_damaged_copy_is_replaced_when_it_is_looked_at_again(
    open_at: Callable[[Path], StoredAdapters], files: Callable[[int], AdapterFiles], tmp_path: Path
) -> None:
    adapters = open_at(tmp_path / "home")
    digest = await commit(adapters, files(1))
    path = adapters.store.path(digest) / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    await adapters.recheck(digest)
    async with adapters.held(digest):
        adapters.store.verify(digest)


def test_what_comes_for_a_digest_must_have_it(tmp_path: Path, files: Callable[[int], AdapterFiles]) -> None:
    store, config = Store(tmp_path / "adapters"), Manifest.parse(files(1).config, max_rank=64).canonical()
    with store.stage() as staging:
        staging.weights.write(files(1).weights)
        with pytest.raises(Damaged):
            staging.publish(config, "0" * 64)
    assert store.digests() == []
    assert list((store.root / ".staging").iterdir()) == []


KILLED: str = """
import os, signal, sys
from pathlib import Path
from service.objects import adapters
from service.objects.client import ObjectStore

objects = ObjectStore(sys.argv[1], allow_http=True)
objects.create = lambda name, data: os.kill(os.getpid(), signal.SIGKILL)
adapters.put_adapter(objects, "a" * 64, b"{}", Path(sys.argv[2]))
"""


async def test_a_kill_between_weights_and_config_leaves_nothing_that_anybody_sees(
    open_at: Callable[[Path], StoredAdapters], objects: ObjectStore, store_url: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"w" * 1000)
    command = [sys.executable, "-c", KILLED, store_url, str(weights)]
    process = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[4])
    assert await process.wait() == -signal.SIGKILL
    assert {each.name for each in objects.list(FOLDER)} == {object_names("a" * 64)[1]}
    assert complete_digests(objects.list(FOLDER)) == {}
    adapters = open_at(tmp_path / "home")
    assert await adapters.digests() == set()
    with pytest.raises(Conflict):
        await adapters.path("a" * 64)
