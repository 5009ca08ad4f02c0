"""Atomic, durable writes: to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that replaces `target` when the block ends without an exception.

    An existing `target` is renamed first and deleted last. A crash between the two renames leaves no `target`, but
    never a partial one. The caller must hold a lock against concurrent writers.
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
    """Yield an empty file that replaces `target` when the block ends without an exception.

    On failure the partial file is removed, so that it does not take up space on a full disk.
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
    """Atomically replace a text file. Raises OSError, in which case the previous file is unchanged."""
    with replaced_file(target) as file:
        file.write(content.encode())


def publish(partial: Path, target: Path) -> None:
    """Flush `partial` to disk and rename it to `target`, which must not exist or must be an empty directory."""
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
