from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.runs import ParentShape
from trainer.errors import InvalidHyperparameter
from trainer.tune.auto import DatasetStats, choose, max_length
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.memory import EAGER_MAX_TOKENS, ModelShape, estimate, read_shape
from trainer.tune.recipe import Recipe

FEW = DatasetStats(examples=80, tokens=4_000, longest=90)
MANY = DatasetStats(examples=9_000, tokens=450_000, longest=120)


def chosen(wish: HyperparameterRequest, stats: DatasetStats = FEW, **changes: Any) -> tuple[Recipe, dict[str, str]]:
    options: dict[str, Any] = {
        "hidden_size": 576,
        "max_rank": 32,
        "length": 1024,
        "seed": 3,
        "on_gpu": False,
        "parent": None,
    }
    return choose(wish, stats, **(options | changes))


def test_everything_that_is_left_open_is_chosen_and_explained() -> None:
    recipe, why = chosen(HyperparameterRequest())
    assert (recipe.rank, recipe.alpha, recipe.batch_size, recipe.epochs) == (16, 32.0, 4, 3)
    assert recipe.learning_rate == 1.3e-3  # with which the figures for this width were measured
    assert (recipe.quantization, recipe.max_length, recipe.seed) == ("none", 1024, 3)
    shape = {"lora_rank", "lora_alpha"}
    assert set(why) == shape | {
        *("batch_size", "n_epochs", "learning_rate", "quantization", "max_length", "micro_batch_tokens"),
        "early_stopping_patience",
    }
    assert why["batch_size"].startswith("4: 80 examples make 20 steps")


@pytest.mark.parametrize(
    ("examples", "epochs"), [(49, 4), (50, 3), (999, 3), (1000, 2), (4000, 2), (5999, 2), (6000, 1)]
)
def test_the_fewer_examples_the_more_epochs(examples: int, epochs: int) -> None:
    recipe, why = chosen(HyperparameterRequest(), DatasetStats(examples=examples, tokens=50 * examples, longest=120))
    assert recipe.epochs == epochs
    assert why["n_epochs"].startswith(f"{epochs}: ")


def test_many_examples_are_seen_once_in_large_batches_and_wide_models_learn_slower() -> None:
    recipe, _ = chosen(HyperparameterRequest(), MANY, hidden_size=4096)
    assert (recipe.batch_size, recipe.epochs) == (16, 1)
    assert recipe.learning_rate == 2e-4


@pytest.mark.parametrize(("width", "published"), [(4096, 2e-4), (5120, 2e-4), (6656, 1e-4), (8192, 1e-4)])
def test_the_rate_is_near_that_of_qlora_for_llamas_widths(width: int, published: float) -> None:
    assert published / 1.3 < chosen(HyperparameterRequest(), hidden_size=width)[0].learning_rate < 1.3 * published


def test_what_was_asked_for_stays() -> None:
    wish = HyperparameterRequest(
        n_epochs=7,
        batch_size=2,
        learning_rate=1e-4,
        lora_rank=8,
        lora_alpha=8,
        quantization="nf4",
        rslora=True,
        max_length=1024,
    )
    recipe, why = chosen(wish)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.rank, recipe.alpha) == (7, 2, 1e-4, 8, 8)
    assert (recipe.quantization, recipe.rslora, set(why)) == (
        "nf4",
        True,
        {"micro_batch_tokens", "early_stopping_patience"},
    )


def test_on_a_gpu_the_base_is_quantized() -> None:
    recipe, why = chosen(HyperparameterRequest(), on_gpu=True)
    assert (recipe.quantization, recipe.micro_batch_tokens) == ("nf4", 4096)
    assert why["micro_batch_tokens"].startswith("4096: a GPU")


def test_what_makes_no_recipe_is_told_by_the_name_that_it_was_asked_for_by() -> None:
    with pytest.raises(InvalidHyperparameter) as caught:
        chosen(HyperparameterRequest.model_construct(lora_dropout=3.0))
    assert (caught.value.param, "3.0" in caught.value.message) == ("lora_dropout", True)


def test_a_multiplier_is_of_the_rate_that_would_be_chosen() -> None:
    usual = chosen(HyperparameterRequest())[0].learning_rate
    assert chosen(HyperparameterRequest(learning_rate_multiplier=2.0))[0].learning_rate == pytest.approx(
        2 * usual, rel=0.02
    )
    with pytest.raises(InvalidHyperparameter) as caught:
        chosen(HyperparameterRequest(learning_rate_multiplier=2.0, learning_rate=1e-3))
    assert caught.value.param == "learning_rate_multiplier"
    twice = chosen(HyperparameterRequest(learning_rate_multiplier=2.0))[0].learning_rate
    assert chosen(HyperparameterRequest(learning_rate_multiplier=2.0, learning_rate=twice))[0].learning_rate == twice


