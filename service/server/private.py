"""Everything under the home is for its owner alone: what is written from now on, and what an older gateway has left."""

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
    """Make the home where there is none, and take every right that others have under it.

    From now on this process, and those that it starts, create files and directories for their owner alone. Symbolic
    links are not followed, and a file that has other names too (hard links) is left as it is: the home's own mode keeps
    others out.

    Returns:
        How many files and directories were open to others.
    """
    os.umask(UMASK)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    changed = sum(_tighten(path) for path in _below(home.resolve()))
    if changed:
        _LOG.info("took the rights of others to files under the home", extra={"files": changed})
    return changed


def _below(top: Path) -> Iterator[str]:
    """The directory and all in it, the outer before the inner."""
    left = [str(top)]
    while left:
        path = left.pop()
        yield path
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        yield entry.path
        except OSError as error:  # it went away meanwhile, or belongs to somebody else
            _LOG.debug("a directory under the home cannot be read", extra={"path": path, "reason": error.strerror})


def _tighten(path: str) -> bool:
    try:
        found = os.lstat(path)
        others = found.st_mode & OTHERS
        shared = S_ISREG(found.st_mode) and found.st_nlink > 1
        if not others or shared or S_ISLNK(found.st_mode):
            return False
        kept = 0o7700 if S_ISDIR(found.st_mode) else 0o700
        Path(path).chmod(found.st_mode & kept)
    except FileNotFoundError:
        return False
    except OSError as error:
        _LOG.warning("others have rights to a file under the home", extra={"path": path, "reason": error.strerror})
        return False
    return True
