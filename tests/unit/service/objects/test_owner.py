"""A prefix of an object store belongs to one installation: the first to use it, or who takes it over."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.config import Settings
from service.errors import SettingsError
from service.objects.client import ObjectStore
from service.objects.content import refuse_unusable_store
from service.objects.marker import MARKER
from service.objects.owner import ID_FILE, OBJECT, claim, installation_id, owner_of, take_over


def test_the_first_installation_has_it_and_others_are_refused(objects: ObjectStore, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert owner_of(objects) is None
    claim(objects, ours)
    claim(objects, ours)
    owner = owner_of(objects)
    assert owner is not None
    assert (owner.installation, owner.home) == (installation_id(ours), str(ours))
    with pytest.raises(SettingsError, match=rf"belongs to the installation in {ours} on .*move-store --take-over"):
        claim(objects, theirs)
    assert owner_of(objects) == owner

    take_over(objects, theirs)
    claim(objects, theirs)
    with pytest.raises(SettingsError, match=f"belongs to the installation in {theirs}"):
        claim(objects, ours)


def test_of_many_at_once_one_has_it(objects: ObjectStore, tmp_path: Path) -> None:
    def attempt(number: int) -> bool:
        try:
            claim(objects, tmp_path / str(number))
        except SettingsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(8))) == 1


def test_an_owner_that_cannot_be_read_is_nobody_elses_to_replace(objects: ObjectStore, tmp_path: Path) -> None:
    objects.replace(OBJECT, b"{}")
    with pytest.raises(SettingsError, match=r"owner\.json in the object store .* cannot be read"):
        claim(objects, tmp_path)
    take_over(objects, tmp_path)
    claim(objects, tmp_path)


def test_a_claim_whose_answer_was_lost_is_found_to_be_ours(objects: ObjectStore, tmp_path: Path) -> None:
    """The id is on the disk before the object is written."""
    (tmp_path / ID_FILE).write_text("0123456789abcdef\n")
    owner = {"installation": "0123456789abcdef", "host": "h", "home": "/elsewhere", "since": 1}
    objects.replace(OBJECT, json.dumps(owner).encode())
    claim(objects, tmp_path)


def test_a_second_gateway_does_not_start_and_its_home_is_as_it_was(store_url: str, tmp_path: Path) -> None:
    def start(home: str) -> None:
        refuse_unusable_store(Settings(home=tmp_path / home, store_url=store_url, engine_device="cpu"))

    start("first")
    start("first")
    with pytest.raises(SettingsError, match="belongs to the installation in"):
        start("second")
    assert not (tmp_path / "second" / MARKER).exists(), "it is not held to a store that it does not have"


def test_a_home_whose_content_is_not_there_takes_nothing(objects: ObjectStore, store_url: str, tmp_path: Path) -> None:
    (tmp_path / "home" / "files").mkdir(parents=True)
    (tmp_path / "home" / "files" / "file-1").write_text("x")
    with pytest.raises(SettingsError, match="hatrack move-store"):
        refuse_unusable_store(Settings(home=tmp_path / "home", store_url=store_url, engine_device="cpu"))
    assert owner_of(objects) is None
