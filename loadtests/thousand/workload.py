"""Who asks for which adapter, when, and for how much: S-LoRA's synthetic workload (Sheng et al. 2023, section 7.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.support import Timing, percentile, prompt

FIRST_TOKEN_S: Final = 6.0
"""S-LoRA's objective for the first token."""
WORDS: Final = (8, 48)
TOKENS: Final = (4, 32)
"""Ranges of a prompt's words and an answer's tokens, both uniform; S-LoRA's are 8 to 512 tokens, on an A10G."""


@dataclass(frozen=True)
class Request:
    """One completion of ``tokens`` tokens, sent ``at_s`` seconds after the start."""

    at_s: float
    adapter: int
    text: str
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """What one load came to."""

    tokens_per_s: float
    first_p50_s: float
    first_p99_s: float
    attained: float
    """The share of all requests whose first token came within `FIRST_TOKEN_S`; one that was refused did not."""
    refused: int


def trace(adapters: int, count: int, *, rate: float = 0.0, cv: float = 1.0, seed: int = 7) -> list[Request]:
    """``count`` requests; the k-th adapter is asked for with a weight of 1/k.

    Args:
        adapters: How many there are.
        count: Of requests.
        rate: Requests a second; 0: all at once, for a closed loop.
        cv: Coefficient of variation of the times between two arrivals, which are gamma distributed with shape 1/cv²
            (as S-LoRA's); 1 is a Poisson process.
        seed: The same seed gives the same requests.
    """
    rng = random.Random(seed)
    chosen = rng.choices(range(adapters), [1 / rank for rank in range(1, adapters + 1)], k=count)
    at, shape, made = 0.0, 1 / cv**2, []
    for adapter in chosen:
        made.append(Request(at, adapter, prompt(rng.randint(*WORDS), rng), rng.randint(*TOKENS)))
        if rate:
            at += rng.gammavariate(shape, 1 / (shape * rate))
    return made


def outcome(timings: Sequence[Timing]) -> Outcome:
    """Summarise requests that have ended; tokens of answers count over the whole time from first to last."""
    answered = [timing for timing in timings if timing.status == 200 and timing.first]
    span = max(timing.end for timing in timings) - min(timing.sent for timing in timings)
    waits = [timing.ttft_ms / 1000 for timing in answered]
    return Outcome(
        tokens_per_s=sum(timing.tokens for timing in answered) / span,
        first_p50_s=percentile(waits, 0.5),
        first_p99_s=percentile(waits, 0.99),
        attained=sum(wait <= FIRST_TOKEN_S for wait in waits) / len(timings),
        refused=len(timings) - len(answered),
    )
