import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import proof
from adapters.errors import (
    DivergesFromReference,
    LogprobsNotFinite,
    NoEffect,
    NotApplied,
    ProbeTokensDiffer,
    ProofInvalid,
)
from adapters.proof import (
    MAX_PROBE_TOKENS,
    PROBES,
    PROBES_ID,
    Effect,
    ProbeAnswer,
    Proof,
    classify,
    distance,
    judge_probes,
    tolerance,
)

TOKENS = 26
BASE = [[-2.0 - 0.01 * i for i in range(TOKENS - 1)] for _ in PROBES]

logprobs = st.floats(-50, 0)
same_shape = st.integers(1, 20).flatmap(lambda n: st.tuples(*[st.lists(logprobs, min_size=n, max_size=n)] * 2))


def shifted(rows: list[list[float]], by: float, wave: float = 0.0) -> list[list[float]]:
    """Every value moved by `by`, and by `wave` up and down in turn."""
    return [[value + by + (wave if i % 2 else -wave) for i, value in enumerate(row)] for row in rows]


def answers(rows: list[list[float]], first_token: int = 1) -> list[ProbeAnswer]:
    return [ProbeAnswer.of([first_token, *range(10, 10 + len(row))], [None, *row]) for row in rows]


def reference(base: list[list[float]], adapter: list[list[float]]) -> Proof:
    rows = zip(base, adapter, strict=True)
    return Proof.parse(
        {
            "stack": "peft 0.21, float32",
            "probes": [{"token_ids": [1, *range(10, 10 + len(b))], "base": b, "adapter": a} for b, a in rows],
        }
    )


def test_the_probes_are_four_kinds_of_text_of_some_hundred_words() -> None:
    assert len(PROBES) == 4
    assert 70 <= sum(len(probe.split()) for probe in PROBES) <= 110
    assert max(len(probe.encode()) for probe in PROBES) < MAX_PROBE_TOKENS


def test_distance_is_the_mean_per_token_and_not_per_probe() -> None:
    assert distance([[-1.0], [-1.0, -1.0, -1.0]], [[-3.0], [-1.0, -1.0, -1.0]]) == 0.5


@given(same_shape)
def test_distance_is_symmetric_and_zero_only_between_equals(rows: tuple[list[float], list[float]]) -> None:
    a, b = rows
    assert distance([a], [a]) == 0
    assert distance([a], [b]) == distance([b], [a])
    assert (distance([a], [b]) == 0) == (a == b)


