"""Backup, restore, gc and the move of a home whose adapters and files are, or shall be, in an object store."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.store import WEIGHTS_FILE
from service.cli.main import app
from service.config import Settings
from service.errors import SettingsError
from service.objects.adapters import object_names, put_adapter
from service.objects.client import ObjectStore, StoredObject
from service.objects.content import objects_for, refuse_unusable_store
from service.objects.marker import mark, marked_url
from service.objects.owner import claim
from service.storage import GRACE_S
from service.storage.backup import make_backup
from service.storage.errors import BackupError
from service.storage.garbage import find_garbage, remove_garbage
from service.storage.move_store import move_content
from service.storage.objects import remove_if_older
from service.storage.restore import restore
from tests.unit.service.storage.storage_home import FILE, StorageHome
from tests.unit.service.storage.test_backup import QUIET

UNNAMED = "f" * 64
OLD = 2 * GRACE_S


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that is the object store."""
    path = tmp_path / "objects"
    path.mkdir()
    return path


@pytest.fixture
def objects(root: Path) -> ObjectStore:
    return ObjectStore(f"file://{root}")


@pytest.fixture
def moving(home: StorageHome, root: Path) -> StorageHome:
    """The home's content is in its folders, and the settings name the store."""
    home.settings = home.settings.model_copy(update={"store_url": f"file://{root}"})
    return home


@pytest.fixture
def moved(moving: StorageHome) -> StorageHome:
    move_content(moving.settings, QUIET)
    return moving


def names(home: StorageHome) -> set[str]:
    return {*object_names(home.digest), f"files/{FILE}"}


def stored(objects: ObjectStore) -> set[str]:
    return {each.name for folder in ("adapters", "files") for each in objects.list(folder)}


