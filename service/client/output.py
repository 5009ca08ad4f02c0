"""Files that the client writes on this machine: the check before the work, and the errors of the writing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.client.wire import ClientError

NOT_WRITABLE: Final = "not_writable"
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def check_writable(target: Path, *, replaces: bool = False) -> None:
    """Fail before the work whose result will be written to ``target``, not after it.

    Args:
        replaces: It will be written beside it and renamed, which needs its directory; otherwise a file or device that
            is there and writable will do.

    Raises:
        ClientError: `not_writable`: ``target`` is a directory, or no file can be made in its directory.
    """
    parent = target.absolute().parent
    if not replaces and not target.is_dir() and os.access(target, os.W_OK):
        return
    if target.is_dir():
        reason = "it is a directory; name a file"
    elif not parent.is_dir():
        reason = f"{parent} is not a directory; create it, or name another file"
    elif not os.access(parent, os.W_OK | os.X_OK):
        reason = f"the directory {parent} is not writable; name another file"
    else:
        return
    raise ClientError(0, NOT_WRITABLE, f"{target} cannot be written: {reason}.")


@contextmanager
def writing(target: Path | str, note: str = "") -> Iterator[None]:
    """Turn the OSErrors of a block that writes ``target`` into ClientErrors.

    Args:
        note: A sentence that follows the message: what is left, or what to do next.

    Raises:
        ClientError: `disk_full` or `not_writable`.
    """
    try:
        yield
    except OSError as error:
        raise not_written(target, error, note) from error


def not_written(target: Path | str, error: OSError, note: str = "") -> ClientError:
    """The ClientError for a file or directory that could not be written."""
    if error.errno in NO_ROOM:
        code, message = "disk_full", f"The disk of {target} is full."
    else:
        code, message = NOT_WRITABLE, f"{target} cannot be written: {error.strerror or error}."
    return ClientError(0, code, f"{message} {note}".rstrip())
