from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainer.tune.recipe import Recipe


def test_a_recipe_is_frozen_and_survives_json() -> None:
    recipe = Recipe(target_modules=("q_proj", "v_proj"), rank=8)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate_json(Recipe().model_dump_json()) == Recipe()
    with pytest.raises(ValidationError):
        recipe.rank = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"rank": 513},
        {"alpha": 0},
        {"dropout": 1.0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"warmup_ratio": 1},
        {"epochs": 0},
        {"batch_size": 0},
        {"max_length": 7},
        {"seed": -1},
        {"scheduler": "step"},
        {"target_modules": ()},
        {"target_modules": "q_proj"},
        {"target_modules": ("q_proj", "q_proj")},
        {"target_modules": ("",)},
        {"use_dora": True},
    ],
)
def test_what_could_not_be_trained_or_served_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(fields)
