from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.tune.batches import plan_batches, shared_prefix

lengths = st.lists(st.integers(1, 500), min_size=1, max_size=200)


@given(lengths, st.integers(1, 16), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_every_example_comes_once_an_epoch(sizes: list[int], batch_size: int, epochs: int, seed: int) -> None:
    plan = plan_batches(sizes, batch_size=batch_size, epochs=epochs, seed=seed)
    assert len(plan) % epochs == 0
    per_epoch = len(plan) // epochs
    for epoch in range(epochs):
        batches = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(index for batch in batches for index in batch) == Counter(range(len(sizes)))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert plan == plan_batches(sizes, batch_size=batch_size, epochs=epochs, seed=seed)


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    sizes = list(range(1, 65))
    first = plan_batches(sizes, batch_size=4, epochs=2, seed=0)
    assert first[:16] != first[16:]
    assert first != plan_batches(sizes, batch_size=4, epochs=2, seed=1)


def test_little_is_padding() -> None:
    sizes = [10, 100] * 32
    plan = plan_batches(sizes, batch_size=8, epochs=1, seed=0)
    padded = sum(len(batch) * max(sizes[index] for index in batch) for batch in plan)
    assert padded == sum(sizes)


def test_shared_prefix() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 4]], limit=9) == 2
    assert shared_prefix([[1, 2, 3], [1, 2, 4]], limit=1) == 1
    assert shared_prefix([[1, 2], [1, 2, 3]], limit=9) == 2
    assert shared_prefix([[1], [2]], limit=9) == 0
    assert shared_prefix([[1, 2, 3]], limit=2) == 2
