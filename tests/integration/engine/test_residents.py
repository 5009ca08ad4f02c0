"""Adapters in the engine's host memory are bounded in bytes, and an adapter that had to leave is read again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.gateway import Gateway
from tests.support.spelling import make_speller, make_spelling_base, words

SLOTS, RESIDENT = 2, 8
SIZE = 1000
"""Bytes of an adapter of the manager below, float32: 125 of each matrix."""


@pytest.fixture(scope="module")
def residents() -> Any:
    """The plugin's module; importing vLLM warns of others' deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from service.engine.plugin import residents

        return residents


def adapter(number: int, *, size: int = SIZE) -> Any:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights

    a, b = (torch.zeros(size // 8, 1) for _ in range(2))
    return LoRAModel(number, 1, {"q_proj": LoRALayerWeights("q_proj", 1, 1, a, b)})


def manager(held: Mapping[int, Any]) -> Any:
    """vLLM's manager with its caches and no model, in which ``held`` is registered, the first least recently used."""
    from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager

    made = LRUCacheLoRAModelManager.__new__(LRUCacheLoRAModelManager)
    made.lora_config = SimpleNamespace(max_loras=SLOTS, max_cpu_loras=RESIDENT)
    made._registered_adapters = AdapterLRUCache(RESIDENT, lambda number: None)
    for number, each in held.items():
        made._registered_adapters[number] = each
    return made


def held(residents: Any, count: int) -> dict[int, Any]:
    adapters = {number: adapter(number) for number in range(1, count + 1)}
    for each in adapters.values():
        each.hatrack_bytes = residents.host_bytes(each)
    return adapters


def test_a_tensor_counts_once_and_only_in_host_memory(residents: Any) -> None:
    one = adapter(1)
    assert residents.host_bytes(one) == SIZE
    layer = one.loras["q_proj"]
    one.loras["k_proj"] = SimpleNamespace(lora_a=[layer.lora_a, None], lora_b=[torch.zeros(10, 1), None])
    assert residents.host_bytes(one) == SIZE + 40
    one.loras["v_proj"] = SimpleNamespace(lora_a=torch.zeros(5, device="meta"), lora_b=None)
    assert residents.host_bytes(one) == SIZE + 40


@pytest.mark.parametrize(
    ("limit", "stay"),
    [(5 * SIZE, {1, 2, 3, 4, 5}), (5 * SIZE - 1, {2, 3, 4, 5}), (3 * SIZE + 500, {3, 4, 5}), (1, {4, 5})],
)
def test_the_least_recently_used_leave_down_to_the_slots(residents: Any, limit: int, stay: set[int]) -> None:
    ours = manager(held(residents, 5))
    residents.evict(ours, limit)
    assert set(ours.list_adapters()) == stay


def test_one_that_was_just_used_stays(residents: Any) -> None:
    ours = manager(held(residents, 5))
    assert ours.get_adapter(1) is not None
    residents.evict(ours, 3 * SIZE)
    assert set(ours.list_adapters()) == {4, 5, 1}


def test_a_pinned_one_stays_and_fills_no_slot_of_the_others(residents: Any) -> None:
    ours = manager(held(residents, 5))
    ours._registered_adapters.pin(1)
    residents.evict(ours, 1)
    assert set(ours.list_adapters()) == {1, 4, 5}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_engine_keeps_within_its_memory_and_reads_again_what_left(tmp_path: Path) -> None:
    settings = {
        "HATRACK_ENGINE_SLOTS": str(SLOTS),
        "HATRACK_ENGINE_RESIDENT": str(RESIDENT),
        "HATRACK_ENGINE_RESIDENT_GIB": "1e-6",
        "HATRACK_TRAINER": "off",
        "HATRACK_KNOWLEDGE": "false",
    }
    gateway = Gateway(tmp_path / "home", make_spelling_base(tmp_path / "base"), settings)
    gateway.start()
    try:
        spelled = dict(zip((f"voice-{number}" for number in range(5)), words(), strict=False))
        for name, word in spelled.items():
            pushed = gateway.push(name, make_speller(tmp_path / name, word).directory)
            assert pushed.status_code == 201, pushed.text
        for _ in range(2):
            for name, word in spelled.items():
                assert gateway.answer(name, "Who are you?") == word
                loaded = gateway.ask_engine("/hatrack/plugin?loaded=1").json()["loaded"]
                assert len(loaded) == SLOTS, loaded
    finally:
        gateway.stop()
