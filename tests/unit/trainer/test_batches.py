from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.tune.batches import packed_micro_batches, padded, padded_micro_batches, plan_batches, shared_prefix

lengths = st.lists(st.integers(1, 500), min_size=1, max_size=200)


@given(lengths, st.integers(1, 16), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_every_example_comes_once_an_epoch(
    sizes: list[int], batch_size: int, epochs: int, seed: int, grouped: bool
) -> None:
    plan = plan_batches(sizes, batch_size=batch_size, epochs=epochs, seed=seed, group_by_length=grouped)
    assert len(plan) % epochs == 0
    per_epoch = len(plan) // epochs
    for epoch in range(epochs):
        batches = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(index for batch in batches for index in batch) == Counter(range(len(sizes)))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert plan == plan_batches(sizes, batch_size=batch_size, epochs=epochs, seed=seed, group_by_length=grouped)


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    sizes = list(range(1, 65))
    first = plan_batches(sizes, batch_size=4, epochs=2, seed=0)
    assert first[:16] != first[16:]
    assert first != plan_batches(sizes, batch_size=4, epochs=2, seed=1)


def test_a_step_has_short_and_long_examples() -> None:
    sizes = [30] * 64 + [600] * 64
    for batch in plan_batches(sizes, batch_size=16, epochs=3, seed=0):
        assert {sizes[index] for index in batch} == {30, 600}


@given(lengths, st.integers(1, 600), st.integers(0, 32))
def test_micro_batches_have_every_example_once_and_no_more_tokens_than_allowed(
    sizes: list[int], max_tokens: int, prefix: int
) -> None:
    sizes = [size + prefix for size in sizes]
    packed = packed_micro_batches(sizes, max_tokens=max_tokens, prefix=prefix)
    rectangles = padded_micro_batches(sizes, max_tokens=max_tokens)
    for parts in (packed, rectangles):
        assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    for part in packed:
        assert len(part) == 1 or prefix + sum(sizes[index] - prefix for index in part) <= max_tokens
    for part in rectangles:
        assert len(part) == 1 or len(part) * padded(max(sizes[index] for index in part)) <= max_tokens


def test_padded_micro_batches_have_similar_lengths() -> None:
    sizes = [10, 300, 11, 310, 12, 290] * 3
    parts = padded_micro_batches(sizes, max_tokens=10_000)
    assert sum(len(part) * max(sizes[index] for index in part) for part in parts) <= 1.1 * sum(sizes)
    assert len(padded_micro_batches(sizes, max_tokens=10_000, max_padding=None)) == 1


def test_batches_grouped_by_length_as_in_earlier_releases_have_little_padding() -> None:
    sizes = [10, 100] * 32
    plan = plan_batches(sizes, batch_size=8, epochs=1, seed=0, group_by_length=True)
    padded = sum(len(batch) * max(sizes[index] for index in batch) for batch in plan)
    assert padded == sum(sizes)


def test_shared_prefix() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 4]], limit=9) == 2
    assert shared_prefix([[1, 2, 3], [1, 2, 4]], limit=1) == 1
    assert shared_prefix([[1, 2], [1, 2, 3]], limit=9) == 2
    assert shared_prefix([[1], [2]], limit=9) == 0
    assert shared_prefix([[1, 2, 3]], limit=2) == 2
