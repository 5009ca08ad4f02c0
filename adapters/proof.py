"""Proof that the engine really serves an adapter: probe texts, the comparison over them, and its tolerances.

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
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import (
    DivergesFromReference,
    LogprobsNotFinite,
    MixedBatchDiffers,
    NoEffect,
    NotApplied,
    ProbeTokensDiffer,
    ProofInvalid,
)
from adapters.perplexity import Perplexity, is_logprob
from adapters.validation import faults, message, path

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
"""Identifies the probes: measurements over different texts are never compared."""

MIXED_PROBES: Final = 2
"""Number of probes, from the first, that are asked under several models at once: about 50 tokens each."""

MAX_PROBE_TOKENS: Final = 256
"""Tokens of one probe. A byte-level tokenizer without merges needs 140."""

MAX_TOKEN_ID: Final = 2**31 - 1
MAX_PROOF_BYTES: Final = 64 * 1024

NOISE_TOLERANCE: Final = 0.04
"""The largest difference measured between two stacks over one base, in nats per token."""

WEAK_EFFECT: Final = 0.1
"""An effect below this is weak: rounding alone causes 0.04, a briefly trained adapter at least 0.28."""

MARGIN: Final = 3.0
"""How many times the noise two measurements of one effect may differ: three separated applied from not applied."""

MAX_NOISE: Final = 0.15
"""A base gap above this is not noise but another (or a quantized) base, and widens the tolerance no further."""

RELATIVE_TOLERANCE: Final = 0.25
"""Two stacks round alike in proportion to what they compute: 0.07 at an effect of 0.28 was the worst seen."""

BASE_DRIFT_TOLERANCE: Final = 0.1
"""The base asked again, in other company, may move this far. Idle it is equal to the bit; batching moves last bits, and
two whole stacks differ by at most 0.04."""

MAX_ATTEMPTS: Final = 3
"""How many rounds are asked before an adapter counts as not applied."""

Logprobs = Sequence[Sequence[float]]
"""For each probe the log-probabilities of its tokens but the first, in nats."""

_Logprob = Annotated[float, Field(allow_inf_nan=False, ge=-10_000.0, le=1e-3)]
_TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
_Row = Annotated[tuple[_Logprob, ...], Field(min_length=1, max_length=MAX_PROBE_TOKENS - 1)]


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class ProbeProof(_Frozen):
    """One probe as the trainer measured it: n token ids, n - 1 log-probabilities under the base and the adapter."""

    token_ids: Annotated[tuple[_TokenId, ...], Field(min_length=2, max_length=MAX_PROBE_TOKENS)]
    base: _Row
    adapter: _Row

    @model_validator(mode="after")
    def _one_value_a_token(self) -> Self:
        if not len(self.base) == len(self.adapter) == len(self.token_ids) - 1:
            raise ValueError("base and adapter have one value for each token but the first")
        return self


class Proof(_Frozen):
    """`metadata.proof` of an upload: what the adapter does outside of the engine, probe by probe in PROBES' order.

    `stack` says in words where it was measured ("peft 0.21, float32").
    """

    format: Literal[1] = 1
    probes_id: Literal[PROBES_ID] = PROBES_ID  # type: ignore[valid-type]
    stack: Annotated[str, Field(max_length=128)] = ""
    probes: Annotated[tuple[ProbeProof, ...], Field(min_length=len(PROBES), max_length=len(PROBES))]

    @classmethod
    def parse(cls, value: object) -> "Proof":
        """Read the JSON value of `metadata.proof`. Raises ProofInvalid."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = faults(error)[0]
            where = ".".join(["metadata.proof", *path(first, value)])
            raise ProofInvalid(f"{where}: {message(first)}", param=where) from error

    @property
    def base(self) -> Logprobs:
        """The base's log-probabilities in nats, one row per probe."""
        return [probe.base for probe in self.probes]

    @property
    def adapter(self) -> Logprobs:
        """The adapter's log-probabilities in nats, one row per probe."""
        return [probe.adapter for probe in self.probes]


class ProbeAnswer(_Frozen):
    """The engine's result for one probe under one model: n token ids and n - 1 log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, token_ids: Sequence[int], logprobs: Sequence[float | None]) -> "ProbeAnswer":
        """Take the engine's lists of equal length, in which the first token has no log-probability.

        Raises LogprobsNotFinite where another one is missing, NaN or infinite, or the lists are not of one length.
        """
        values = [value for value in logprobs[1:] if value is not None and math.isfinite(value)]
        if len(token_ids) < 2 or len(values) != len(token_ids) - 1:
            raise LogprobsNotFinite("The engine's log-probabilities are not all finite numbers.")
        return cls(token_ids=tuple(token_ids), logprobs=tuple(values))


class Effect(StrEnum):
    """How much an adapter changes the base's log-probabilities: not at all, weakly, or clearly."""

    NOT_APPLIED = "not_applied"
    WEAK = "weak"
    APPLIED = "applied"


