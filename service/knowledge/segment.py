"""A segment: some passages of one document as arrays, the form in which they are handed over, stored and searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Terms = NDArray[np.uint64]
Counts = NDArray[np.uint16]
Offsets = NDArray[np.uint32]
Dumped = tuple[bytes, bytes, bytes, bytes]
_VECTORS: Final = np.dtype("<f4")
FLOAT_BYTES: Final = _VECTORS.itemsize
_OFFSETS: Final = np.dtype("<u4")
_TERMS: Final = np.dtype("<u8")
_COUNTS: Final = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class Segment:
    """``n`` passages.

    Attributes:
        vectors: (n, dimensions), each of length 1.
        offsets: (n + 1): passage ``i`` has the terms from ``offsets[i]`` to ``offsets[i + 1]``.
        terms: The distinct terms of each passage, ascending within it.
        counts: How often each of them counts.
    """

    vectors: Vectors
    offsets: Offsets
    terms: Terms
    counts: Counts

    @property
    def rows(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def dimensions(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def size(self) -> int:
        """Bytes that the arrays take in memory."""
        return self.vectors.nbytes + self.offsets.nbytes + self.terms.nbytes + self.counts.nbytes

    def dump(self) -> Dumped:
        """The arrays as little-endian bytes, in the order of the fields."""
        return (
            self.vectors.astype(_VECTORS, copy=False).tobytes(),
            self.offsets.astype(_OFFSETS, copy=False).tobytes(),
            self.terms.astype(_TERMS, copy=False).tobytes(),
            self.counts.astype(_COUNTS, copy=False).tobytes(),
        )

    @classmethod
    def load(cls, parts: Dumped, rows: int) -> Segment:
        """The inverse of :meth:`dump`; no bytes are copied.

        Raises:
            ValueError: The sizes do not fit together.
        """
        vectors = np.frombuffer(parts[0], dtype=_VECTORS)
        offsets = np.frombuffer(parts[1], dtype=_OFFSETS)
        terms = np.frombuffer(parts[2], dtype=_TERMS)
        counts = np.frombuffer(parts[3], dtype=_COUNTS)
        if rows < 1 or len(offsets) != rows + 1 or len(terms) != len(counts) or int(offsets[-1]) != len(terms):
            raise ValueError(f"inconsistent array lengths in a segment of {rows} passages")
        return cls(vectors.reshape(rows, -1), offsets, terms, counts)
