from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM

from trainer.data.render import TokenSequence
from trainer.tune.batches import WIDTH_MULTIPLE
from trainer.tune.loss import (
    CHUNK_ROWS,
    Collator,
    _CrossEntropy,
    batch_loss,
    can_share_prefix,
    collate,
    common_prefix,
    pack,
)
from trainer.tune.model import attach_lora
from trainer.tune.recipe import Recipe

CPU = torch.device("cpu")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def lora(base_model: Any) -> Any:
    """A LoRA whose B is not zero, so that A has gradients too."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = attach_lora(base_model, Recipe(rank=4))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def plain_loss(model: Any, rows: list[TokenSequence]) -> torch.Tensor:
    """The same loss the slow way: a row at a time, all logits, torch's own cross-entropy."""
    scores, targets = [], []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0]
        for index in range(1, len(row.tokens)):
            if row.trained[index]:
                scores.append(logits[index - 1])
                targets.append(row.tokens[index])
    return cross_entropy(torch.stack(scores), torch.tensor(targets))


@pytest.mark.parametrize("share_prefix", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_way(
    base_model: Any, sequences: list[TokenSequence], share_prefix: bool
) -> None:
    model = lora(base_model)
    expected = plain_loss(model, sequences)
    expected.backward()
    wanted = gradients(model)
    batch = collate(sequences, share_prefix=share_prefix, device=CPU)
    loss, _ = batch_loss(model, batch)
    loss.backward()
    assert (batch.prefix > 0) is share_prefix
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    assert all("lora_" in name for name in found)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_output_layer_sees_only_what_predicts_a_trained_token(
    base_model: Any, sequences: list[TokenSequence]
) -> None:
    seen: list[int] = []
    handle = base_model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))
    batch_loss(base_model, collate(sequences, share_prefix=False, device=CPU))
    handle.remove()
    assert seen == [sum(sum(row.trained) for row in sequences)]


def test_a_batch_has_the_promised_shape(sequences: list[TokenSequence]) -> None:
    batch = collate(sequences, share_prefix=True, device=CPU)
    rows, width = batch.tokens.shape
    assert rows == len(sequences)
    assert width % WIDTH_MULTIPLE == 0
    assert 0 <= width - max(len(row.tokens) for row in sequences) < WIDTH_MULTIPLE
    assert batch.prefix % WIDTH_MULTIPLE == 0
    assert batch.attention.sum().item() == sum(len(row.tokens) for row in sequences)
    assert not batch.predicting[:, : batch.prefix].any()
    assert batch.targets.tolist() == [
        token for row in sequences for token, on in zip(row.tokens, row.trained, strict=True) if on
    ]


def test_one_row_and_a_row_that_is_trained_from_the_start_share_nothing() -> None:
    early = TokenSequence(tokens=(1, 2, 3, 4), trained=(False, True, True, True), line=1)
    assert collate([early], share_prefix=True, device=CPU).prefix == 0
    assert collate([early, early], share_prefix=True, device=CPU).prefix == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, CHUNK_ROWS, 2 * CHUNK_ROWS + 5])
