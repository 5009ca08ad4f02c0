"""What is either whole or absent: written beside its place, flushed, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """A fresh directory to write into, which takes `target`'s place when the block ends without an exception.

    An older `target` is moved aside first and deleted last; a crash between the two renames leaves none, never half of
    one. The caller holds whatever lock keeps two writers apart.
    """
    partial = target.with_name(f".{target.name}.partial")
    retired = target.with_name(f".{target.name}.retired")
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (partial, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        flush_tree(partial)
        if target.exists():
            target.rename(retired)
        partial.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def replaced_file(target: Path) -> Iterator[BinaryIO]:
    """A fresh file to write into, which takes `target`'s place when the block ends without an exception.

    Of one that cannot be written whole nothing is left: on a full disk that would be the room for the next one.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def replace_file(target: Path, content: str) -> None:
    """Write a text file, flushed to the disk, in one step. Raises OSError; the one before it is whole then."""
    with replaced_file(target) as file:
        file.write(content.encode())


def publish(partial: Path, target: Path) -> None:
    """Flush `partial` to the disk and rename it to `target`, which must not exist or be an empty directory."""
    flush_tree(partial)
    partial.rename(target)
    _flush(target.parent)


def flush_tree(root: Path) -> None:
    """fsync every file and directory under `root`, and `root` itself."""
    for directory, _, names in os.walk(root):
        for name in names:
            _flush(Path(directory, name))
        _flush(Path(directory))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
