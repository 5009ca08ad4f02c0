"""Restricts the home to its owner: existing files, and those written from now on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Final

UMASK: Final = 0o077
OTHERS: Final = 0o077
_LOG = logging.getLogger("hatrack.home")


def keep_private(home: Path) -> int:
    """Create the home if needed, and remove all permissions of group and others under it.

    Sets the umask, so that this process and its children create files for their owner only. Symbolic links are not
    followed, and files with several hard links are left as they are: the home's own mode protects them.

    Returns:
        The number of files and directories whose permissions were changed.
    """
    os.umask(UMASK)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    changed = sum(_tighten(path) for path in _below(home.resolve()))
    if changed:
        _LOG.info("removed permissions of group and others from files under HATRACK_HOME", extra={"files": changed})
    return changed


def _below(top: Path) -> Iterator[str]:
    """The directory and everything in it, parents first."""
    pending = [str(top)]
    while pending:
        path = pending.pop()
        yield path
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        yield entry.path
        except OSError as error:  # it was removed meanwhile, or belongs to another user
            _LOG.debug("a directory under HATRACK_HOME cannot be read", extra={"path": path, "reason": error.strerror})


def _tighten(path: str) -> bool:
    try:
        stat = os.lstat(path)
        others = stat.st_mode & OTHERS
        shared = S_ISREG(stat.st_mode) and stat.st_nlink > 1
        if not others or shared or S_ISLNK(stat.st_mode):
            return False
        mask = 0o7700 if S_ISDIR(stat.st_mode) else 0o700
        Path(path).chmod(stat.st_mode & mask)
    except FileNotFoundError:
        return False
    except OSError as error:
        _LOG.warning(
            "cannot remove the permissions of group and others from a file under HATRACK_HOME",
            extra={"path": path, "reason": error.strerror},
        )
        return False
    return True
