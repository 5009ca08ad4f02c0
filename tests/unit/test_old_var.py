"""The homes of earlier versions open, and everything in them is as it was; without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_what_is_missing_is_named() -> None:
    old = {"data": [{"id": 1, "name": "a"}], "more": False}
    assert missing(old, old | {"new": 1}) == []
    assert missing(old, {"data": [{"id": 2}]}) == [".more is gone", ".data.0.name is gone", ".data.0.id was 1 and is 2"]
    assert missing(old, {"data": [], "more": False}) == [".data was [{'id': 1, 'name': 'a'}] and is []"]
