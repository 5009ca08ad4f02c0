import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import ConfigInvalid, PatternUnsupported
from adapters.patterns import MAX_EXPRESSIONS, MAX_PATTERNS, MAX_VALUES, check_patterns, condense, match_all

MODULES = [
    f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        "model.layers.0.self_attn.q_proj",
        "^model.decoder.layers.0.encoder_attn.k_proj",
        r"model\.layers\.0\.self_attn\.q_proj$",
        r".*layers\.0\..*",
        r"layers\.(0|1|2)\.self_attn\.(?:q_proj|v_proj)",
        r"layers\.\d+\.mlp\.up_proj",
        "layers.[0-9]+.mlp",
        r"a\-b|q_proj|model\.x",
    ],
)
def test_keys_that_cannot_explode_are_taken(key: str) -> None:
    check_patterns([key], param="rank_pattern")


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+$",
        "(a|a)*b",
        "((a))",
        "(?=x)q",
        "(?P<n>a)",
        r"(.*)\1",
        "a{1,1000}",
        ".*.*.*x",
        "(a|b)(a|b)(a|b)",
        "[z-a]",
        "q proj",
        "",
        "q_proj\n",
        ".*" + "a" * 300,
        "x" * 70_000,
    ],
)
def test_other_expressions_are_refused(key: str) -> None:
    with pytest.raises(PatternUnsupported) as caught:
        check_patterns([key], param="rank_pattern")
    assert caught.value.param == "rank_pattern"


def test_the_number_of_keys_is_bounded() -> None:
    check_patterns([f"layer{i}" for i in range(MAX_PATTERNS)], param="p")
    with pytest.raises(ConfigInvalid):
        check_patterns([f"layer{i}" for i in range(MAX_PATTERNS + 1)], param="p")
    with pytest.raises(PatternUnsupported):
        check_patterns([f".*layer{i}" for i in range(MAX_EXPRESSIONS + 1)], param="p")


def test_the_first_key_that_matches_wins() -> None:
    first = match_all({"q_proj": 4, "layers.0.self_attn.q_proj": 2}, MODULES, default=8)
    second = match_all({"layers.0.self_attn.q_proj": 2, "q_proj": 4}, MODULES, default=8)
    assert first["model.layers.0.self_attn.q_proj"] == 4
    assert second["model.layers.0.self_attn.q_proj"] == 2
    assert first["model.layers.1.mlp.up_proj"] == 8


def test_a_key_matches_from_a_dot_on_only() -> None:
    assert match_all({"proj": 4}, MODULES, default=8) == dict.fromkeys(MODULES, 8)


def test_a_table_is_condensed_to_what_it_says() -> None:
    ranks = {module: 4 if "q_proj" in module else 8 for module in MODULES}
    assert condense(ranks, param="p") == (8, {"q_proj": 4})
    ranks[MODULES[0]] = 2
    default, table = condense(ranks, param="p")
    assert default == 8
    assert sorted(table.values()) == [2, 4]
    assert condense(dict.fromkeys(MODULES, 8), param="p") == (8, {})


def test_more_values_than_the_engine_can_look_up_are_refused() -> None:
    modules = [f"model.layers.{i}.q_proj" for i in range(MAX_VALUES + 2)]
    with pytest.raises(ConfigInvalid):
        condense({module: float(i) for i, module in enumerate(modules)}, param="alpha_pattern")


@given(st.dictionaries(st.sampled_from(MODULES), st.integers(1, 4), min_size=1))
def test_condensing_keeps_every_value_in_any_order_of_keys(values: dict[str, int]) -> None:
    default, table = condense(values, param="p")
    backwards = dict(reversed(table.items()))
    check_patterns(table, param="p")
    assert match_all(table, values, default=default) == values
    assert match_all(backwards, values, default=default) == values


@given(st.text(alphabet="ab01._-^$|()?:*+\\d[]", max_size=40))
def test_a_key_that_passes_compiles_and_matches_at_once(key: str) -> None:
    try:
        check_patterns([key], param="p")
    except PatternUnsupported:
        return
    began = time.thread_time()
    assert re.match(rf"(.*\.)?({key})$", "a" * 200 + "!") is None or "." in key
    # this thread's own time at the cores, however busy they are: only an expression that explodes can take so much
    assert time.thread_time() - began < 20
