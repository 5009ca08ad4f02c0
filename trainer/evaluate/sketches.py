"""Sketches of held-out questions: they show near-duplicates among examples whose texts are not kept.

A sketch is a b-bit minwise hash (P. Li and A. C. König, "b-bit minwise hashing", WWW 2010) of the question's set of
shingles: one byte of each of SKETCH_BYTES minimums, so two sets of Jaccard similarity s agree in a share s + (1 - s) /
256 of the bytes on average. Shingles, templates and the threshold are those of `trainer.data.similar`, which compares
exactly: of simulated pairs of sets of 100 shingles, 1% at a similarity of 0.7 are taken for near-duplicates, 61% at
0.8, 97% at 0.85 and all at 0.9.

Sketches are stored (`trainer.evaluate.evaluations.look_store`): what they depend on must not change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.folding import fold, key
from trainer.data.shingles import ShingleSets
from trainer.data.similar import SIMILAR, without_templates

SKETCH_BYTES: Final = 128
MIN_EQUAL_BYTES: Final = round(SKETCH_BYTES * (SIMILAR + (1 - SIMILAR) / 256))
"""Bytes in which the sketches of near-duplicates agree at least."""
_FACTORS, _ADDENDS = np.frombuffer(hashlib.shake_128(b"sketch").digest(16 * SKETCH_BYTES), "<u8").reshape(2, -1)
"""Of the multiply-add-shift hash functions (Dietzfelbinger 1996), one per byte."""


@lru_cache(maxsize=2)
def sketches(texts: tuple[str, ...]) -> tuple[bytes, ...]:
    """The sketch of each of a held-out file's questions, of SKETCH_BYTES bytes.

    Sentences that many of these texts share are left out, as in `trainer.data.similar.groups`.
    """
    keys = [key(fold(text)) for text in texts]
    distinct = dict(zip(reversed(keys), reversed(texts), strict=True))  # the first of those that are the same
    sets = ShingleSets([fold(text) for text in without_templates(list(distinct.values()))])
    sketch_of = {text_key: _sketch(sets.hashes(index)) for index, text_key in enumerate(distinct)}
    return tuple(sketch_of[text_key] for text_key in keys)


def _sketch(hashes: Sequence[int]) -> bytes:
    column = np.array(hashes, np.uint64)[:, None]
    minimums: NDArray[np.uint64] = ((column * _FACTORS + _ADDENDS) >> np.uint64(32)).min(axis=0)
    return (minimums & np.uint64(0xFF)).astype(np.uint8).tobytes()


def near_duplicates(known: Sequence[bytes], questions: Sequence[bytes]) -> list[list[int]]:
    """For each of the questions' sketches the positions of its near-duplicates in ``known``."""
    rows = _rows(known)
    agreeing = (np.count_nonzero(rows == row, axis=1) for row in _rows(questions))
    return [np.flatnonzero(equal >= MIN_EQUAL_BYTES).tolist() for equal in agreeing]


def _rows(stored: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(stored), np.uint8).reshape(len(stored), SKETCH_BYTES)
