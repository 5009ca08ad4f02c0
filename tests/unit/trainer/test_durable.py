from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trainer.durable import publish, replaced_directory


def test_the_new_directory_takes_the_olds_place(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "voice"
    for text in ("one", "two"):
        with replaced_directory(target) as directory:
            (directory / "file").write_text(text)
            assert directory != target
        assert (target / "file").read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["voice"]


def test_an_exception_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "voice"
    with replaced_directory(target) as directory:
        (directory / "file").write_text("old")

    def interrupted() -> None:
        with replaced_directory(target) as directory:
            (directory / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]
    assert (target / "file").read_text() == "old"


def test_what_a_crash_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".voice.partial").mkdir()
    (tmp_path / ".voice.partial" / "half").touch()
    with replaced_directory(tmp_path / "voice") as directory:
        (directory / "file").touch()
    assert [path.name for path in (tmp_path / "voice").iterdir()] == ["file"]


def test_publish_never_replaces_anything(tmp_path: Path) -> None:
    partial, target = tmp_path / "partial", tmp_path / "target"
    partial.mkdir()
    target.mkdir()
    (target / "file").touch()
    with pytest.raises(OSError) as refused:  # noqa: PT011 (the number says which; it depends on the file system)
        publish(partial, target)
    assert refused.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert partial.exists()
    assert (target / "file").exists()
    (target / "file").unlink()
    publish(partial, target)
    assert not partial.exists()
