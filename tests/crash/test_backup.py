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

KILLS = 30
LATER, SOONER = 1.1, 0.8
"""How the longest wait changes after a process that was killed, or was not: the machine's speed changes, too."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> StorageHome:
    directory = tmp_path_factory.mktemp("killed")
    return make_home(directory / "home", make_base(directory / "base"))


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes on this machine, as it is now."""
    start = time.monotonic()
    assert in_child(work, OSError) == 0
    return time.monotonic() - start


class Killer:
    """Kills processes at random moments of their work, until `KILLS` of them have not come to their end.

    Args:
        seconds: How long the work took when it was measured.
    """

    def __init__(self, seconds: float) -> None:
        self._chance = random.Random(18)
        self._longest_s = seconds
        self.left = KILLS

    def kill(self, work: Callable[[], object]) -> None:
        """Do it in a process that is killed at some moment, if it lives that long."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        time.sleep(self._chance.uniform(0, self._longest_s))
        os.kill(child, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        self._longest_s *= LATER if killed else SOONER
        self.left -= killed


def test_a_backup_that_is_killed_at_any_moment_is_not_there_or_whole(home: StorageHome, tmp_path: Path) -> None:
    killer = Killer(seconds_of(lambda: make_backup(home.settings, tmp_path / "measured.tar", QUIET)))
    target = tmp_path / "b.tar"
    while killer.left:
        killer.kill(lambda: make_backup(home.settings, target, QUIET))
        if target.exists():
            check_members(target, read_manifest(target), QUIET)
            target.unlink()
    make_backup(home.settings, target, QUIET)


def test_a_home_whose_restore_is_killed_at_any_moment_is_unusable_or_whole(home: StorageHome, tmp_path: Path) -> None:
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET).path
    complete = home.at(tmp_path / "complete")
    killer = Killer(seconds_of(lambda: restore(complete.settings, backup, QUIET)))
    expected, target = complete.content(), home.at(tmp_path / "target")
    while killer.left:
        killer.kill(lambda: restore(target.settings, backup, QUIET))
        if unusable_data(target.settings) == [] and target.content():  # killed early, it holds a lock file alone
            assert target.content() == expected
            shutil.rmtree(target.path)
    if not (target.path / "hatrack.db").exists() or unusable_data(target.settings):
        restore(target.settings, backup, QUIET)
    assert target.content() == expected