def put(root: Path, name: str, age_s: float = OLD) -> None:
    """An object that was last written so many seconds ago."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 100)
    os.utime(path, (time.time() - age_s,) * 2)


# moving


def test_all_that_the_database_names_is_copied_and_the_home_is_held_to_the_store(
    moving: StorageHome, objects: ObjectStore
) -> None:
    with pytest.raises(Exception, match="move-store"):
        objects_for(moving.settings)
    done = move_content(moving.settings, QUIET)
    assert (done.adapters, done.files, done.copied) == (1, 1, 2)
    assert stored(objects) == names(moving)
    weights = moving.settings.store_dir / moving.digest / WEIGHTS_FILE
    assert objects.read(object_names(moving.digest)[1], 10**8) == weights.read_bytes()
    assert marked_url(moving.path) == objects.url
    assert objects_for(moving.settings) is not None
    with pytest.raises(BackupError, match="there already"):
        move_content(moving.settings, QUIET)


@pytest.mark.parametrize("which", ["adapter", "file", "missing"])
def test_what_is_damaged_is_named_and_nothing_is_half_moved(
    which: str, moving: StorageHome, objects: ObjectStore
) -> None:
    weights = moving.settings.store_dir / moving.digest / WEIGHTS_FILE
    path = moving.settings.files_dir / FILE if which == "file" else weights
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    if which == "missing":
        path.unlink()
    with pytest.raises(BackupError, match=FILE if which == "file" else moving.digest):
        move_content(moving.settings, QUIET)
    assert marked_url(moving.path) is None
    path.write_bytes(whole)
    done = move_content(moving.settings, QUIET)
    assert done.copied == 1, "the other one was there already"
    assert stored(objects) == names(moving)


def test_a_move_needs_a_store_that_answers(home: StorageHome, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="HATRACK_STORE_URL is not set"):
        move_content(home.settings, QUIET)
    nowhere = home.settings.model_copy(update={"store_url": f"file://{tmp_path}/nowhere"})
    with pytest.raises(BackupError, match="HATRACK_STORE_URL"):
        move_content(nowhere, QUIET)


def test_the_command_moves_and_says_what(
    moving: StorageHome, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_HOME", str(moving.path))
    monkeypatch.setenv("HATRACK_STORE_URL", objects.url)
    result = CliRunner().invoke(app, ["move-store", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["copied"] == 2
    again = CliRunner().invoke(app, ["move-store"])
    assert again.exit_code == 1
    assert "there already" in again.output


# gc


def test_objects_that_nothing_names_go_once_they_are_old(moved: StorageHome, root: Path, objects: ObjectStore) -> None:
    for name in object_names(UNNAMED):
        put(root, name)
    put(root, object_names("e" * 64)[1])  # a push that was killed before its config
    put(root, "files/file-unlisted")
    put(root, object_names("d" * 64)[1], age_s=60)  # one that goes on
    put(root, "files/file-coming", age_s=60)
    put(root, "elsewhere/thing")
    young = {object_names("d" * 64)[1], "files/file-coming"}
    found = find_garbage(moved.settings)
    assert sorted((each.kind, each.bytes, each.later) for each in found) == [
        ("adapter", 100, None),
        ("adapter", 200, None),
        ("file", 100, None),
    ]
    assert remove_garbage(moved.settings, removed=lambda _: None, shown=found[:1]) > 0
    assert remove_garbage(moved.settings, removed=lambda _: None) > 0
    assert stored(objects) == names(moved) | young
    assert (root / "elsewhere" / "thing").exists()


def test_an_adapter_that_is_pushed_again_meanwhile_stays(root: Path, objects: ObjectStore) -> None:
    config, weights = object_names(UNNAMED)
    put(root, weights)
    put(root, config, age_s=0)
    assert not remove_if_older(objects, [config, weights], time.time() - GRACE_S)
    assert stored(objects) == {config, weights}
    put(root, config)
    assert remove_if_older(objects, [config, weights], time.time() - GRACE_S)
    assert stored(objects) == set()


@pytest.mark.parametrize("looks", [1, 2, 3, 4])
def test_a_push_of_what_a_collection_is_about_to_take_leaves_all_of_it(
    root: Path, objects: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """The push's weights arrive after a number of the collection's looks, and its config once that has ended."""
    names = object_names(UNNAMED)
    for name in names:
        put(root, name)
    weights, looked, uploaded = tmp_path / "weights", [], []
    stat, upload = objects.stat, objects.upload
    weights.write_bytes(b"w" * 1000)

    def stat_before_a_push(name: str) -> StoredObject:
        described = stat(name)
        looked.append(name)
        if len(looked) == looks:
            upload(names[1], weights)
        return described

    def upload_but_for_the_first(name: str, path: Path) -> None:
        if uploaded:
            upload(name, path)
        uploaded.append(name)

    monkeypatch.setattr(objects, "stat", stat_before_a_push)
    remove_if_older(objects, names, time.time() - GRACE_S)
    assert len(looked) >= looks
    monkeypatch.setattr(objects, "stat", stat)
    monkeypatch.setattr(objects, "upload", upload_but_for_the_first)
    put_adapter(objects, UNNAMED, b"{}", weights)
    assert stored(objects) == set(names)
    assert stat(names[1]).bytes == 1000


def test_a_push_writes_again_what_a_collection_has_taken_meanwhile(
    objects: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, weights, create = object_names(UNNAMED), tmp_path / "weights", objects.create
    weights.write_bytes(b"w" * 1000)

    def create_before_a_collection(name: str, data: bytes) -> bool:
        monkeypatch.setattr(objects, "create", create)
        create(name, data)
        objects.delete(names)
        return True

    monkeypatch.setattr(objects, "create", create_before_a_collection)
    put_adapter(objects, UNNAMED, b"{}", weights)
    assert stored(objects) == set(names)


def test_local_copies_are_not_garbage(moved: StorageHome) -> None:
    shutil.copytree(moved.settings.store_dir / moved.digest, moved.settings.store_dir / UNNAMED)
    (moved.settings.files_dir / "file-unlisted").write_bytes(b"x")
    assert {each.kind for each in find_garbage(moved.settings, grace_s=-60)} == {"batch"}


def test_gc_shows_objects(moved: StorageHome, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "files/file-unlisted")
    monkeypatch.setenv("HATRACK_HOME", str(moved.path))
    monkeypatch.setenv("HATRACK_STORE_URL", f"file://{root}")
    assert "files/file-unlisted (object store)" in CliRunner().invoke(app, ["gc", "--dry-run"]).stdout
    answer = json.loads(CliRunner().invoke(app, ["gc", "--yes", "--json"]).stdout)
    assert [(each["objects"], each["removed"]) for each in answer["garbage"]] == [(["files/file-unlisted"], True)]
    assert not (root / "files/file-unlisted").exists()


# backup and restore


def test_a_backup_has_no_content_and_says_what_the_store_misses(
    moved: StorageHome, objects: ObjectStore, tmp_path: Path
) -> None:
    manifest = make_backup(moved.settings, tmp_path / "a.tar", QUIET).manifest
    members = {member.path for member in manifest.members}
    assert (manifest.outside, manifest.store_url, manifest.faults) == (("store_url",), objects.url, ())
    assert "hatrack.db" in members
    assert not any(name.startswith(("adapters/", "files/")) for name in members)
    objects.delete([f"files/{FILE}"])
    manifest = make_backup(moved.settings, tmp_path / "b.tar", QUIET).manifest
    assert manifest.faults == (f"files/{FILE} is missing in the object store",)


def test_a_restored_home_is_held_to_the_store_and_told_what_it_misses(
    moved: StorageHome, objects: ObjectStore, tmp_path: Path
) -> None:
    make_backup(moved.settings, tmp_path / "a.tar", QUIET)
    here = moved.at(tmp_path / "here")
    assert not any("missing" in note for note in restore(here.settings, tmp_path / "a.tar", QUIET).notes)
    assert objects_for(here.settings) is not None
    config = object_names(moved.digest)[0]
    objects.delete([config])
    there = moved.at(tmp_path / "there")
    notes = restore(there.settings, tmp_path / "a.tar", QUIET).notes
    assert f"{config} is missing in the object store" in notes
    without = moved.at(tmp_path / "without")
    without.settings = without.settings.model_copy(update={"store_url": None})
    notes = restore(without.settings, tmp_path / "a.tar", QUIET).notes
    assert any("set HATRACK_STORE_URL to it" in note for note in notes)
    with pytest.raises(Exception, match="set HATRACK_STORE_URL"):
        objects_for(without.settings)


def test_a_local_backup_is_moved_after_it_is_restored(home: StorageHome, root: Path, tmp_path: Path) -> None:
    make_backup(home.settings, tmp_path / "a.tar", QUIET)
    there = home.at(tmp_path / "there")
    there.settings = there.settings.model_copy(update={"store_url": f"file://{root}"})
    assert any("move-store" in note for note in restore(there.settings, tmp_path / "a.tar", QUIET).notes)
    assert move_content(there.settings, QUIET).copied == 2


# whose it is


@pytest.fixture
def stranger(moved: StorageHome, tmp_path: Path) -> Settings:
    """Another installation with the same database, whose settings name the store of the first."""
    home = tmp_path / "stranger"
    home.mkdir()
    shutil.copy(moved.path / "hatrack.db", home / "hatrack.db")
    return moved.settings.model_copy(update={"home": home})


def test_gc_removes_nothing_from_the_store_of_another_installation(
    moved: StorageHome, stranger: Settings, root: Path, objects: ObjectStore
) -> None:
    put(root, f"adapters/{UNNAMED}/adapter_config.json")
    with pytest.raises(BackupError, match="is not in the object store"):
        find_garbage(stranger)
    mark(stranger.home, objects.url)
    for look in (find_garbage, lambda settings: remove_garbage(settings, removed=print)):
        with pytest.raises(BackupError, match=r"belongs to the installation in .*Nothing was removed"):
            look(stranger)
    assert len(find_garbage(moved.settings)) == 1


def test_a_home_takes_over_what_the_former_has_left(
    moved: StorageHome, stranger: Settings, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(stranger.home, objects.url)
    with pytest.raises(BackupError, match="there already"):
        move_content(stranger, QUIET)
    objects.delete([object_names(moved.digest)[1]])
    monkeypatch.setenv("HATRACK_HOME", str(stranger.home))
    monkeypatch.setenv("HATRACK_STORE_URL", objects.url)
    done = CliRunner().invoke(app, ["move-store", "--take-over"])
    assert done.exit_code == 0, done.output
    assert "is this installation's now. The database names 1 adapters and 1 files in it; 1 objects of it" in done.output
    assert find_garbage(stranger) == []
    with pytest.raises(BackupError, match="belongs to the installation in"):
        find_garbage(moved.settings)


def test_a_home_without_content_takes_over_too(stranger: Settings, objects: ObjectStore) -> None:
    with pytest.raises(SettingsError, match="belongs to the installation in"):
        refuse_unusable_store(stranger)
    assert move_content(stranger, QUIET, takes_over=True).missing == 0
    assert marked_url(stranger.home) == objects.url
    refuse_unusable_store(stranger)


def test_content_is_not_moved_into_the_store_of_another_installation(
    home: StorageHome, root: Path, objects: ObjectStore, tmp_path: Path
) -> None:
    claim(objects, tmp_path / "first")
    settings = home.settings.model_copy(update={"store_url": f"file://{root}"})
    with pytest.raises(BackupError, match="belongs to the installation in"):
        move_content(settings, QUIET)
    assert stored(objects) == set()
    done = move_content(settings, QUIET, takes_over=True)
    assert (done.copied, marked_url(home.path)) == (2, objects.url)
