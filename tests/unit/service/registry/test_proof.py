from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from adapters.errors import (
    AdapterError,
    DivergesFromReference,
    LogprobsNotFinite,
    MixedBatchDiffers,
    NoEffect,
    NotApplied,
    ProbeTokensDiffer,
)
from adapters.proof import PROBES, Effect, ProbeProof, Proof
from service.errors import AdapterNotFinite, BadGateway, EngineCut, EngineUnavailable, Unavailable
from service.registry.mixed_batch import NEIGHBOUR_DIFFERS
from service.registry.proof import Prober
from service.registry.proving import ENGINE_EVIDENCE
from tests.unit.service.registry.engine import BASE, TOKENS, MemoryEngine

DIGEST = "d" * 64


def prober(engine: MemoryEngine) -> Prober:
    return Prober(engine, BASE, engine.restart, timeout_s=240)


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
    assert engine.restarts == ["the base model's log-probabilities are not finite"]
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
    assert engine.restarts == ["the base model's log-probabilities have drifted"]
    engine.base_shift = 0.2
    await asking.check_base()
    assert len(engine.restarts) == 1


async def test_a_poisoned_engine_gives_no_verdict() -> None:
    engine = MemoryEngine(effect=0, base_answers_nan=True)
    with pytest.raises(EngineUnavailable):
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.asked == [BASE, BASE]
    assert len(engine.restarts) == 1


async def test_a_long_plain_text_is_asked_under_the_base_once_and_under_each_adapter() -> None:
    engine = MemoryEngine(perplexity=12.0)
    asking = prober(engine)
    for _ in range(2):
        evidence = await asking.prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.plain_asked == [BASE, DIGEST, DIGEST]
    assert evidence.perplexity is not None
    assert evidence.perplexity.ratio == pytest.approx(12)
    assert evidence.perplexity.base == pytest.approx(math.exp(2))
    assert evidence.perplexity.is_long


async def test_a_short_context_is_asked_what_fits_and_the_record_says_so() -> None:
    evidence = await prober(MemoryEngine(plain_tokens=100)).prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.perplexity is not None
    assert evidence.perplexity.tokens == 100
    (warning,) = evidence.warnings
    assert "100 tokens" in warning
    assert "512" in warning


async def test_numbers_that_are_none_from_token_128_on_are_seen() -> None:
    engine = MemoryEngine(long_not_finite={DIGEST})
    with pytest.raises(LogprobsNotFinite):
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)


