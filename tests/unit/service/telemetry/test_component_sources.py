"""What the rooms around the data path have counted arrives in the metrics: read from the real parts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from service.access.caller import Caller, Limits, Scope
from service.access.limits import KeyLimiter
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.admission.request import AdmissionRequest
from service.engine.residency import Residency
from service.errors import RateLimited, Unavailable
from service.grounding.counts import GroundingCounts
from service.registry.catalog import Servable
from service.registry.counts import RegistryCounts
from service.registry.revalidation import RevalidationState
from service.registry.verdicts import VerdictSummary
from service.structured.checker import StructuredOutputs
from service.telemetry.account import MetricsAccount
from service.telemetry.admission import AdmissionSource, ResidencySource
from service.telemetry.component_sources import (
    GroundingSource,
    LimitsSource,
    RegistrySource,
    StructuredSource,
    TrainerSource,
    VerdictsSource,
)
from service.usage.account import UsageSource
from tests.unit.service.inference.fakes import catalog
from tests.unit.service.telemetry.support import BASE_TARGET, VOICE, caller, read, record, value

OF_VOICE = {"project": "default", "adapter": "voice", "version": "3"}


def counted() -> MetricsAccount:
    """An account that has seen `voice@3`, which the catalog knows in this project, and the base."""
    account = MetricsAccount(catalog(), 100)
    account(record(caller=caller("default")))
    account(record(target=BASE_TARGET))
    return account


async def test_the_gate_shows_who_waits_who_is_in_and_who_was_refused() -> None:
    gate = AdmissionQueue(Policy(width=2, common=2, slots=2, queue_size=2, queue_share=1.0))
    shown = AdmissionSource(gate, 2, counted())
    loop = asyncio.get_running_loop()

    def ticket(background: bool = False) -> AdmissionRequest:
        return AdmissionRequest("shop", "key_1", VOICE.digest, 10, background)

    inside = [await gate.enter(ticket(), loop.time() + 60) for _ in range(2)]
    waiting = [asyncio.create_task(gate.enter(ticket(), loop.time() + 60)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises((RateLimited, Unavailable)):
        await gate.enter(ticket(), loop.time() + 60)
    samples = read(await shown.families())
    assert value(samples, "hatrack_admission_queued", **{"class": "caller"}) == 2
    assert value(samples, "hatrack_admission_queued", **{"class": "background"}) == 0
    assert value(samples, "hatrack_admission_queue_limit") == 2
    assert value(samples, "hatrack_admission_in_engine", **{"class": "caller"}) == 2
    assert value(samples, "hatrack_admission_width") == 2
    assert value(samples, "hatrack_admission_granted_total", **{"class": "caller"}) == 2
    assert value(samples, "hatrack_admission_refused_total") == 1
    assert value(samples, "hatrack_engine_slots_in_use") == 1
    assert value(samples, "hatrack_adapter_requests_running", **OF_VOICE) == 2
    assert value(samples, "hatrack_adapter_requests_queued", **OF_VOICE) == 2
    assert value(samples, "hatrack_adapter_requests_running", adapter="(base)") == 0
    for place in inside:
        place.leave(10)
    for place in await asyncio.gather(*waiting):
        place.leave(10)
    again = await gate.enter(ticket(background=True), loop.time() + 60)
    samples = read(await shown.families())
    assert value(samples, "hatrack_admission_in_engine", **{"class": "background"}) == 1
    assert value(samples, "hatrack_admission_granted_total", **{"class": "background"}) == 1
    assert value(samples, "hatrack_admission_granted_total", **{"class": "caller"}) == 4
    again.leave(None)


class Engine:
    """An engine that has ``loaded`` in its memory."""

    def __init__(self, *loaded: str) -> None:
        self.loaded = list(loaded)

    async def report(self, *, loaded: bool = False) -> dict[str, Any]:
        return {"loaded": self.loaded} if loaded else {}


async def test_residency_is_shown_once_the_engine_was_asked() -> None:
    residency = Residency(Engine("f" * 64, "0" * 64))
    shown = ResidencySource(residency, counted())
    samples = read(await shown.families())
    assert value(samples, "hatrack_engine_cold_loads_total") == 0
    assert not [name for name, _ in samples if "resident" in name]
    residency.engine_changed(ready=True)
    await residency.poll()
    samples = read(await shown.families())
    assert value(samples, "hatrack_engine_resident_adapters") == 2
    assert value(samples, "hatrack_adapter_resident", **OF_VOICE) == 0
    assert value(samples, "hatrack_adapter_resident") == 0, "the base is no adapter"
    residency.loaded("d" * 64, 0.75)
    samples = read(await shown.families())
    assert value(samples, "hatrack_adapter_resident", **OF_VOICE) == 1
    assert value(samples, "hatrack_engine_cold_loads_total") == 1
    assert value(samples, "hatrack_engine_cold_load_seconds_total") == 0.75


async def test_limits_hit_are_shown_by_their_name() -> None:
    limiter = KeyLimiter()
    limited = Caller("key_1", "shop", frozenset({Scope.INFER}), limits=Limits(concurrent=1))
    lease = limiter.enter(limited)
    with pytest.raises(RateLimited):
        limiter.enter(limited)
    lease.close(None)
    samples = read(await LimitsSource(limiter).families())
    assert value(samples, "hatrack_limit_hits_total", limit="concurrent") == 1
    assert value(samples, "hatrack_limit_hits_total", limit="tokens_per_day") == 0


class Usage:
    rows_written = 7
    failed_flushes = 1
    pending_rows = 2


async def test_usage_is_shown() -> None:
    samples = read(await UsageSource(Usage()).families())
    assert value(samples, "hatrack_usage_rows_written_total") == 7
    assert value(samples, "hatrack_usage_rows_pending") == 2
    assert value(samples, "hatrack_usage_write_errors_total") == 1


class Registry:
    def __init__(self) -> None:
        self.counts = RegistryCounts.of(catalog().snapshot, {"proving": 1, "rejected": 4})


async def test_versions_are_shown_by_state_and_whether_they_serve() -> None:
    samples = read(await RegistrySource(Registry()).families())
    versions = "hatrack_registry_versions"
    assert value(samples, "hatrack_registry_adapters") == 4
    assert value(samples, versions, state="ready", servable=Servable.OK) == 5
    assert value(samples, versions, state="ready", servable=Servable.OTHER_BASE) == 1
    assert value(samples, versions, state="ready", servable=Servable.DAMAGED) == 0
    assert value(samples, versions, state="proving", servable="") == 1
    assert value(samples, versions, state="rejected", servable="") == 4
    assert value(samples, "hatrack_registry_pins") == 0
    assert value(samples, "hatrack_registry_splits") == 0


class Verdicts:
    async def standing(self) -> VerdictSummary:
        return VerdictSummary(
            {RevalidationState.FRESH: 5, RevalidationState.DUE: 2, RevalidationState.FAILED: 0}, live_failed=3
        )


async def test_versions_are_shown_by_what_their_verdicts_are_worth() -> None:
    samples = read(await VerdictsSource(Verdicts()).families())
    states = {state: value(samples, "hatrack_versions_revalidation", state=state) for state in RevalidationState}
    assert states == {RevalidationState.FRESH: 5, RevalidationState.DUE: 2, RevalidationState.FAILED: 0}
    assert value(samples, "hatrack_live_versions_failed") == 3


@dataclass
class Trainer:
    state: Literal["off", "starting", "up", "down"]
    paused_s: float | None = None
    webhook: dict[str, int] = field(default_factory=dict)


async def test_a_trainer_that_is_wanted_is_shown_as_up_or_not() -> None:
    for state, shown in (("starting", 0), ("up", 1), ("down", 0)):
        samples = read(await TrainerSource(Trainer(state)).families())
        assert value(samples, "hatrack_trainer_up") == shown
    assert not read(await TrainerSource(Trainer("off")).families())


async def test_the_pauses_of_trainings_are_shown_once_the_trainer_has_said_them() -> None:
    samples = read(await TrainerSource(Trainer("down", 12.5)).families())
    assert value(samples, "hatrack_trainer_paused_seconds_total") == 12.5
    names = {name for name, _ in read(await TrainerSource(Trainer("up")).families())}
    assert names == {"hatrack_trainer_up"}


async def test_the_webhooks_events_are_shown_if_there_is_one() -> None:
    webhook = {"delivered": 5, "failed": 1, "waiting": 2}
    samples = read(await TrainerSource(Trainer("up", webhook=webhook)).families())
    assert value(samples, "hatrack_trainer_webhook_events_total", outcome="delivered") == 5
    assert value(samples, "hatrack_trainer_webhook_events_total", outcome="failed") == 1
    assert value(samples, "hatrack_trainer_webhook_waiting") == 2


async def test_structured_outputs_by_outcome_and_whether_they_are_tried() -> None:
    outputs = StructuredOutputs(compile_s=1.0, token_ms=1.0, wait_s=1.0)
    outputs.counts.note("refused")
    outputs.counts.cpu_s = 1.5
    page = read(await StructuredSource([outputs]).families())
    assert value(page, "hatrack_structured_outputs_total", outcome="refused") == 1
    assert value(page, "hatrack_structured_outputs_total", outcome="passed") == 0
    assert value(page, "hatrack_structured_cpu_seconds_total") == 1.5
    assert "hatrack_structured_trial_up" not in {name for name, _ in page}


async def test_retrievals_by_provider_and_outcome() -> None:
    counts = GroundingCounts()
    counts.record("embedded", "ok", 0.015, 4)
    counts.record("embedded", "ok", 0.3, 2)
    counts.record("webhook", "late", 2.0, 0)
    counts.record_unusable("webhook", 3)
    page = read(await GroundingSource(counts).families())
    assert value(page, "hatrack_grounding_requests_total", provider="embedded", outcome="ok") == 2
    assert value(page, "hatrack_grounding_requests_total", provider="webhook", outcome="late") == 1
    assert value(page, "hatrack_grounding_passages_total", provider="embedded") == 6
    assert value(page, "hatrack_grounding_unusable_passages_total", provider="webhook") == 3
    assert value(page, "hatrack_grounding_seconds_count", provider="embedded") == 2
    assert value(page, "hatrack_grounding_seconds_bucket", provider="embedded", le="0.02") == 1