class ReferenceAgreement(_Frozen):
    """The adapter's effect in the engine against the same in the trainer's stack; all in nats per token.

    `base_gap` is the base in one against the base in the other, `effect` the effect in the trainer's. Not `conclusive`:
    that effect is itself within the tolerance, so that agreement shows nothing.
    """

    disagreement: float
    tolerance: float
    base_gap: float
    effect: float
    conclusive: bool


class MixedBatch(_Frozen):
    """How far each model's answers moved when all were asked at the same time, in nats per token.

    `neighbour` is another adapter that was loaded; None where there was none.
    """

    base: float
    adapter: float
    neighbour: float | None = None


class Evidence(_Frozen):
    """The part of a successful proof that the registry stores; older ones have neither perplexity nor mixed batch."""

    format: Literal[1] = 1
    probes_id: str
    tokens: int
    noise: float
    distance: float
    largest: float
    effect: Effect
    reference: ReferenceAgreement | None = None
    perplexity: Perplexity | None = None
    mixed_batch: MixedBatch | None = None
    warnings: tuple[str, ...] = ()


def is_finite(answer: Logprobs, texts: int = len(PROBES)) -> bool:
    """Whether an answer has a row for each text, with log-probabilities only."""
    return len(answer) == texts and all(row and all(map(is_logprob, row)) for row in answer)


def distance(a: Logprobs, b: Logprobs) -> float:
    """Mean absolute difference per token, over the tokens of all probes. Raises as differences()."""
    values = differences(a, b)
    return math.fsum(values) / len(values)


def differences(a: Logprobs, b: Logprobs) -> list[float]:
    """The absolute difference of each token, probes one after another.

    Raises ProbeTokensDiffer where the shapes differ or are empty, LogprobsNotFinite where a value is not finite.
    """
    if len(a) != len(b) or any(len(x) != len(y) for x, y in zip(a, b, strict=True)) or not any(map(len, a)):
        raise ProbeTokensDiffer("The two measurements have different tokens.")
    values = [abs(x - y) for row, other_row in zip(a, b, strict=True) for x, y in zip(row, other_row, strict=True)]
    if not all(map(math.isfinite, values)):
        raise LogprobsNotFinite("A log-probability is not a finite number.")
    return values


def effect_disagreement(base: Logprobs, adapter: Logprobs, reference: Proof) -> float:
    """|(adapter - base in the engine) - (adapter - base in the reference)|, mean per token.

    Comparing effects instead of adapters takes out what the two stacks do to the base alike.
    """
    return distance(_effect(base, adapter), _effect(reference.base, reference.adapter))


def _effect(base: Logprobs, adapter: Logprobs) -> Logprobs:
    differences(base, adapter)
    return [
        [y - x for x, y in zip(row, adapter_row, strict=True)] for row, adapter_row in zip(base, adapter, strict=True)
    ]


def tolerance(base_gap: float, effect: float) -> float:
    """How far two measurements of one effect may lie apart.

    MARGIN times the noise, which is the base's own gap (at least the usual one, at most MAX_NOISE), or a share of the
    effect. An adapter that was not applied disagrees by the whole effect; another adapter by more.
    """
    noise = min(max(base_gap, NOISE_TOLERANCE), MAX_NOISE)
    return max(MARGIN * noise, RELATIVE_TOLERANCE * effect)


def classify(adapter_distance: float, noise: float) -> Effect:
    """An adapter's distance from the base against `noise`, the base's distance from itself when asked twice."""
    if adapter_distance <= noise:
        return Effect.NOT_APPLIED
    return Effect.WEAK if adapter_distance < max(WEAK_EFFECT, MARGIN * noise) else Effect.APPLIED


def has_drifted(base: Logprobs, repeated: Logprobs) -> bool:
    """Whether the base's answers changed: the engine's state is corrupt, or it is another engine."""
    return distance(base, repeated) > BASE_DRIFT_TOLERANCE


