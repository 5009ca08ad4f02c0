"""Errors of the operating system that torch and safetensors tell in types of their own, as what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from safetensors import SafetensorError

_NUMBER: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def told_as_oserror() -> Iterator[None]:
    """Raise OSError where what is written fails for the operating system's sake, as with a full disk.

    torch.save raises RuntimeError after the file's OSError, if the file is one of Python's, and safetensors raises
    SafetensorError with the error's number in its text.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        number = _number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number)) from error


def _number(error: BaseException) -> int | None:
    if isinstance(error, SafetensorError):
        found = _NUMBER.search(str(error))
        return int(found[1]) if found else None
    before: BaseException | None = error.__context__
    while before is not None:
        if isinstance(before, OSError):
            return before.errno
        before = before.__context__
    return None
