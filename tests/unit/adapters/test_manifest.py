import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import errors
from adapters.errors import (
    AdapterError,
    BaseMismatch,
    ConfigInvalid,
    PatternUnsupported,
    RankTooLarge,
    UnknownConfigKey,
)
from adapters.features import FEATURES, IGNORED, UNDERSTOOD
from adapters.manifest import MAX_CONFIG_BYTES, Manifest
from tests.support.adapters import peft_config

MODULES = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(3) for p in "qkvo"]


def parse(config: object, **options: Any) -> Manifest:
    return Manifest.parse(json.dumps(config).encode(), **{"max_rank": 64, **options})


def changed(**values: Any) -> dict[str, Any]:
    return {**peft_config(), **values}


def test_what_peft_writes_for_a_plain_lora_passes() -> None:
    manifest = parse(peft_config(rank=8, alpha=16, modules=["v_proj", "q_proj"]))
    assert (manifest.rank, manifest.alpha) == (8, 16.0)
    assert manifest.target_modules == ("q_proj", "v_proj")
    assert manifest.warnings == ()
    assert manifest.use_rslora is False


def test_a_config_of_three_keys_is_enough() -> None:
    assert parse({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}).target_modules == "all-linear"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("use_dora", True, "dora_unsupported"),
        ("bias", "all", "bias_unsupported"),
        ("bias", "lora_only", "bias_unsupported"),
        ("lora_bias", True, "lora_bias_unsupported"),
        ("modules_to_save", ["lm_head"], "modules_to_save_unsupported"),
        ("modules_to_save", ["classifier"], "modules_to_save_unsupported"),
        ("trainable_token_indices", [1, 2], "trainable_tokens_unsupported"),
        ("layer_replication", [[0, 4], [2, 5]], "layer_replication_unsupported"),
        ("alora_invocation_tokens", [1], "alora_unsupported"),
        ("use_bdlora", {"nblocks": 2}, "bdlora_unsupported"),
        ("use_qalora", True, "qalora_unsupported"),
        ("target_parameters", ["mlp.experts.down_proj"], "target_parameters_unsupported"),
        ("fan_in_fan_out", True, "fan_in_fan_out_unsupported"),
        ("megatron_config", {"x": 1}, "megatron_unsupported"),
        ("arrow_config", {"top_k": 3}, "lora_variant_unsupported"),
        ("kasa_config", {"beta": 1e-4}, "lora_variant_unsupported"),
        ("monteclora_config", {"num_samples": 8}, "lora_variant_unsupported"),
        ("peft_type", "IA3", "peft_type_unsupported"),
        ("peft_type", "ADALORA", "peft_type_unsupported"),
        ("task_type", "SEQ_CLS", "task_type_unsupported"),
        ("task_type", ["CAUSAL_LM"], "task_type_unsupported"),
        ("init_lora_weights", "pissa", "init_lora_weights_unsupported"),
        ("init_lora_weights", "pissa_niter_16", "init_lora_weights_unsupported"),
        ("init_lora_weights", "PiSSA", "init_lora_weights_unsupported"),
        ("init_lora_weights", "olora", "init_lora_weights_unsupported"),
        ("init_lora_weights", "corda", "init_lora_weights_unsupported"),
        ("init_lora_weights", "loftq", "init_lora_weights_unsupported"),
        ("init_lora_weights", "lora_ga", "init_lora_weights_unsupported"),
        ("init_lora_weights", "tomorrow", "init_lora_weights_unsupported"),
    ],
)
def test_a_feature_that_is_on_is_refused_by_its_own_code(key: str, value: object, code: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse(changed(**{key: value}))
    assert caught.value.code == code
    assert caught.value.param == key


def test_each_feature_is_refused_and_passes_when_off() -> None:
    for key, (error, _) in FEATURES.items():
        with pytest.raises(error):
            parse(changed(**{key: {"on": 1}}))
        nothings: list[object] = [None, False, "", [], {}]
        for off in nothings:
            parse(changed(**{key: off}))


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica", "Gaussian"])
def test_a_start_that_leaves_the_base_alone_passes(init: object) -> None:
    parse(changed(init_lora_weights=init))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("megatron_core", "megatron.core"),
        ("qalora_group_size", 16),
        ("loftq_config", {"loftq_bits": 4}),
        ("eva_config", {"rho": 2.0}),
        ("velora_config", {"num_groups": 4}),
        ("lora_dropout", 0.1),
        ("layers_to_transform", [0, 1]),
        ("layers_pattern", "layers"),
        ("exclude_modules", ["lm_head"]),
        ("inference_mode", True),
        ("auto_mapping", {"base_model_class": "X", "unsloth_fixed": True}),
        ("runtime_config", {"ephemeral_gpu_offload": False}),
        ("peft_version", "0.99"),
        ("ensure_weight_tying", True),
    ],
)
def test_what_only_training_used_passes_and_leaves_no_trace(key: str, value: object) -> None:
    assert parse(changed(**{key: value})).canonical() == parse(peft_config()).canonical()


