"""Turns a worker's exception into the run's `error`: a code and what to do about it."""

from __future__ import annotations

import errno
from typing import Final

from adapters.errors import AdapterError
from trainer.errors import AnswerRefused, DataError, GatewayRefused, InvalidHyperparameter, TrainerError
from trainer.runs.protocol import Failure

KEY_UNKNOWN: Final = 401
DISK_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
OUT_OF_MEMORY_TEXTS: Final = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""Fragments of torch's RuntimeError when host memory runs out: torch has no exception type for that."""
DISK_FULL: Final = Failure(
    code="disk_full", message="The trainer's disk is full. Free some space and start the job again."
)


def is_full(error: OSError) -> bool:
    """Whether the disk, or this user's quota on it, is full."""
    return error.errno in DISK_FULL_ERRNOS


def explain(error: Exception) -> Failure:
    """The `error` of a run that failed with this exception."""
    if isinstance(error, DataError):
        return Failure(code=f"invalid_{error.param}", message=error.message, param=error.param)
    if isinstance(error, InvalidHyperparameter):
        return Failure(code=error.code, message=error.message, param=f"hyperparameters.{error.param}")
    if isinstance(error, (GatewayRefused, AnswerRefused)) and error.status == KEY_UNKNOWN:
        revoked = (
            "The job's key is no longer valid because its creator's key was revoked. Create the job with another key."
        )
        return Failure(code="key_revoked", message=revoked)
    if isinstance(error, (TrainerError, AdapterError)):
        return Failure(code=error.code, message=error.message)
    if _is_memory(error):
        return Failure(
            code="out_of_memory", message="The worker ran out of memory. Use a smaller max_length or lora_rank."
        )
    if isinstance(error, OSError) and is_full(error):
        return DISK_FULL
    failed = f"The worker failed ({type(error).__name__}); see worker.log in the job's directory."
    return Failure(code="internal_error", message=failed)


def _is_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_torch_oom = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
    return is_torch_oom or isinstance(error, MemoryError)
