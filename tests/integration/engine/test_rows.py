"""GroupedPunica against the definition of LoRA, with vLLM's own data structures and no model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

IN, OUT, RANK, SLOTS = 48, (32, 16), 8, 4
Plugin = Any


@pytest.fixture(scope="module")
def plugin() -> Plugin:
    """The plugin's module; importing vLLM warns of others' deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from service.engine.plugin import rows

        return rows


@dataclass
class Layer:
    """One layer's slots as vLLM holds them, and a wrapper that knows them."""

    wrapper: Any
    lora_a: tuple[torch.Tensor, ...]
    lora_b: tuple[torch.Tensor, ...]

    def update(self, slots: Sequence[int], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the wrapper makes of y for rows that use `slots`."""
        announce(self.wrapper, slots)
        got = y.clone()
        self.wrapper.add_lora_linear(got, x, self.lora_a, self.lora_b, 1.0, OUT)
        return got

    def expected(self, slots: Sequence[int], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + B A x, row by row, in float64."""
        want = y.double().clone()
        for row, slot in enumerate(slots):
            if slot >= 0:
                parts = [
                    b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double())
                    for a, b in zip(self.lora_a, self.lora_b, strict=True)
                ]
                want[row] += torch.cat(parts)
        return want


def announce(wrapper: Any, slots: Sequence[int]) -> None:
    """Tell the wrapper of a step, as vLLM's manager does: adapter ids are slots plus one, 0 for none."""
    from vllm.lora.layers import LoRAMapping

    ids = tuple(slot + 1 for slot in slots)
    mapping = LoRAMapping(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
    wrapper.update_metadata(mapping, [slot + 1 for slot in range(SLOTS)], SLOTS + 1, 64)


def random_layer(plugin: Plugin, dtype: torch.dtype) -> Layer:
    generator = torch.Generator().manual_seed(1)
    wrapper = plugin.GroupedPunica(256, 64, torch.device("cpu"))
    lora_a = tuple(torch.zeros(SLOTS, 1, RANK, IN, dtype=dtype) for _ in OUT)
    lora_b = tuple(torch.zeros(SLOTS, 1, width, RANK, dtype=dtype) for width in OUT)
    for slot in range(SLOTS):
        ranks = [RANK - slot, 0 if slot == 2 else RANK]  # true ranks differ; one slot leaves a slice alone
        for part, rank in enumerate(ranks):
            lora_a[part][slot, 0, :rank] = torch.randn(rank, IN, generator=generator).to(dtype)
            lora_b[part][slot, 0, :, :rank] = torch.randn(OUT[part], rank, generator=generator).to(dtype)
        wrapper.loaded(lora_a, lora_b, slot, ranks)
    return Layer(wrapper, lora_a, lora_b)


@pytest.fixture
def layer(plugin: Plugin) -> Layer:
    return random_layer(plugin, torch.bfloat16)


def inputs(rows: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(rows, IN, generator=generator).to(dtype),
        torch.randn(rows, sum(OUT), generator=generator).to(dtype),
    )


STEPS = {
    "one row": [0],
    "decode, all different": [3, -1, 0, 2, 1, -1],
    "decode, scattered": [0, 1, 0, -1, 1, 0],
    "prefill of one": [2] * 40,
    "prefill between base rows": [-1] * 5 + [1] * 30 + [-1] * 7,
    "prefill beside decode": [0] * 20 + [1, -1, 2] + [3] * 17,
    "interleaved": [0, 1] * 20 + [-1] * 3,
    "large and interleaved": [0, 1] * 70 + [-1] * 3,
    "a prompt, and its adapter's other rows": [2, 1] + [2] * 30 + [-1, 2],
    "base alone": [-1] * 9,
}


@pytest.mark.parametrize("slots", STEPS.values(), ids=STEPS.keys())
def test_each_row_gets_its_own_adapter_and_no_other(layer: Layer, slots: list[int]) -> None:
    x, y = inputs(len(slots))
    got = layer.update(slots, x, y)
    torch.testing.assert_close(got.double(), layer.expected(slots, x, y), rtol=2e-2, atol=2e-2)
    for row, slot in enumerate(slots):
        assert torch.equal(got[row], y[row]) == (slot < 0), f"row {row} of slot {slot}"


@pytest.mark.parametrize("slots", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float32, 2**-20), (torch.float16, 2**-10)], ids=str
)
def test_the_update_is_rounded_once(plugin: Plugin, dtype: torch.dtype, unit: float, slots: list[int]) -> None:
    layer = random_layer(plugin, dtype)
    x, y = inputs(len(slots), dtype)
    got = layer.update(slots, x, y).double()
    # float32 and, for bfloat16, 16 bits in between: nothing beside the rounding of the result
    torch.testing.assert_close(got, layer.expected(slots, x, y), rtol=unit, atol=2e-3 if unit > 2**-20 else 1e-4)


