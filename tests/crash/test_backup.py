"""kill -9 at random moments of a backup and of a restore: never a file that looks whole and is not, nor such a home."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli.run import unusable_data
from service.storage.archive import check_members, read_manifest
from service.storage.backup import make_backup
from service.storage.restore import restore
from tests.support.adapters import make_base
from tests.unit.service.storage.storage_home import StorageHome, in_child, make_home
from tests.unit.service.storage.test_backup import QUIET

MOMENTS = 100


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> StorageHome:
    directory = tmp_path_factory.mktemp("killed")
    return make_home(directory / "home", make_base(directory / "base"))


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes on this machine, as it is now."""
    start = time.monotonic()
    assert in_child(work, OSError) == 0
    return time.monotonic() - start


def killed_after(work: Callable[[], object], seconds: float) -> bool:
    """Whether the process that did it was killed before its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_backup_that_is_killed_at_any_moment_is_not_there_or_whole(home: StorageHome, tmp_path: Path) -> None:
    chance = random.Random(18)
    whole_s = seconds_of(lambda: make_backup(home.settings, tmp_path / "measured.tar", QUIET))
    killed = 0
    for number in range(MOMENTS):
        target = tmp_path / f"{number}.tar"
        killed += killed_after(lambda to=target: make_backup(home.settings, to, QUIET), chance.uniform(0, whole_s))
        if target.exists():
            check_members(target, read_manifest(target), QUIET)
            target.unlink()
    assert killed > MOMENTS / 4
    make_backup(home.settings, tmp_path / "0.tar", QUIET)


def test_a_home_whose_restore_is_killed_at_any_moment_is_unusable_or_whole(home: StorageHome, tmp_path: Path) -> None:
    chance = random.Random(19)
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET).path
    complete = home.at(tmp_path / "complete")
    whole_s = seconds_of(lambda: restore(complete.settings, backup, QUIET))
    expected, killed = complete.content(), 0
    target = home.at(tmp_path / "target")
    for _ in range(MOMENTS):
        killed += killed_after(lambda: restore(target.settings, backup, QUIET), chance.uniform(0, whole_s))
        if unusable_data(target.settings) == [] and any(target.path.glob("*")):
            assert target.content() == expected
            shutil.rmtree(target.path)
    assert killed > MOMENTS / 4
    if not (target.path / "hatrack.db").exists() or unusable_data(target.settings):
        restore(target.settings, backup, QUIET)
    assert target.content() == expected
