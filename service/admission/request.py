"""What the admission queue knows of a request."""

from __future__ import annotations

from typing import NamedTuple


class AdmissionRequest(NamedTuple):
    """One request for a place in the engine.

    ``adapter`` is the digest, None for what needs no slot: the base, and versions without weights. ``tokens`` is the
    estimate of prompt and answer together, ``prompt`` that of the prompt alone (0: unknown). ``background`` requests
    (proofs, evaluations, warming) yield to callers. ``flow`` is what the engine's time is shared between, if that is
    not the adapter: the name of a version without weights.
    """

    project: str
    key_id: str
    adapter: str | None
    tokens: int
    background: bool = False
    prompt: int = 0
    flow: str | None = None
