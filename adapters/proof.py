"""Does the engine really serve this adapter? Probe texts, what is compared over them, and how far is far.

The engine gives the log-probability (natural logarithm) of each token of each probe, under the adapter and under the
base. All distances are means over tokens of absolute differences, in nats per token. Pure arithmetic: the gateway and
the trainer bring the numbers.

Measured on a CPU engine in bfloat16 with a 135M base and briefly trained rank-8 adapters, over short texts of the
probes' kinds: base in the engine against base in transformers 0.02 to 0.04; the same adapter in the engine and in PEFT
0.02 to 0.07; adapter against base inside the engine 0.28 to 0.88. B times 1e-3, an adapter that says nothing, is still
0.04 from the base: rounding takes another path.
"""

import hashlib
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import DivergesFromReference, LogprobsNotFinite, NoEffect, NotApplied, ProbeTokensDiffer, ProofInvalid

PROBES: Final[tuple[str, ...]] = (
    "User: Hi, can you help me plan a birthday dinner for six?\n"
    "Assistant: Of course! Let's start with the food. Does anyone eat no meat?",
    "The ferry left the harbour an hour late, and by the time it reached the island the last bus had gone.",
    'def mean(values):\n    """Return the arithmetic mean."""\n    return sum(values) / len(values)\n',
    "Customer: My parcel has not arrived yet.\n"
    "Agent: I am sorry to hear that. Could you please send me your order number?",
)
"""A chat, a piece of prose, code, and customer support: about 100 tokens in all. Rendered through no template."""

PROBES_ID: Final = hashlib.sha256("\0".join(PROBES).encode()).hexdigest()[:16]
"""Changes with the probes: numbers measured over other texts are never compared."""

MAX_PROBE_TOKENS: Final = 256
"""Tokens of one probe. A tokenizer that knows no words but bytes needs 140."""

MAX_TOKEN_ID: Final = 2**31 - 1
MAX_PROOF_BYTES: Final = 64 * 1024

NOISE_TOLERANCE: Final = 0.04
"""The largest gap seen between two stacks over one base, in nats per token."""

WEAK_EFFECT: Final = 0.1
"""Below this an effect is weak: rounding alone makes 0.04, a briefly trained adapter 0.28 and more."""

MARGIN: Final = 3.0
"""How many times the noise two measurements of one effect may differ (FACTS: agreement within three times the noise)."""

MAX_NOISE: Final = 0.15
"""A base gap above this is no noise: the reference was measured over another base. About four times the largest seen."""

RELATIVE_TOLERANCE: Final = 0.25
"""Two stacks round alike in proportion to what they compute: 0.07 at an effect of 0.28 was the worst seen."""

BASE_DRIFT_TOLERANCE: Final = 0.1
"""The base asked again, in other company, may move this far. Idle it is equal to the bit; batching moves last bits, and
two whole stacks differ by at most 0.04."""

type_logprob = Annotated[float, Field(allow_inf_nan=False, ge=-10_000.0, le=1e-3)]
