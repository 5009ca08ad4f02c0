from __future__ import annotations

from typing import Any

import pytest

from service.admission.estimate import DEFAULT_ANSWER_TOKENS, estimate


@pytest.mark.parametrize(
    ("body", "size", "tokens"),
    [
        ({"messages": [], "max_tokens": 10}, 400, 110),
        ({"messages": [], "max_completion_tokens": 10, "n": 3}, 400, 130),
        ({"input": "x", "max_output_tokens": 7}, 40, 17),
        ({"messages": []}, 400, 100 + DEFAULT_ANSWER_TOKENS),
        ({"prompt": ["a", "b"], "max_tokens": 10}, 800, 220),
        ({"prompt": [[1, 2], [3]], "max_tokens": 1}, 80, 22),
        ({"prompt": [1, 2, 3], "max_tokens": 1}, 4_000, 4),
        ({"messages": [], "max_tokens": 9_000}, 400, 2_048),
        ({"messages": [], "max_tokens": 9_000, "n": 2}, 400, 4_096),
    ],
)
def test_prompt_and_answer(body: dict[str, Any], size: int, tokens: int) -> None:
    assert estimate(body, size, 2_048) == tokens


def test_a_route_that_answers_nothing_is_charged_its_prompt_alone() -> None:
    assert estimate({"prompt": "x"}, 400, 2_048, answers=False) == 100
    assert estimate({"input": ["x"] * 100}, 40_000, 2_048, answers=False) == 10_000
    assert estimate({"tokens": [1] * 50}, 600, 2_048, answers=False) == 50
    assert estimate({}, 0, None, answers=False) == 1
