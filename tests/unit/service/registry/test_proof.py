from __future__ import annotations

import pytest

from adapters.errors import (
    AdapterError,
    DivergesFromReference,
    LogprobsNotFinite,
    NoEffect,
    NotApplied,
    ProbeTokensDiffer,
)
from adapters.proof import PROBES, Effect, ProbeProof, Proof
from service.errors import EngineUnavailable
from service.registry.proof import Prober
from tests.unit.service.registry.engine import BASE, TOKENS, MemoryEngine

DIGEST = "d" * 64


def prober(engine: MemoryEngine) -> Prober:
    return Prober(engine, BASE, engine.restart, timeout_s=5)


def reference(effect: float, *, base_shift: float = 0.0, tokens: int = TOKENS) -> Proof:
    rows = [MemoryEngine._row(index, base_shift)[:tokens] for index in range(len(PROBES))]
    return Proof(
        probes=tuple(
            ProbeProof(token_ids=tuple(range(tokens + 1)), base=tuple(row), adapter=tuple(v - effect for v in row))
            for row in rows
        )
    )


async def test_an_adapter_that_moves_the_base_is_proven() -> None:
    engine = MemoryEngine(effect=0.5)
    evidence = await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.distance == pytest.approx(0.5)
    assert evidence.noise == 0
    assert evidence.effect is Effect.APPLIED
    assert evidence.warnings == ()
    assert engine.asked == [BASE, DIGEST, BASE, BASE]


async def test_a_weak_effect_is_a_warning() -> None:
    evidence = await prober(MemoryEngine(effect=0.01)).prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.effect is Effect.WEAK
    assert len(evidence.warnings) == 1


async def test_not_applied_after_three_tries() -> None:
    engine = MemoryEngine(effect=0)
    with pytest.raises(NotApplied):
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.asked.count(DIGEST) == 3


async def test_an_effect_within_the_noise_is_not_applied() -> None:
    engine = MemoryEngine(effect=0.001, base_noise=0.004)
    with pytest.raises(NotApplied):
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)


async def test_a_zero_product_has_no_effect() -> None:
    with pytest.raises(NoEffect):
        await prober(MemoryEngine(effect=0)).prove(DIGEST, effect_is_zero=True, reference=None)


@pytest.mark.parametrize("said", [True, False])
async def test_numbers_that_are_none(said: bool) -> None:
    engine = MemoryEngine(effects={DIGEST: float("nan")}, not_finite={DIGEST} if said else set())
    with pytest.raises(LogprobsNotFinite):
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.restarts == []


async def test_the_reference_is_compared_by_its_effect() -> None:
    evidence = await prober(MemoryEngine(effect=0.5)).prove(
        DIGEST, effect_is_zero=False, reference=reference(0.52, base_shift=0.03)
    )
    assert evidence.reference is not None
    assert evidence.reference.conclusive
    assert evidence.reference.disagreement == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("given", "error"),
    [(reference(1.5), DivergesFromReference), (reference(0.5, tokens=TOKENS - 1), ProbeTokensDiffer)],
)
async def test_another_reference_is_refused(given: Proof, error: type[AdapterError]) -> None:
    with pytest.raises(error):
        await prober(MemoryEngine(effect=0.5)).prove(DIGEST, effect_is_zero=False, reference=given)


async def test_an_adapter_that_poisons_the_engine_has_it_restarted() -> None:
    engine = MemoryEngine(not_finite={DIGEST}, nan_spreads=True)
    asking = prober(engine)
    with pytest.raises(LogprobsNotFinite):
        await asking.prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.restarts == ["the base's log-probabilities are not finite"]
    assert engine.asked[-2:] == [BASE, BASE]
    await asking.check_base()


async def test_a_base_that_moved_is_a_poisoned_engine_and_a_fresh_one_that_differs_is_believed() -> None:
    engine = MemoryEngine()
    asking = prober(engine)
    await asking.check_base()
    engine.base_shift = 0.09  # batching and rounding: within the tolerance
    await asking.check_base()
    engine.base_shift = 0.2
    with pytest.raises(EngineUnavailable):
        await asking.check_base()
    assert engine.restarts == ["the base's answers have moved"]
    engine.base_shift = 0.2
    await asking.check_base()
    assert len(engine.restarts) == 1


async def test_a_poisoned_engine_gives_no_verdict() -> None:
    engine = MemoryEngine(effect=0, base_answers_nan=True)
    with pytest.raises(EngineUnavailable):
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.asked == [BASE, BASE]
    assert len(engine.restarts) == 1