@pytest.mark.parametrize("exact", [True, False], ids=["units for bfloat16", "none"])
def test_products_of_bfloat16_are_as_good_without_units_for_them(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    from service.engine.plugin import stack

    if exact and not stack.products_keep_remainders():
        pytest.skip("this CPU rounds products of bfloat16 in between")
    monkeypatch.setattr(stack, "products_keep_remainders", lambda: exact)
    slots = [0] * 40
    layer = random_layer(plugin, torch.bfloat16)
    x, y = inputs(len(slots))
    want = layer.expected(slots, x, y)
    torch.testing.assert_close(layer.update(slots, x, y).double(), want, rtol=2**-8, atol=2e-3)


def test_numbers_that_an_adapter_leaves_alone_stay_as_they_are(layer: Layer) -> None:
    for part in range(len(OUT)):
        layer.lora_b[part][0] = 0
    layer.wrapper.loaded(layer.lora_a, layer.lora_b, 0, [RANK, RANK])
    x, _ = inputs(1)
    bits = torch.arange(2**16 // sum(OUT) * sum(OUT), dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    y = bits.view(-1, sum(OUT)).clone()
    got = y.clone()
    for first in range(0, len(y), 8):  # too few rows for a product
        rows = slice(first, first + 8)
        part = got[rows].clone()
        announce(layer.wrapper, [0] * len(part))
        layer.wrapper.add_lora_linear(part, x.expand(len(part), -1), layer.lora_a, layer.lora_b, 1.0, OUT)
        got[rows] = part
    torch.testing.assert_close(got, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("slots", [[0, 1, -1, 2, 1], [0] * 20 + [1] * 20 + [-1] * 20 + [2]])
def test_nan_stays_in_the_rows_of_its_adapter(layer: Layer, slots: list[int]) -> None:
    x, y = inputs(len(slots))
    sound = layer.update(slots, x, y)
    for part in range(len(OUT)):
        layer.lora_b[part][1] = float("nan")
    layer.wrapper.loaded(layer.lora_a, layer.lora_b, 1, [RANK - 1, RANK])
    got = layer.update(slots, x, y)
    for row, slot in enumerate(slots):
        if slot == 1:
            assert got[row].isnan().any()
        else:
            assert torch.equal(got[row], sound[row])


def test_nan_in_one_row_stays_there(layer: Layer) -> None:
    slots = [0, 0, 1, -1]
    x, y = inputs(len(slots))
    sound = layer.update(slots, x, y)
    x[1, 3] = float("nan")
    got = layer.update(slots, x, y)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2, 3]], sound[[0, 2, 3]])


def test_a_refilled_slot_serves_the_new_adapter(layer: Layer) -> None:
    slots = [3, 3, -1]
    x, y = inputs(len(slots))
    for part in range(len(OUT)):
        layer.lora_a[part][3] = 0
        layer.lora_b[part][3] = 0
        layer.lora_a[part][3, 0, :2] = 0.5
        layer.lora_b[part][3, 0, :, :2] = 0.25
    layer.wrapper.loaded(layer.lora_a, layer.lora_b, 3, [2, 2])
    torch.testing.assert_close(layer.update(slots, x, y).double(), layer.expected(slots, x, y), rtol=2e-2, atol=2e-2)


def test_the_output_layer_leaves_base_rows_and_adapters_without_it_alone(plugin: Plugin) -> None:
    wrapper = plugin.GroupedPunica(256, 64, torch.device("cpu"))
    vocabulary = 50
    lora_a = torch.full((SLOTS, 1, RANK, IN), 0.1)
    lora_b = torch.full((SLOTS, 1, vocabulary + 14, RANK), 0.1)  # padded, as vLLM pads it
    for slot in range(SLOTS):
        wrapper.loaded(lora_a, lora_b, slot, [0 if slot == 1 else RANK])
    announce(wrapper, [0, 1, -1])
    x = torch.ones(3, IN)
    y = torch.zeros(3, vocabulary)
    wrapper.add_lora_logits(y, x, lora_a, lora_b, 2.0)
    torch.testing.assert_close(y[0], torch.full((vocabulary,), 2 * 0.1 * RANK * 0.1 * IN))
    assert not y[1:].any()