@pytest.mark.parametrize(("a", "b"), [([[-1.0]], [[-1.0, -2.0]]), ([[-1.0]], [[-1.0], [-1.0]]), ([], []), ([[]], [[]])])
def test_measurements_of_other_tokens_are_not_compared(a: list[list[float]], b: list[list[float]]) -> None:
    with pytest.raises(ProbeTokensDiffer):
        distance(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_never_a_distance(bad: float) -> None:
    with pytest.raises(LogprobsNotFinite):
        distance([[-1.0, bad]], [[-1.0, -1.0]])
    with pytest.raises(LogprobsNotFinite):
        ProbeAnswer.of([1, 2, 3], [None, -1.0, bad])


@pytest.mark.parametrize(
    ("ids", "values"), [([1, 2], [None, None]), ([1], [None]), ([1, 2, 3], [None, -1.0]), ([], [])]
)
def test_an_answer_has_a_value_for_each_token_but_the_first(ids: list[int], values: list[float | None]) -> None:
    with pytest.raises(LogprobsNotFinite):
        ProbeAnswer.of(ids, values)


def test_an_answer_to_the_bit_of_the_base_is_not_applied() -> None:
    with pytest.raises(NotApplied):
        judge_probes(answers(BASE), answers(BASE), answers(BASE))


def test_an_answer_within_the_bases_own_noise_is_not_applied() -> None:
    with pytest.raises(NotApplied) as caught:
        judge_probes(answers(BASE), answers(shifted(BASE, 0.01)), answers(shifted(BASE, -0.009)))
    assert caught.value.details == {"distance": pytest.approx(0.009), "noise": pytest.approx(0.01)}


def test_a_zero_product_is_no_effect_whatever_the_noise_says() -> None:
    for adapter in (BASE, shifted(BASE, 0.01)):
        with pytest.raises(NoEffect):
            judge_probes(answers(BASE), answers(BASE), answers(adapter), effect_is_zero=True)


@pytest.mark.parametrize(
    ("far", "noise", "effect"),
    [
        (0.0, 0.0, Effect.NOT_APPLIED),
        (1e-6, 0.0, Effect.WEAK),
        (0.04, 0.0, Effect.WEAK),  # B times 1e-3
        (0.28, 0.0, Effect.APPLIED),  # the weakest trained adapter seen
        (0.28, 0.04, Effect.APPLIED),
        (0.28, 0.2, Effect.WEAK),
        (0.2, 0.2, Effect.NOT_APPLIED),
    ],
)
def test_classification(far: float, noise: float, effect: Effect) -> None:
    assert classify(far, noise) is effect


def test_a_plain_effect_is_evidence() -> None:
    evidence = judge_probes(answers(BASE), answers(BASE), answers(shifted(BASE, 0.5)))
    assert evidence.effect is Effect.APPLIED
    assert evidence.distance == pytest.approx(0.5)
    assert evidence.largest == pytest.approx(0.5)
    assert evidence.tokens == len(PROBES) * (TOKENS - 1)
    assert evidence.warnings == ()
    assert proof.Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_a_weak_effect_is_a_warning() -> None:
    evidence = judge_probes(answers(BASE), answers(BASE), answers(shifted(BASE, 0.04)))
    assert evidence.effect is Effect.WEAK
    assert len(evidence.warnings) == 1


def test_two_stacks_that_agree_on_the_effect_agree() -> None:
    engine_base, engine_adapter = BASE, shifted(BASE, 0.5)
    elsewhere = reference(shifted(BASE, 0.03), shifted(BASE, 0.53, wave=0.07))
    evidence = judge_probes(answers(engine_base), answers(engine_base), answers(engine_adapter), reference=elsewhere)
    assert evidence.reference is not None
    assert evidence.reference.disagreement == pytest.approx(0.07)
    assert evidence.reference.base_gap == pytest.approx(0.03)
    assert evidence.reference.conclusive
    assert evidence.warnings == ()


@pytest.mark.parametrize(
    "engine",
    [shifted(BASE, 0.05), shifted(BASE, -0.5), shifted(BASE, 0.0, wave=0.5), shifted(BASE, 1.2)],
    ids=["hardly applied", "backwards", "another adapter", "twice the scaling"],
)
def test_another_effect_than_the_reference_diverges(engine: list[list[float]]) -> None:
    with pytest.raises(DivergesFromReference) as caught:
        judge_probes(answers(BASE), answers(BASE), answers(engine), reference=reference(BASE, shifted(BASE, 0.5)))
    details = caught.value.details
    assert isinstance(details["disagreement"], float)
    assert isinstance(details["tolerance"], float)
    assert details["disagreement"] > details["tolerance"]


def test_a_reference_too_weak_to_tell_is_a_warning() -> None:
    evidence = judge_probes(
        answers(BASE), answers(BASE), answers(shifted(BASE, 0.2)), reference=reference(BASE, shifted(BASE, 0.1))
    )
    assert evidence.reference is not None
    assert not evidence.reference.conclusive
    assert "too weak" in evidence.warnings[0]


def test_a_reference_over_other_tokens_is_not_compared() -> None:
    applied = shifted(BASE, 0.5)
    with pytest.raises(ProbeTokensDiffer) as caught:
        judge_probes(answers(BASE, 2), answers(BASE, 2), answers(applied, 2), reference=reference(BASE, applied))
    assert caught.value.param == "metadata.proof"
    with pytest.raises(ProbeTokensDiffer):
        judge_probes(answers(BASE), answers(BASE), answers(applied, 2))


@given(st.floats(0, 5), st.floats(0, 10))
def test_an_adapter_that_was_not_applied_is_never_within_the_tolerance_of_a_plain_effect(
    gap: float, effect: float
) -> None:
    """Not applied, the engine's effect is 0 and the disagreement is the whole effect."""
    limit = tolerance(gap, effect)
    assert limit >= 3 * 0.04
    assert limit < effect or effect <= 0.45


def test_the_base_may_move_a_little_and_no_further() -> None:
    assert not proof.has_drifted(BASE, BASE)
    assert not proof.has_drifted(BASE, shifted(BASE, 0.04))
    assert proof.has_drifted(BASE, shifted(BASE, 0.2))
    with pytest.raises(LogprobsNotFinite):
        proof.has_drifted(BASE, [[math.nan] * len(row) for row in BASE])


def valid() -> dict[str, Any]:
    probe = {"token_ids": [1, 2, 3], "base": [-1.0, -2.0], "adapter": [-1.5, -0.5]}
    return {"format": 1, "probes_id": PROBES_ID, "stack": "peft", "probes": [dict(probe) for _ in PROBES]}


def test_a_proof_survives_json() -> None:
    parsed = Proof.parse(valid())
    assert Proof.model_validate_json(parsed.model_dump_json()) == parsed
    assert list(parsed.base[0]) == [-1.0, -2.0]
    assert list(parsed.adapter[0]) == [-1.5, -0.5]


def edited(**changes: Any) -> dict[str, Any]:
    content = valid()
    content["probes"][1].update(changes)
    return content


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "proof",
        {},
        {**valid(), "format": 2},
        {**valid(), "probes_id": "0" * 16},
        {**valid(), "extra": 1},
        {**valid(), "stack": "x" * 200},
        {**valid(), "probes": valid()["probes"][:-1]},
        {**valid(), "probes": valid()["probes"] * 2},
        edited(base=[-1.0]),
        edited(token_ids=[1, 2]),
        edited(base=[-1.0, math.nan]),
        edited(base=[-1.0, -math.inf]),
        edited(adapter=[-1.0, 0.5]),
        edited(adapter=[-1.0, None]),
        edited(token_ids=[1, -2, 3]),
        edited(token_ids=[1, 2, 2**31]),
        edited(token_ids=[1], base=[], adapter=[]),
        edited(token_ids=[1] * 300, base=[-1.0] * 299, adapter=[-1.0] * 299),
        edited(secret=1),
    ],
)
def test_a_proof_off_the_schema_is_refused(value: object) -> None:
    with pytest.raises(ProofInvalid) as caught:
        Proof.parse(value)
    assert caught.value.param is not None
    assert caught.value.param.startswith("metadata.proof")
