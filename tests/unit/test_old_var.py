"""The homes of earlier versions open, and everything in them is as it was; without an engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.config import Settings
from service.storage.archive import Manifest
from service.storage.backup import make_backup
from service.storage.restore import restore
from tests.support.old_var import OldVersion, missing, read_home, unpack, versions

NO_PRICE = ".hatrack.cost was 0.0 and is None"
"""Of a job without a price; the changelog says so: nothing is known of what it cost, and 0 was wrong."""

CHECKPOINT_NAME = ".fine_tuned_model_checkpoint was"
"""A checkpoint has the name by which it can be asked, once it is registered."""

FILES_OF_BATCHES = ".gateway.sees.widget./v1/files."
"""The key `widget` has the scope `infer` alone: it was refused all files, and now sees those of batches."""


@pytest.mark.parametrize("version", versions(), ids=lambda version: version.directory.name)
async def test_everything_in_an_old_home_is_answered_as_it_was(
    version: OldVersion, tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_ADMIN_KEY", "whoever-runs-the-tests-has-settings-of-his-own")
    monkeypatch.setenv("HATRACK_TRAINER_EVALUATE_MAX", "no number")
    home = unpack(version, tmp_path / "var", base_dir=base_dir, gateway="http://127.0.0.1:9")
    answers = await read_home(home, base_dir, version.facts)
    changed = missing(version.answers, answers)
    accepted = (NO_PRICE, CHECKPOINT_NAME, FILES_OF_BATCHES)
    assert [text for text in changed if not any(known in text for known in accepted)] == []


@pytest.mark.parametrize("version", versions(), ids=lambda version: version.directory.name)
async def test_an_old_home_goes_through_backup_restore_upgrade_and_both_again(
    version: OldVersion, tmp_path: Path, base_dir: Path
) -> None:
    """What is restored has the old schema; upgraded there, it answers as it was, and is backed up again."""

    def moved(source: Path, target: Path, archive: Path) -> Manifest:
        settings = Settings(home=source, base_model=str(base_dir), engine_device="cpu")
        manifest = make_backup(settings, archive, lambda *_: None).manifest
        restore(settings.model_copy(update={"home": target}), archive, lambda *_: None)
        return manifest

    old = unpack(version, tmp_path / "old", base_dir=base_dir, gateway="http://127.0.0.1:9")
    first = moved(old, tmp_path / "new", tmp_path / "old.tar")
    assert first.schemas["trainer/jobs.db"] is None, "a trainer before the first migration"
    assert (first.faults, first.reindexed) == ((), 0)
    shutil.rmtree(old)
    answers = await read_home(tmp_path / "new", base_dir, version.facts)
    accepted = (NO_PRICE, CHECKPOINT_NAME, FILES_OF_BATCHES)
    assert [text for text in missing(version.answers, answers) if not any(known in text for known in accepted)] == []

    second = moved(tmp_path / "new", tmp_path / "newer", tmp_path / "new.tar")
    assert int(second.schemas["hatrack.db"] or 0) > int(first.schemas["hatrack.db"] or 0)
    assert second.faults == ()
    named = {member.path: member.sha256 for member in first.members if member.path.startswith(("adapters/", "files/"))}
    assert named.items() <= {member.path: member.sha256 for member in second.members}.items()


def test_what_is_missing_is_named() -> None:
    old = {"data": [{"id": 1, "name": "a"}], "more": False}
    assert missing(old, old | {"new": 1}) == []
    assert missing(old, {"data": [{"id": 2}]}) == [".more is gone", ".data.0.name is gone", ".data.0.id was 1 and is 2"]
    assert missing(old, {"data": [], "more": False}) == [".data was [{'id': 1, 'name': 'a'}] and is []"]