def compare(base: Logprobs, adapter: Logprobs, reference: Proof) -> ReferenceAgreement:
    """The engine's measurements against the trainer's. Raises as differences()."""
    effect = distance(reference.base, reference.adapter)
    gap = distance(base, reference.base)
    limit = tolerance(gap, effect)
    return ReferenceAgreement(
        disagreement=effect_disagreement(base, adapter, reference),
        tolerance=limit,
        base_gap=gap,
        effect=effect,
        conclusive=effect > limit,
    )


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answers over the same probes: asked alone, and at the same time as the other models."""

    alone: Logprobs
    mixed: Logprobs

    @property
    def moved(self) -> float:
        """How far the answers lie apart, in nats per token. Raises as differences()."""
        return distance(self.alone, self.mixed)


def weigh_mixed_batch(base: Side, adapter: Side, neighbour: Side | None = None) -> MixedBatch:
    """Decide whether the engine keeps the models of one batch apart.

    Raises MixedBatchDiffers where the base moves by more than BASE_DRIFT_TOLERANCE, or an adapter by more than
    tolerance() has for its effect; ProbeTokensDiffer and LogprobsNotFinite as differences().
    """
    mixed_batch = MixedBatch(base=base.moved, adapter=adapter.moved, neighbour=neighbour.moved if neighbour else None)
    sides = [
        ("The base", mixed_batch.base, BASE_DRIFT_TOLERANCE),
        ("The adapter", mixed_batch.adapter, _limit(base, adapter)),
    ]
    if neighbour is not None and mixed_batch.neighbour is not None:
        sides.append(("Another adapter", mixed_batch.neighbour, _limit(base, neighbour)))
    for who, moved, limit in sides:
        if moved > limit:
            raise MixedBatchDiffers(
                f"{who} answers differently in a batch with the others than alone: {moved:.2g} nats per token apart; "
                f"rounding explains at most {limit:.2g}.",
                details=mixed_batch.model_dump(),
            )
    return mixed_batch


def _limit(base: Side, adapter: Side) -> float:
    return tolerance(NOISE_TOLERANCE, distance(base.alone, adapter.alone))


def judge_probes(
    base: Sequence[ProbeAnswer],
    base_again: Sequence[ProbeAnswer],
    adapter: Sequence[ProbeAnswer],
    *,
    effect_is_zero: bool = False,
    reference: Proof | None = None,
) -> Evidence:
    """Decide on one round of asking: the base, the base again, and the adapter, each over all PROBES.

    `effect_is_zero` comes from the inspection of the weights. Raises NoEffect, NotApplied (ask again, up to
    MAX_ATTEMPTS rounds), DivergesFromReference, ProbeTokensDiffer.
    """
    for side in (base_again, adapter):
        if [answer.token_ids for answer in side] != [answer.token_ids for answer in base]:
            raise ProbeTokensDiffer("The engine tokenized the probes differently in two requests.")
    base_rows, again_rows, adapter_rows = ([answer.logprobs for answer in side] for side in (base, base_again, adapter))
    noise, shifts = distance(base_rows, again_rows), differences(base_rows, adapter_rows)
    mean_distance = math.fsum(shifts) / len(shifts)
    effect = classify(mean_distance, noise)
    if effect_is_zero:
        raise NoEffect("The adapter has no effect: B·A is zero in every module.", param="weights")
    if effect is Effect.NOT_APPLIED:
        raise NotApplied(
            f"The engine's answers do not differ from the base's: {mean_distance:.2g} nats per token apart; the base "
            f"differs from itself by {noise:.2g}.",
            details={"distance": mean_distance, "noise": noise},
        )
    warnings = []
    if effect is Effect.WEAK:
        warnings.append(f"The adapter has a weak effect: {mean_distance:.2g} nats per token over the probes.")
    agreement = None
    if reference is not None:
        agreement = _agree(base, base_rows, adapter_rows, reference)
        if not agreement.conclusive:
            warnings.append("The effect in metadata.proof is too weak to tell whether the engine agrees with it.")
    return Evidence(
        probes_id=PROBES_ID,
        tokens=len(shifts),
        noise=noise,
        distance=mean_distance,
        largest=max(shifts),
        effect=effect,
        reference=agreement,
        warnings=tuple(warnings),
    )


def _agree(base: Sequence[ProbeAnswer], rows: Logprobs, adapter: Logprobs, reference: Proof) -> ReferenceAgreement:
    if [answer.token_ids for answer in base] != [probe.token_ids for probe in reference.probes]:
        raise ProbeTokensDiffer(
            "metadata.proof was measured with other tokens: check the tokenizer and its beginning-of-text token.",
            param="metadata.proof",
        )
    agreement = compare(rows, adapter, reference)
    if agreement.disagreement > agreement.tolerance:
        raise DivergesFromReference(
            f"The adapter's effect in the engine and in metadata.proof lie {agreement.disagreement:.2g} nats per token "
            f"apart; the two stacks explain at most {agreement.tolerance:.2g}.",
            param="metadata.proof",
            details=agreement.model_dump(),
        )
    return agreement
