"""The client against a real S3 server and a directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.config import Settings, load_settings
from service.errors import SettingsError, StoreRefused, StoreUnavailable
from service.objects.client import PART_BYTES, NoSuchObject, ObjectStore, StoredObject, open_object_store
from service.objects.content import refuse_unusable_store
from tests.support.s3 import Door


def test_a_second_conditional_create_is_refused_and_changes_nothing(objects: ObjectStore) -> None:
    assert objects.create("a/config", b"first")
    assert not objects.create("a/config", b"second")
    assert objects.read("a/config", 100) == b"first"
    assert objects.read("a/config", 3) == b"fir"


def test_a_large_file_goes_up_and_down_in_parts(objects: ObjectStore, tmp_path: Path) -> None:
    path, content = tmp_path / "weights", bytes(range(256)) * ((2 * PART_BYTES + 4096) // 256)
    path.write_bytes(content)
    objects.upload("a/weights", path)
    parts = list(objects.chunks(objects.stat("a/weights")))
    assert [len(part) for part in parts] == [PART_BYTES, PART_BYTES, 4096]
    assert b"".join(parts) == content


def test_what_is_not_there_is_said_to_be_missing(objects: ObjectStore) -> None:
    gone = StoredObject("a/nothing", 10, 0.0)
    for ask in (
        lambda: objects.stat(gone.name),
        lambda: objects.read(gone.name, 10),
        lambda: list(objects.chunks(gone)),
    ):
        with pytest.raises(NoSuchObject):
            ask()
    objects.delete(["a/nothing"])


def test_a_list_has_sizes_and_ages_and_no_neighbours(objects: ObjectStore) -> None:
    before = time.time()
    for name in ("a/x/1", "a/x/2", "ab/3"):
        objects.create(name, b"12345")
    found = sorted(objects.list("a"), key=lambda each: each.name)
    assert [(each.name, each.bytes) for each in found] == [("a/x/1", 5), ("a/x/2", 5)]
    assert all(before - 2 <= each.modified_at <= time.time() + 2 for each in found)
    objects.delete(each.name for each in found)
    assert list(objects.list("a")) == []


def test_an_empty_object_has_no_parts(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    objects.upload("a/empty", tmp_path / "empty")
    assert list(objects.chunks(objects.stat("a/empty"))) == []


def test_a_store_that_is_away_is_unavailable_within_seconds(bucket_url: str, door: Door, tmp_path: Path) -> None:
    objects = ObjectStore(bucket_url, allow_http=True)
    objects.create("a", b"1")
    door.shut()
    path = tmp_path / "file"
    path.write_bytes(b"1")
    began = time.monotonic()
    for ask in (
        lambda: objects.stat("a"),
        lambda: objects.create("b", b"1"),
        lambda: objects.upload("c", path),
        lambda: list(objects.list("a")),
        objects.check,
    ):
        with pytest.raises(StoreUnavailable) as caught:
            ask()
        assert not isinstance(caught.value, StoreRefused)
        assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
        assert "retry-after" in caught.value.headers
    assert time.monotonic() - began < 30
    door.open()
    assert objects.read("a", 10) == b"1"


def settings(home: Path, url: str) -> Settings:
    return load_settings(home=home, store_url=url)


@pytest.mark.parametrize("mistake", ["no bucket", "no credentials", "plain http"])
def test_a_store_that_refuses_ends_the_start(
    mistake: str, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_unusable_store(settings(tmp_path, bucket_url))
    if mistake == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    elif mistake == "plain http":
        monkeypatch.delenv("AWS_ALLOW_HTTP")
    url = "s3://another-bucket" if mistake == "no bucket" else bucket_url
    with pytest.raises(SettingsError, match="HATRACK_STORE_URL"):
        refuse_unusable_store(settings(tmp_path, url))


def test_a_store_that_is_away_does_not_end_the_start(bucket_url: str, door: Door, tmp_path: Path) -> None:
    door.shut()
    refuse_unusable_store(settings(tmp_path, bucket_url))


def test_a_directory_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="HATRACK_STORE_URL"):
        open_object_store(settings(tmp_path, f"file://{tmp_path}/nowhere"))


@pytest.mark.parametrize(
    "url", ["s3://", "https://host/bucket", "file://host/dir", "file:///", "s3://key:secret@bucket", "s3://b?x=1", "x"]
)
def test_other_urls_are_refused_by_the_settings(url: str) -> None:
    with pytest.raises(SettingsError, match="HATRACK_STORE_URL"):
        load_settings(store_url=url)
