"""Files that the client writes: what is refused before the work, and what the errors of writing become."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.client import ClientError
from service.client.output import check_writable, writing


def test_a_new_or_an_existing_file_can_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.jsonl")
    (tmp_path / "old.jsonl").touch()
    check_writable(tmp_path / "old.jsonl")


@pytest.mark.parametrize("target", ["nodir/x.jsonl", "file/x.jsonl", "folder"])
def test_what_cannot_become_a_file_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ClientError) as refused:
        check_writable(tmp_path / target)
    assert refused.value.code == "not_writable"
    assert str(tmp_path / target) in refused.value.message


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # as root, nothing else is refused
    with pytest.raises(ClientError, match="is not writable"):
        check_writable(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EROFS, "not_writable")]
)
def test_an_error_of_writing_becomes_the_clients(number: int, code: str) -> None:
    with pytest.raises(ClientError) as refused, writing("x.jsonl", "Try again."):
        raise OSError(number, os.strerror(number))
    assert (refused.value.code, refused.value.status) == (code, 0)
    assert "x.jsonl" in refused.value.message
    assert refused.value.message.endswith(". Try again.")


def test_a_device_and_a_file_in_a_foreign_directory_can_be_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "page.html"
    here.write_text("as it was")
    of_others = os.access
    monkeypatch.setattr("service.client.output.os.access", lambda path, mode: path == here and of_others(path, mode))
    check_writable(here)
    with pytest.raises(ClientError, match="is not writable"):
        check_writable(here, replaces=True)
    monkeypatch.undo()
    check_writable(Path(os.devnull))
