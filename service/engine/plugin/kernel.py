"""The update of a few rows by their own adapters, as one compiled loop over a whole layer.

numba is imported when the loop is compiled and not before: vLLM 0.32's worker looks through the attributes of every
module loaded so far for kernels to replace, and llvmlite's library object breaks that search.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

FLAGS = {"reassoc", "contract", "arcp"}
"""Sums may be reordered, so that they vectorise. Nothing may be assumed about NaN and infinity."""


@cache
def compile_kernel(*, bfloat16: bool) -> Callable[..., None]:
    """Compile the loop for numbers of 16 or 32 bits; takes some seconds, once in a process.

    It is called as ``kernel(x, y, rows, slots, ranks, a, b, edges, scale)``, changes y in place, and computes
    ``y[row, slice] += scale * B A x[row]`` for each of the rows and each slice of the layer, with the weights in the
    row's slot. Sums are in float32 and rounded once, to nearest, ties to even; of a NaN only that it is one is kept.

    Arguments of the kernel; *number* is float32, or uint16 for the bits of a bfloat16, which numpy does not have:

    - x: [*, in] number.
    - y: [*, width] number.
    - rows: [rows] int64, the rows of x and y to update.
    - slots: [rows] int64, the slot of each.
    - ranks: [slices, slots] int64, the true rank of each slice; 0 leaves the slice alone.
    - a: [slots, ranks of all slices, in] number, A of the slices one after the other, without gaps.
    - b: [slots, ranks of all slices, width] number, B transposed, in the same order.
    - edges: [slices + 1] int64, where each slice begins in y, and the end of the last.
    - scale: float32, factor of the update.
    """
    import numba

    dot, add_scaled, read, write = _loops(*_conversions(bfloat16=bfloat16))

    def update_rows(
        x: Any, y: Any, rows: Any, slots: Any, ranks: Any, a: Any, b: Any, edges: Any, scale: float
    ) -> None:
        row_x = np.empty(x.shape[1], np.float32)
        row_y = np.empty(y.shape[1], np.float32)
        for i in range(rows.shape[0]):
            row, slot = rows[i], slots[i]
            read(row_x, x[row])
            k = 0
            for part in range(ranks.shape[0]):
                if ranks[part, slot] == 0:
                    continue
                first, last = edges[part], edges[part + 1]
                read(row_y[first:last], y[row, first:last])
                for _ in range(ranks[part, slot]):
                    add_scaled(row_y[first:last], scale * dot(row_x, a[slot, k]), b[slot, k, first:last])
                    k += 1
                write(y[row, first:last], row_y[first:last])

    number = numba.uint16 if bfloat16 else numba.float32
    matrix, weights, numbers = number[:, ::1], number[:, :, ::1], numba.int64[::1]
    signature = numba.void(
        matrix, matrix, numbers, numbers, numba.int64[:, ::1], weights, weights, numbers, numba.float32
    )
    compiled: Callable[..., None] = numba.njit(signature, fastmath=FLAGS, nogil=True, error_model="numpy")(update_rows)
    return compiled


def _conversions(*, bfloat16: bool) -> tuple[Any, Any]:
    """From a number to float32, and back: rounded to nearest, ties to even."""
    import numba

    if bfloat16:

        def widen(number: Any) -> Any:
            return np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)

        def narrow(value: Any) -> Any:
            bits = np.float32(value).view(np.uint32)
            if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):  # NaN, whose bits rounding could carry to a zero
                return np.uint16(0x7FC0)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    else:

        def widen(number: Any) -> Any:
            return number

        def narrow(value: Any) -> Any:
            return value

    return numba.njit(inline="always")(widen), numba.njit(inline="always")(narrow)


def _loops(widen: Any, narrow: Any) -> tuple[Any, ...]:
    """``dot``, ``add_scaled``, ``read`` and ``write`` of :func:`compile_kernel`, over weights and rows of numbers."""
    import numba

    # Loops over slices of one dimension from 0 on: others LLVM does not vectorise.
    def dot(left: Any, right: Any) -> Any:
        total = np.float32(0)
        for j in range(left.shape[0]):
            total += left[j] * widen(right[j])
        return total

    def add_scaled(target: Any, factor: Any, row: Any) -> None:
        for j in range(target.shape[0]):
            target[j] += factor * widen(row[j])

    def read(target: Any, row: Any) -> None:
        for j in range(target.shape[0]):
            target[j] = widen(row[j])

    def write(target: Any, row: Any) -> None:
        for j in range(target.shape[0]):
            target[j] = narrow(row[j])

    return tuple(numba.njit(fastmath=FLAGS, error_model="numpy")(loop) for loop in (dot, add_scaled, read, write))
