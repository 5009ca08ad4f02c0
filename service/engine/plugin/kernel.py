"""The update of a few rows by their own adapters, as one compiled loop.

numba is imported when the loop is compiled and not before: vLLM 0.32's worker looks through the attributes of every
module loaded so far for kernels to replace, and llvmlite's library object breaks that search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FLAGS = {"reassoc", "contract", "arcp"}
"""Sums may be reordered, so that they vectorise. Nothing may be assumed about NaN and infinity."""


def update_rows(x: Any, y: Any, slots: Any, ranks: Any, a: Any, b: Any, offset: int, scale: float) -> None:
    """``y[i, offset : offset + out] += scale * B[slot_i] A[slot_i] x[i]`` for each row i, in place.

    Args:
        x: [rows, in] float32.
        y: [rows, width] float32, changed in place.
        slots: [rows] int64, each row's slot.
        ranks: [slots] int64, the true rank in each slot; 0 leaves the row alone.
        a: [slots, max rank, in] float32.
        b: [slots, max rank, out] float32: B transposed.
        offset: First column of y that is updated.
        scale: Factor of the update.
    """
    inner = x.shape[1]
    outer = min(b.shape[2], y.shape[1] - offset)
    for row in range(x.shape[0]):
        slot = slots[row]
        for k in range(ranks[slot]):
            shrunk = np.float32(0)
            for j in range(inner):
                shrunk += x[row, j] * a[slot, k, j]
            shrunk *= scale
            for out in range(outer):
                y[row, offset + out] += shrunk * b[slot, k, out]


def compile_kernel() -> Callable[..., None]:
    """Compile :func:`update_rows`; takes a second or two, once for each wrapper."""
    import numba

    matrix = numba.float32[:, ::1]
    slots = numba.float32[:, :, ::1]
    numbers = numba.int64[::1]
    signature = numba.void(matrix, matrix, numbers, numbers, slots, slots, numba.int64, numba.float32)
    compiled: Callable[..., None] = numba.njit(signature, fastmath=FLAGS, nogil=True, error_model="numpy")(update_rows)
    return compiled
