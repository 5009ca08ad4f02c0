"""Turns operating system errors that torch and safetensors wrap in their own types back into OSError."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from safetensors import SafetensorError

_NUMBER: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def reraise_as_oserror() -> Iterator[None]:
    """Raise OSError if writing fails because of the operating system, for instance on a full disk.

    torch.save raises RuntimeError with the file's OSError as context, if the file is a Python file; safetensors raises
    SafetensorError with the errno in its text.
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
        match = _NUMBER.search(str(error))
        return int(match[1]) if match else None
    context: BaseException | None = error.__context__
    while context is not None:
        if isinstance(context, OSError):
            return context.errno
        context = context.__context__
    return None
