"""Directories that are either whole or absent: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