@pytest.mark.parametrize("nothing", [None, False, "", [], {}])
def test_an_unknown_key_without_a_value_passes(nothing: object) -> None:
    parse(changed(a_feature_of_next_year=nothing))


@pytest.mark.parametrize("value", [True, 1, 0, 0.0, "x", [0], {"a": None}])
def test_an_unknown_key_with_a_value_is_refused_by_name(value: object) -> None:
    with pytest.raises(UnknownConfigKey) as caught:
        parse(changed(zeta=value, alpha_beta=value))
    assert caught.value.param == "alpha_beta"
    assert "'alpha_beta'" in caught.value.message
    assert caught.value.details["keys"] == ["alpha_beta", "zeta"]


def test_engine_only_keys_are_refused() -> None:
    with pytest.raises(UnknownConfigKey):
        parse(changed(vllm_lora_scaling_factor=100.0))


def test_no_key_is_of_two_kinds() -> None:
    assert not (UNDERSTOOD & IGNORED.keys()) | (UNDERSTOOD & FEATURES.keys())
    assert not IGNORED.keys() & FEATURES.keys()


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules"])
def test_a_missing_key_is_reported_by_name(key: str) -> None:
    for config in ({k: v for k, v in peft_config().items() if k != key}, changed(**{key: None})):
        with pytest.raises(ConfigInvalid) as caught:
            parse(config)
        assert caught.value.param == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 8.0),
        ("r", True),
        ("r", "8"),
        ("lora_alpha", "16"),
        ("lora_alpha", True),
        ("lora_alpha", 1e300),
        ("lora_alpha", 10**400),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", [""]),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", ["x" * 300]),
        ("target_modules", ["x"] * 5000),
        ("target_modules", "x" * 70_000),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": 2.5}),
        ("rank_pattern", {"q_proj": None}),
        ("rank_pattern", {"": 2}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"q_proj": "x"}),
        ("use_rslora", 1),
        ("use_rslora", "yes"),
        ("base_model_name_or_path", 5),
        ("revision", "x" * 5000),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse(changed(**{key: value}))
    assert caught.value.param == key


def test_the_rank_is_bounded_with_its_pattern() -> None:
    parse(peft_config(rank=16), max_rank=16)
    with pytest.raises(RankTooLarge) as caught:
        parse(peft_config(rank=17), max_rank=16)
    assert caught.value.details == {"rank": 17, "max_rank": 16}
    with pytest.raises(RankTooLarge) as caught:
        parse(changed(rank_pattern={"q_proj": 32}), max_rank=16)
    assert caught.value.param == "rank_pattern"