def test_a_rank_that_the_engine_does_not_serve_is_refused_and_auto_stays_below() -> None:
    with pytest.raises(InvalidHyperparameter, match="serves 8 at most"):
        chosen(HyperparameterRequest(lora_rank=16), max_rank=8)
    assert chosen(HyperparameterRequest(), max_rank=8)[0].rank == 8


def test_the_parents_shape_stays() -> None:
    parent = ParentShape(rank=4, alpha=9.0, rslora=True, target_modules=("q_proj",))
    recipe, why = chosen(HyperparameterRequest(lora_rank=4), parent=parent)
    assert (recipe.rank, recipe.alpha, recipe.rslora, recipe.target_modules) == (4, 9.0, True, ("q_proj",))
    assert (why["lora_rank"], why["lora_alpha"]) == ("4: the parent's", "9: the parent's")
    assert why["target_modules"] == "q_proj: the parent's"
    assert why["max_length"].startswith(f"{recipe.max_length}: ")
    assert "max_length" not in chosen(HyperparameterRequest(max_length=512))[1]
    with pytest.raises(InvalidHyperparameter, match="parent has 4"):
        chosen(HyperparameterRequest(lora_rank=8), parent=parent)
    with pytest.raises(InvalidHyperparameter, match="parent has q_proj"):
        chosen(HyperparameterRequest(target_modules=("v_proj",)), parent=parent)


def test_the_longest_example_is_bounded_by_engine_and_base() -> None:
    assert max_length(HyperparameterRequest(), context=2048, positions=8192) == 2048
    assert max_length(HyperparameterRequest(), context=None, positions=131_072) == 4096
    assert max_length(HyperparameterRequest(max_length=512), context=2048, positions=8192) == 512
    with pytest.raises(InvalidHyperparameter, match="2048 at most"):
        max_length(HyperparameterRequest(max_length=4096), context=2048, positions=8192)


SMOL = ModelShape(
    layers=30, hidden=576, heads=9, intermediate=1536, vocabulary=49_152, weights=134_515_008, embeddings=28_311_552
)


def test_memory_counts_what_it_should() -> None:
    recipe = Recipe(rank=16, batch_size=16)
    need = estimate(SMOL, recipe, longest=104, fused=False)
    assert need.base == 2 * SMOL.weights
    assert 0.4e9 < need.activations < 4e9
    assert f"{need.total / 2**30:.1f} GiB" in need.describe()
    less = {
        "nf4": estimate(SMOL, recipe.model_copy(update={"quantization": "nf4"}), longest=104, fused=False).base,
        "half": 2
        * estimate(SMOL, recipe.model_copy(update={"micro_batch_tokens": 256}), longest=104, fused=False).activations,
        "recomputed": 2
        * estimate(
            SMOL, recipe.model_copy(update={"gradient_checkpointing": True}), longest=104, fused=False
        ).activations,
        "fused": estimate(SMOL, recipe, longest=104, fused=True).activations,
    }
    assert less["nf4"] < need.base
    assert all(less[name] < need.activations for name in ("half", "recomputed", "fused"))


LLAMA_8B = ModelShape(
    layers=32, hidden=4096, heads=32, intermediate=14_336, vocabulary=128_256, weights=8_030_261_248,
    embeddings=1_050_673_152, streams=True,
)  # fmt: skip


def test_a_micro_batch_counts_and_not_the_batch() -> None:
    recipe = Recipe(batch_size=16, quantization="nf4", gradient_checkpointing=True, micro_batch_tokens=4096)
    one = estimate(LLAMA_8B, recipe, longest=4096, fused=True)
    assert one.activations < 4 * 2**30
    assert one.total < 12 * 2**30
    large = recipe.model_copy(update={"batch_size": 256})
    assert estimate(LLAMA_8B, large, longest=4096, fused=True) == one
    # what a step in one pass took
    whole = recipe.model_copy(update={"micro_batch_tokens": 16 * 4096})
    assert estimate(LLAMA_8B, whole, longest=4096, fused=True).activations > 40 * 2**30
    # a step of few tokens takes no more than these, and a long example is never divided
    few = estimate(LLAMA_8B, recipe, longest=16, fused=True).activations
    assert few < one.activations / 10
    tiny = recipe.model_copy(update={"micro_batch_tokens": 1})
    assert estimate(LLAMA_8B, tiny, longest=4096, fused=True) == one


