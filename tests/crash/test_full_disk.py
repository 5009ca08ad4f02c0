"""A disk that is full at each write: a short form of `python -m loadtests.full_disk`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loadtests.full_disk.__main__ import full_disk

LEVELS = (0, 16384, 65536, 98304)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_each_write_on_a_full_disk_is_507_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    result = full_disk(tmp_path, LEVELS)
    assert result.sound, result.report()
    statuses = {answer.rpartition(" ")[2] for answer in result.answers}
    assert statuses == {"200", "507"}, result.report()
