"""What this machine's processor computes with, as the kernel tells it; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Of processors that multiply in bfloat16. The trainer asks torch for the same (`trainer.tune.model.compute_dtype`)."""


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16; False where it is unknown."""
    return bool(BFLOAT16_FLAGS & _flags())


def is_slow_in_bfloat16() -> bool:
    """Whether float32 is several times faster than bfloat16; False where it is unknown.

    With AVX-512 alone oneDNN widens to float32 on the way: 512 rows of 576 numbers times 576 x 1,536 at 30 GFLOP/s, and
    at 156 in float32 (one core of a Xeon). Without AVX-512 torch's reference code runs, at 1 GFLOP/s beside 130.
    """
    flags = _flags()
    return bool(flags) and not BFLOAT16_FLAGS & flags


def _flags() -> frozenset[str]:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, ()))