def test_cross_entropy_against_torch(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = (4 * torch.randn(count, 50, generator=generator)).to(dtype)
    targets = torch.randint(0, 50, (count,), generator=generator)
    reference = values.float().clone().requires_grad_()
    expected = cross_entropy(reference, targets)
    (3 * expected).backward()
    leaf = values.detach().clone().requires_grad_()
    loss, right = _CrossEntropy.apply(leaf * 1, targets, count)
    (3 * loss).backward()
    assert loss.dtype is torch.float32
    assert int(right) == int((values.float().argmax(dim=1) == targets).sum())
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    exact = dtype is torch.float32
    torch.testing.assert_close(
        leaf.grad.float(), reference.grad, rtol=1e-4 if exact else 2e-2, atol=1e-6 if exact else 1e-3
    )


SHORT, LONG = 8, 60
"""Tokens of the answers of the mixed examples."""


@pytest.fixture(scope="module")
def mixed() -> list[TokenSequence]:
    """Sixteen examples behind a common prefix of 21 tokens, every other one with a long answer."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(3, 200, (21,), generator=generator).tolist()
    examples = []
    for index in range(16):
        answer = SHORT if index % 2 else LONG + index
        own = torch.randint(3, 200, (5 + index % 3 + answer,), generator=generator).tolist()
        flags = (*[False] * (len(start) + 5 + index % 3), *[True] * answer)
        examples.append(TokenSequence(tokens=(*start, *own), trained=flags, line=index + 1))
    return examples


LAYOUTS = {
    "packed behind the prefix": Recipe(rank=4),
    "packed": Recipe(rank=4, packing=True),
    "grouped by length": Recipe(rank=4, group_by_length=True),
    "recomputed": Recipe(rank=4, gradient_checkpointing=True),
}


@pytest.mark.parametrize(
    ("layout", "attention"), [*((layout, "eager") for layout in LAYOUTS), ("packed behind the prefix", "sdpa")]
)
def test_a_steps_gradients_do_not_depend_on_how_it_is_divided(
    base_model: Any, mixed: list[TokenSequence], layout: str, attention: str
) -> None:
    base_model.set_attn_implementation(attention)
    model = lora(base_model)
    expected = plain_loss(model, mixed)
    expected.backward()
    wanted = gradients(model)
    recipe = LAYOUTS[layout]
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    collator = Collator(model, recipe, training=True)
    by_length = sorted(mixed, key=lambda row: len(row.tokens))
    divisions = [
        [mixed],
        [mixed[at : at + 4] for at in range(0, 16, 4)],
        [by_length[at : at + 4] for at in range(0, 16, 4)],
        [[row] for row in mixed],
        collator.micro_batches(mixed, max_tokens=256),
    ]
    assert 1 < len(divisions[-1]) < len(mixed)
    step_tokens = sum(sum(row.trained) for row in mixed)
    for parts in divisions:
        total = 0.0
        for part in parts:
            loss, _ = batch_loss(model, collator.collate(part), step_tokens=step_tokens)
            loss.backward()
            total += loss.item()
        assert total == pytest.approx(expected.item(), rel=1e-5)
        found = gradients(model)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_nothing_is_padded_and_a_prefix_is_computed_once(base_model: Any, mixed: list[TokenSequence]) -> None:
    collator = Collator(base_model, Recipe(), training=True)
    batch = collator.collate(mixed)
    assert batch.prefix == common_prefix(mixed) == 16
    rest = sum(len(row.tokens) - batch.prefix for row in mixed)
    assert 0 <= batch.tokens.numel() - batch.prefix - rest < 32


def test_layers_without_full_attention_get_padded_rows_of_similar_lengths(mixed: list[TokenSequence]) -> None:
    config = MistralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=64,
    )  # fmt: skip
    collator = Collator(MistralForCausalLM(config), Recipe(), training=True)
    parts = collator.micro_batches(mixed, max_tokens=4096)
    lengths = [{sum(row.trained) for row in part} for part in parts]
    assert all(max(found) == SHORT or min(found) > SHORT for found in lengths)
    assert all(collator.collate(part).positions is None for part in parts)


def test_only_models_with_full_attention_share_a_prefix() -> None:
    assert can_share_prefix(LlamaConfig())
    assert can_share_prefix(MistralConfig(sliding_window=None))
    assert not can_share_prefix(MistralConfig(sliding_window=128))
    mixed = LlamaConfig()
    mixed.layer_types = ["full_attention", "sliding_attention"]
    assert not can_share_prefix(mixed)


def test_a_packed_batch_has_the_loss_and_gradients_of_a_padded_one(
    base_model: Any, sequences: list[TokenSequence]
) -> None:
    model = lora(base_model)
    padded, right = batch_loss(model, collate(sequences, share_prefix=False, device=CPU))
    padded.backward()
    expected = gradients(model)
    packed, packed_right = batch_loss(model, pack(sequences, CPU))
    packed.backward()
    assert packed.item() == pytest.approx(padded.item(), abs=1e-5)
    assert packed_right == right
    found = gradients(model)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_recomputed_activations_give_the_same_gradients(base_model: Any, sequences: list[TokenSequence]) -> None:
    recipe = Recipe(rank=4, alpha=8, gradient_checkpointing=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = attach_lora(base_model, recipe)
    batch = collate(sequences, share_prefix=False, device=CPU)
    batch_loss(model, batch)[0].backward()
    recomputed = gradients(model)
    model.gradient_checkpointing_disable()
    batch_loss(model, batch)[0].backward()
    plain = gradients(model)
    assert any(gradient.abs().sum() > 0 for gradient in plain.values())
    assert all(torch.allclose(recomputed[name], plain[name], atol=1e-6) for name in plain)
