"""What a worker's error says to whoever asked for the job."""

from __future__ import annotations

import errno
from typing import Final

from adapters.errors import AdapterError
from trainer.errors import AnswerRefused, DataError, GatewayRefused, TrainerError, WishRefused
from trainer.runs.protocol import Failure

KEY_UNKNOWN: Final = 401
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_MEMORY: Final = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""Words of torch's RuntimeError where the host's memory does not reach: it has no type of its own for that."""
DISK_FULL: Final = Failure(code="disk_full", message="The trainer's disk is full: make room and start the job again.")


def is_full(error: OSError) -> bool:
    """Whether the disk, or the share of it that this user may take, is full."""
    return error.errno in NO_ROOM


def explain(error: Exception) -> Failure:
    """What a job's `error` says: a code, and what to do about it."""
    if isinstance(error, DataError):
        return Failure(code=f"invalid_{error.param}", message=error.message, param=error.param)
    if isinstance(error, WishRefused):
        return Failure(code=error.code, message=error.message, param=f"hyperparameters.{error.param}")
    if isinstance(error, (GatewayRefused, AnswerRefused)) and error.status == KEY_UNKNOWN:
        revoked = "The job's key is no longer valid: the key of whoever made the job was revoked. Make it with another."
        return Failure(code="key_revoked", message=revoked)
    if isinstance(error, (TrainerError, AdapterError)):
        return Failure(code=error.code, message=error.message)
    if _is_memory(error):
        return Failure(
            code="out_of_memory", message="The memory did not reach: a smaller batch_size or max_length helps."
        )
    if isinstance(error, OSError) and is_full(error):
        return DISK_FULL
    failed = f"The worker failed ({type(error).__name__}); its log in the job's folder says why."
    return Failure(code="internal_error", message=failed)


def _is_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return told or isinstance(error, MemoryError)