async def test_a_base_without_numbers_in_a_long_prompt_is_not_the_adapters_fault() -> None:
    engine = MemoryEngine(long_not_finite={BASE})
    with pytest.raises(BadGateway) as raised:
        await prober(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    assert raised.value.code == "engine_not_finite"


OTHER = "e" * 64


def beside(engine: MemoryEngine, *loaded: str) -> Prober:
    async def neighbours() -> tuple[str, ...]:
        return loaded

    return Prober(engine, BASE, engine.restart, timeout_s=240, neighbours=neighbours)


async def test_the_base_and_another_loaded_adapter_are_asked_at_the_same_time() -> None:
    engine = MemoryEngine(effects={OTHER: 0.9})
    evidence = await beside(engine, OTHER, DIGEST).prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.together == [[BASE, DIGEST, OTHER]]
    assert evidence.mixed_batch is not None
    assert evidence.mixed_batch.neighbour == pytest.approx(0)


async def test_a_neighbour_that_does_not_answer_is_left_out() -> None:
    engine = MemoryEngine(not_finite={OTHER})
    evidence = await beside(engine, OTHER).prove(DIGEST, effect_is_zero=False, reference=None)
    assert engine.together == [[BASE, DIGEST]]
    assert evidence.mixed_batch is not None
    assert evidence.mixed_batch.neighbour is None


@pytest.mark.parametrize("shift", [-0.4, math.nan])
@pytest.mark.parametrize("model", [BASE, DIGEST])
async def test_an_adapter_or_a_base_that_answers_differently_in_company_is_seen(model: str, shift: float) -> None:
    engine = MemoryEngine(mixed_shifts={model: shift})
    with pytest.raises(MixedBatchDiffers) as raised:
        await beside(engine, OTHER).prove(DIGEST, effect_is_zero=False, reference=None)
    assert OTHER not in raised.value.message, "it may be another project's"
    assert engine.restarts == []
    assert engine.together == [[BASE, DIGEST, OTHER], [BASE, DIGEST, OTHER], [BASE, DIGEST]]


@pytest.mark.parametrize("shift", [-0.4, math.nan])
async def test_a_neighbour_that_answers_differently_in_company_refuses_nobody(shift: float) -> None:
    engine = MemoryEngine(mixed_shifts={OTHER: shift})
    evidence = await beside(engine, OTHER).prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.mixed_batch is not None
    assert evidence.mixed_batch.neighbour is None
    assert evidence.warnings == (NEIGHBOUR_DIFFERS,)
    assert engine.restarts == []


async def test_a_sound_neighbour_is_asked_where_another_was_at_fault() -> None:
    engine = MemoryEngine(mixed_shifts={OTHER: -0.4})
    sound = "f" * 64
    evidence = await beside(engine, OTHER, sound).prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.mixed_batch is not None
    assert evidence.mixed_batch.neighbour == pytest.approx(0)
    assert evidence.warnings == ()
    assert engine.together[-2:] == [[BASE, DIGEST], [BASE, DIGEST, sound]]


async def test_what_an_adapter_does_in_company_alone_is_no_evidence_against_its_digest() -> None:
    class Engine(MemoryEngine):
        async def logprobs_together(
            self, adapter: str, neighbour: str | None, texts: Sequence[str]
        ) -> tuple[list[list[float]], list[list[float]], list[list[float]] | None]:
            raise AdapterNotFinite("its numbers are none")

    with pytest.raises(MixedBatchDiffers) as raised:
        await beside(Engine(), OTHER).prove(DIGEST, effect_is_zero=False, reference=None)
    assert not isinstance(raised.value, ENGINE_EVIDENCE)


async def test_an_adapter_that_answers_differently_alone_after_the_mixed_batch_is_convicted() -> None:
    class Engine(MemoryEngine):
        async def logprobs_together(
            self, adapter: str, neighbour: str | None, texts: Sequence[str]
        ) -> tuple[list[list[float]], list[list[float]], list[list[float]] | None]:
            self.not_finite.add(adapter)
            return await super().logprobs_together(adapter, neighbour, texts)

    with pytest.raises(LogprobsNotFinite):
        await beside(Engine()).prove(DIGEST, effect_is_zero=False, reference=None)


async def test_rounding_in_company_is_no_difference() -> None:
    engine = MemoryEngine(mixed_shifts={BASE: -0.04, DIGEST: -0.07, OTHER: -0.07})
    evidence = await beside(engine, OTHER).prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.mixed_batch is not None
    assert evidence.mixed_batch.base == pytest.approx(0.04)


async def test_what_is_remembered_of_a_neighbour_is_asked_again_before_anyone_is_blamed() -> None:
    engine = MemoryEngine()
    asking = beside(engine, OTHER, DIGEST)
    await asking.prove(OTHER, effect_is_zero=False, reference=None)
    engine.effects[OTHER] = 1.5  # another engine since: what was remembered is old
    evidence = await asking.prove(DIGEST, effect_is_zero=False, reference=None)
    assert evidence.mixed_batch is not None
    assert evidence.mixed_batch.neighbour == pytest.approx(0)


@pytest.mark.parametrize("cut", [DIGEST, BASE])
async def test_an_engine_that_goes_away_in_the_midst_says_nothing_of_the_adapter(cut: str) -> None:
    class Engine(MemoryEngine):
        async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
            if model == cut:
                raise EngineCut("the engine closed the connection before its response was complete")
            return await super().logprobs(model, texts)

    engine = Engine()
    with pytest.raises(EngineCut):
        await beside(engine).prove(DIGEST, effect_is_zero=False, reference=None)
    with pytest.raises(EngineCut):
        await (beside(engine).answers(DIGEST) if cut == DIGEST else beside(engine).check_base())
    assert engine.restarts == []


async def test_a_measurement_that_waits_too_long_for_other_proofs_is_refused() -> None:
    engine = MemoryEngine()
    asking = Prober(engine, BASE, engine.restart, timeout_s=0.05)
    async with asking._turn:
        with pytest.raises(Unavailable) as raised:
            await asking.perplexity(DIGEST)
    assert (raised.value.status, raised.value.headers["retry-after"]) == (503, "30")
    asking._timeout_s = 240.0  # it was for the wait alone
    assert (await asking.perplexity(DIGEST)).ratio == pytest.approx(engine.perplexity)
