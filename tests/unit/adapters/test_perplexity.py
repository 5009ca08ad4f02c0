from __future__ import annotations

import math

import pytest

from adapters.errors import LogprobsNotFinite, ProbeTokensDiffer
from adapters.perplexity import (
    HOLD_BACK_RATIO,
    LONG_PROMPT,
    PLAIN_ID,
    PLAIN_TEXT,
    REFUSE_RATIO,
    compare_perplexity,
    is_logprob,
    measured,
)


def test_the_plain_text_is_a_long_prompt_in_any_tokenizer() -> None:
    """A tokenizer spends at least a token on each word, and one on nearly each full stop and comma."""
    assert len(PLAIN_TEXT.split()) + PLAIN_TEXT.count(".") + PLAIN_TEXT.count(",") > LONG_PROMPT
    assert PLAIN_TEXT.isascii()


def test_a_perplexity_is_the_exponential_of_the_mean_and_its_ratio_that_of_the_difference() -> None:
    found = compare_perplexity([-1.0, -3.0], [-2.0, -4.0])
    assert found.tokens == 3
    assert found.base == pytest.approx(math.exp(2))
    assert found.adapter == pytest.approx(math.exp(3))
    assert found.ratio == pytest.approx(math.e)
    assert found.text_id == PLAIN_ID
    assert not found.is_long


@pytest.mark.parametrize(
    ("times", "holds_back", "refuses"),
    [(0.5, False, False), (9.9, False, False), (10.1, True, False), (1000, True, False), (10_001, True, True)],
)
def test_the_perplexity_bounds(times: float, holds_back: bool, refuses: bool) -> None:
    found = compare_perplexity([-2.0] * 600, [-2.0 - math.log(times)] * 600)
    assert (found.holds_back, found.refuses) == (holds_back, refuses)
    assert found.is_long


def test_the_bounds_are_in_order() -> None:
    assert 1 < HOLD_BACK_RATIO < REFUSE_RATIO


def test_an_overflowing_perplexity_is_still_finite() -> None:
    found = compare_perplexity([-1.0], [-9999.0])
    assert found.refuses
    assert math.isfinite(found.ratio)


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, 0.5])
def test_what_is_no_log_probability_is_refused(value: float) -> None:
    assert not is_logprob(value)
    with pytest.raises(LogprobsNotFinite):
        compare_perplexity([-1.0] * 4, [-1.0, -1.0, -1.0, value])


def test_other_tokens_are_refused() -> None:
    for base, adapter in (([-1.0], [-1.0, -1.0]), ([], [])):
        with pytest.raises(ProbeTokensDiffer):
            compare_perplexity(base, adapter)


def test_what_is_stored_is_read_back_unless_it_was_measured_over_another_text() -> None:
    found = compare_perplexity([-1.0], [-2.0])
    stored = found.model_dump(mode="json")
    assert measured({"distance": 0.5, "perplexity": stored}) == found
    assert measured({"perplexity": stored | {"text_id": "older"}}) is None
    for proof in (None, {}, {"perplexity": None}, {"perplexity": {"ratio": "much"}}):
        assert measured(proof) is None