@pytest.mark.parametrize(
    ("layers", "hidden", "batch", "length", "micro_batch_tokens", "peak_mb"),
    [
        (2, 256, 8, 384, 512, 754),
        (2, 256, 8, 384, 4096, 1522),
        (2, 768, 8, 384, 4096, 3068),
        (8, 256, 8, 384, 4096, 3157),
        (8, 768, 8, 384, 4096, 8020),
        (8, 768, 2, 1024, 512, 1277),
    ],
)
def test_no_estimate_is_below_a_measured_peak_or_far_above_it(
    layers: int, hidden: int, batch: int, length: int, micro_batch_tokens: int, peak_mb: int
) -> None:
    """Peaks of random Llamas in bfloat16 on a CPU (`python -m loadtests.training.memory --measure`)."""
    layer = hidden * (2 * hidden + 2 * 4 * 64 + 3 * 3 * hidden + 2)
    shape = ModelShape(
        layers=layers,
        hidden=hidden,
        heads=hidden // 64,
        intermediate=3 * hidden,
        vocabulary=8192,
        weights=layers * layer + hidden * 8193,
        embeddings=hidden * 8192,
        streams=True,
    )
    recipe = Recipe(batch_size=batch, micro_batch_tokens=micro_batch_tokens, max_length=length)
    estimated = estimate(shape, recipe, longest=length, fused=length > EAGER_MAX_TOKENS).total / 1e6
    assert peak_mb <= estimated < 1.4 * peak_mb


def test_the_proof_of_a_streamed_base_needs_less_than_its_training() -> None:
    recipe = Recipe(batch_size=1, quantization="nf4", max_length=64, micro_batch_tokens=64)
    need = estimate(LLAMA_8B, recipe, longest=64, fused=True)
    assert need.proof == 2 * 128_256 * 4096
    assert need.total == need.runtime + need.base + need.adapter + need.activations < 8 * 2**30
    whole = estimate(replace(LLAMA_8B, streams=False), recipe, longest=64, fused=True)
    assert whole.total == whole.runtime + 2 * LLAMA_8B.weights > 15 * 2**30


def test_the_proof_on_the_whole_base_counts_and_so_does_the_size_of_a_number() -> None:
    recipe = Recipe(rank=1, batch_size=1, quantization="nf4")
    four_bits = estimate(SMOL, recipe, longest=8, fused=True)
    assert four_bits.total == four_bits.runtime + 2 * SMOL.weights > four_bits.runtime + four_bits.base
    assert "unquantized base, for the proof 0.3" in four_bits.describe()
    whole = recipe.model_copy(update={"quantization": "none"})
    short, long = (estimate(SMOL, whole, longest=8, fused=True, number_bytes=size) for size in (2, 4))
    assert short.total == short.runtime + short.base + short.adapter + short.activations
    assert long.base == 2 * short.base
    assert 1.5 * short.activations < long.activations < 2 * short.activations  # norms compute in float32 in both


def test_the_shape_is_read_from_the_checkpoint(base_dir: Path) -> None:
    shape = read_shape(base_dir)
    config = json.loads((base_dir / "config.json").read_text())
    assert (shape.layers, shape.hidden, shape.vocabulary, shape.streams) == (2, 32, config["vocab_size"], True)


def test_a_validation_part_stops_early_and_dpo_has_its_own_rate_and_beta() -> None:
    stats = DatasetStats(examples=180, tokens=9_000, longest=60, validation=20)
    options = {"hidden_size": 4096, "max_rank": 32, "length": 1024, "seed": 3, "on_gpu": False, "parent": None}
    recipe, why = choose(HyperparameterRequest(), stats, objective="dpo", **options)  # type: ignore[arg-type]
    assert (recipe.objective, recipe.patience, recipe.beta, recipe.learning_rate) == ("dpo", 2, 0.1, 5e-6)
    assert "20 validation examples" in why["early_stopping_patience"]
    wish = HyperparameterRequest(early_stopping_patience=0, beta=0.3)
    recipe, _ = choose(wish, stats, objective="dpo", **options)  # type: ignore[arg-type]
    assert (recipe.patience, recipe.beta) == (0, 0.3)