def test_an_expression_that_could_hang_the_engine_is_refused() -> None:
    with pytest.raises(PatternUnsupported):
        parse(changed(rank_pattern={"(a+)+$": 4}))
    with pytest.raises(PatternUnsupported):
        parse(changed(alpha_pattern={"(.*)*x": 4}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b'{"r": NaN}',
        b'{"r": Infinity}',
        b'{"r": -Infinity}',
        b'{"lora_alpha": 1e999}',
        b'{"r": 8, "r": 16}',
        b'{"auto_mapping": {"a": 1, "a": 2}}',
        b'{"peft_version": "\\ud800"}',
        b'{"\\ud800": null}',
        b'{"r": ' + b"9" * 10_000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"r": 8} trailing',
        b" " * (MAX_CONFIG_BYTES + 1),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_not_strict_json_is_a_clean_refusal(data: bytes) -> None:
    with pytest.raises(ConfigInvalid):
        Manifest.parse(data, max_rank=64)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(AdapterError):
        Manifest.parse(data, max_rank=64)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(sorted(UNDERSTOOD | FEATURES.keys() | IGNORED.keys())) | st.text(max_size=8)


@given(st.dictionaries(_keys, _json, max_size=4))
def test_any_value_of_any_key_is_taken_or_refused_cleanly(values: dict[str, Any]) -> None:
    try:
        manifest = Manifest.parse(json.dumps({**peft_config(), **values}).encode(), max_rank=64)
    except AdapterError:
        return
    assert Manifest.parse(manifest.canonical(), max_rank=64).canonical() == manifest.canonical()


def test_another_base_warns_and_can_be_made_an_error() -> None:
    config = changed(base_model_name_or_path="meta/Llama-3", revision="abc")
    manifest = parse(config, base_name="smollm2-135m-instruct")
    assert len(manifest.warnings) == 2
    assert "meta/Llama-3" in manifest.warnings[0]
    with pytest.raises(BaseMismatch) as caught:
        parse(config, base_name="smollm2-135m-instruct", strict_base=True)
    assert caught.value.param == "base_model_name_or_path"
    assert parse(config).warnings == ()


@pytest.mark.parametrize(
    "name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "/data/smollm2-135m-instruct/", r"C:\m\SmolLM2-135M-Instruct"]
)
def test_the_same_base_by_another_spelling_is_the_same(name: str) -> None:
    manifest = parse(changed(base_model_name_or_path=name), base_name="smollm2-135m-instruct", strict_base=True)
    assert manifest.warnings == ()


def test_strict_wants_the_base_named_and_no_revision() -> None:
    with pytest.raises(BaseMismatch) as caught:
        parse(changed(), base_name="b", strict_base=True)
    assert caught.value.param == "base_model_name_or_path"
    with pytest.raises(BaseMismatch) as caught:
        parse(changed(base_model_name_or_path="b", revision="r"), base_name="b", strict_base=True)
    assert caught.value.param == "revision"


def test_scaling_is_that_of_lora_and_of_rslora() -> None:
    assert parse(peft_config()).scaling(4, 8) == 2.0
    assert parse(changed(use_rslora=True)).scaling(4, 8) == 4.0


def test_equal_meaning_gives_equal_bytes() -> None:
    plain = parse(peft_config(rank=8, alpha=16, modules=["q_proj", "k_proj", "v_proj", "o_proj"])).resolve(MODULES)
    ways = [
        peft_config(rank=8, alpha=16.0, modules=["o_proj", "v_proj", "k_proj", "q_proj", "q_proj"]),
        peft_config(rank=4, alpha=16, rank_pattern={".*": 8}) | {"target_modules": "all-linear"},
        peft_config(rank=8, alpha=1, alpha_pattern={"[a-z]_proj": 16}) | {"target_modules": r".*\.(q|k|v|o)_proj"},
        peft_config(
            rank=8, alpha=16, rank_pattern={"gate_proj": 64, "q_proj": 8}, base_model_name_or_path="/home/me/x"
        ),
    ]
    for config in ways:
        assert parse(config).resolve(MODULES).canonical() == plain.canonical()
    assert parse(peft_config(rank=8, alpha=17)).resolve(MODULES).canonical() != plain.canonical()
    assert parse(changed(r=8, lora_alpha=16, use_rslora=True)).resolve(MODULES).canonical() != plain.canonical()


_patterns = st.dictionaries(
    st.sampled_from(["q_proj", "k_proj", "layers.0.self_attn.q_proj", r".*layers\.1\..*", "(q|v)_proj", "o_proj"]),
    st.integers(1, 6),
    max_size=4,
)


@given(_patterns, _patterns)
def test_resolving_keeps_the_meaning_and_is_final(ranks: dict[str, int], alphas: dict[str, int]) -> None:
    manifest = parse(changed(rank_pattern=ranks, alpha_pattern=alphas))
    resolved = manifest.resolve(MODULES)
    assert resolved.ranks(MODULES) == manifest.ranks(MODULES)
    assert resolved.alphas(MODULES) == manifest.alphas(MODULES)
    again = Manifest.parse(resolved.canonical(), max_rank=64)
    assert again.resolve(reversed(MODULES)).canonical() == resolved.canonical()


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(peft_config()).rank = 5  # type: ignore[misc]


def test_messages_stay_short_whatever_is_sent() -> None:
    with pytest.raises(errors.PeftTypeUnsupported) as caught:
        parse(changed(peft_type="x" * 100_000))
    assert len(caught.value.message) < 300