def test_shrink_and_expand_of_sharded_layers_make_the_same_update(layer: Layer) -> None:
    slots = [1, -1, 0, 3]
    x, y = inputs(len(slots))
    announce(layer.wrapper, slots)
    buffer = torch.zeros(len(OUT), len(slots), RANK)
    layer.wrapper.add_shrink(buffer, x, layer.lora_a, 1.0)
    got = y.clone()
    layer.wrapper.add_expand(got, buffer, layer.lora_b, OUT)
    torch.testing.assert_close(got.double(), layer.expected(slots, x, y), rtol=2e-2, atol=2e-2)
    assert torch.equal(got[1], y[1])


def test_embedding_rows_without_an_adapter_are_left_alone(layer: Layer) -> None:
    announce(layer.wrapper, [2, -1])
    y = torch.zeros(2, OUT[0])
    layer.wrapper.add_lora_embedding(y, torch.ones(2, RANK), layer.lora_b[0])
    torch.testing.assert_close(y[0], layer.lora_b[0][2, 0].float().sum(dim=1))
    assert not y[1].any()


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        ([0.0, 1.0, -2.0], 0),
        ([-torch.inf, 1.0, -torch.inf], 0),
        ([torch.nan, 1.0, 2.0], 1),
        ([1.0, torch.inf, 2.0], 1),
        ([-torch.inf, torch.nan, -torch.inf], 1),
        ([-torch.inf, -torch.inf, -torch.inf], 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_logits_is_broken_when_it_is_not_a_distribution(
    plugin: Plugin, row: list[float], broken: int, dtype: torch.dtype
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from service.engine.plugin.containment import broken_rows
    sound = [0.5] * 64
    logits = torch.tensor([sound, row + [-1.0] * 61 if broken == 0 else row * 21 + row[:1], sound], dtype=dtype)
    assert broken_rows(logits).tolist() == [0, broken, 0]


def test_groups_hold_every_row_with_an_adapter_once(plugin: Plugin) -> None:
    slots = np.array([0] * 20 + [1, -1, 2, 1] + [3, -1] * 18, dtype=np.int64)
    groups = plugin.group_rows(slots)
    seen = np.full(len(slots), -1)
    for slot, rows in groups.every:
        assert (seen[np.arange(len(slots))[rows]] == -1).all()
        seen[np.arange(len(slots))[rows]] = slot
    assert (seen == slots).all()


def test_a_layer_that_gets_only_a_part_of_the_step_is_refused(layer: Layer) -> None:
    x, y = inputs(8)
    announce(layer.wrapper, [-1, 0, -1, -1, -1, 1, -1, -1])
    layer.wrapper.add_lora_linear(y[:6], x[:6], layer.lora_a, layer.lora_b, 1.0, OUT)
    with pytest.raises(IndexError, match="5 rows of a step in which row 5"):
        layer.wrapper.add_lora_linear(y[:5], x[:5], layer.lora_a, layer.lora_b, 1.0, OUT)


def test_ranks_that_several_processes_share_are_computed_from_vllms_own_slots(plugin: Plugin) -> None:
    wrapper = plugin.GroupedPunica(256, 64, torch.device("cpu"))
    lora_a = (torch.zeros(SLOTS, 1, RANK // 2, IN),)
    lora_b = (torch.zeros(SLOTS, 1, OUT[0], RANK),)
    wrapper.loaded(lora_a, lora_b, 1, [RANK])
    assert not plugin.Stack.fits(lora_a, lora_b)


def test_a_part_that_covers_several_slices_counts_for_each(plugin: Plugin) -> None:
    from types import SimpleNamespace

    wide, narrow = torch.zeros(8, IN), torch.zeros(4, IN)
    weights = SimpleNamespace(lora_a=[wide, narrow], lora_b=[torch.zeros(3, 8), torch.zeros(3, 4)])
    module = SimpleNamespace(expand_packed_lora=lambda a, b: ([a[0], a[0], a[0], a[1]], [b[0], b[0], b[0], b[1]]))
    assert plugin.true_ranks(weights, 4, module) == [8, 8, 8, 4]
    assert plugin.true_ranks(weights, 2) == [8, 4]
    assert plugin.true_ranks(SimpleNamespace(lora_a=[None, narrow], lora_b=[None, None]), 2) == [0, 4]


def test_a_copy_that_fails_leaves_the_slot_empty(layer: Layer) -> None:
    slots = [3, -1]
    x, y = inputs(len(slots))
    with pytest.raises(ValueError, match="broadcast"):
        layer.wrapper.loaded(layer.lora_a, layer.lora_b, 3, [RANK + 1, RANK])
    assert torch.equal(layer.update(slots, x, y), y)
