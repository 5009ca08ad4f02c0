import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adapters import errors, tensorfile
from adapters.base import BaseDescription
from adapters.inspect import Inspection, inspect_weights
from adapters.manifest import Manifest
from tests.support.adapters import AdapterFiles, Variant, lora_tensors, make_adapter

Tensors = dict[str, NDArray[Any]]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def inspect(files: AdapterFiles, base: BaseDescription, **options: Any) -> Inspection:
    return inspect_weights(files.weights_path, Manifest.parse(files.config, max_rank=64), base, **options)


def inspect_changed(
    directory: Path, base: BaseDescription, change: Callable[[Tensors], Any], **options: Any
) -> Inspection:
    """Inspect a sound adapter whose tensors went through `change`."""
    files = make_adapter(directory, base, **options)
    tensors = lora_tensors(base, **options)
    change(tensors)
    save_file(tensors, files.weights_path)
    return inspect(files, base)


def test_a_sound_adapter(tmp_path: Path, base: BaseDescription) -> None:
    files = make_adapter(tmp_path, base, rank=4, alpha=8)
    found = inspect(files, base)
    assert (found.rank, found.alpha, found.modules, found.tensors) == (4, 8.0, 6, 12)
    assert found.bytes == files.weights_path.stat().st_size
    assert found.target_modules == ("down_proj", "q_proj", "v_proj")
    assert found.effect_is_zero is False
    assert found.warnings == ()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_ratio_is_that_of_the_full_product(tmp_path: Path, base: BaseDescription, dtype: str) -> None:
    found = inspect(make_adapter(tmp_path, base, rank=3, alpha=6, dtype=dtype), base)
    ratios = {}
    tensors = lora_tensors(base, rank=3, dtype=dtype)
    for name, a in tensors.items():
        if ".lora_A." in name:
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            update = 2.0 * b.astype(np.float64) @ a.astype(np.float64)
            ratios[module] = np.linalg.norm(update) / (base.modules[module].norm or 0)
    assert found.update_ratio == pytest.approx(max(ratios.values()), rel=1e-9)
    assert found.update_ratio == pytest.approx(ratios[found.update_ratio_module], rel=1e-9)


def test_chunks_change_nothing(tmp_path: Path, base: BaseDescription, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_adapter(tmp_path, base)
    whole = inspect(files, base)
    monkeypatch.setattr(tensorfile, "CHUNK_ELEMENTS", 7)
    assert inspect(files, base).update_ratio == pytest.approx(whole.update_ratio, rel=1e-12)


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        ("nan", errors.NotFinite),
        ("infinite", errors.NotFinite),
        ("overflow", errors.UpdateTooLarge),
        ("wrong_shape", errors.ShapeMismatch),
        ("truncated", errors.WeightsInvalid),
        ("missing_pair", errors.PairIncomplete),
        ("unknown_layer", errors.ModuleUnknown),
    ],
)
def test_each_breakage_has_its_error(
    tmp_path: Path, base: BaseDescription, variant: Variant, error: type[Exception]
) -> None:
    with pytest.raises(error):
        inspect(make_adapter(tmp_path, base, variant=variant), base)


def test_the_largest_floats_are_measured_without_overflow(tmp_path: Path, base: BaseDescription) -> None:
    def blow_up(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = np.full_like(tensors[name], 1e38)

    with pytest.raises(errors.UpdateTooLarge) as caught:
        inspect_changed(tmp_path, base, blow_up)
    assert isinstance(caught.value.details["ratio"], float)
    assert 1e70 < caught.value.details["ratio"] < 1e90


def test_the_bound_on_the_ratio_is_the_callers(tmp_path: Path, base: BaseDescription) -> None:
    files = make_adapter(tmp_path, base)
    ratio = inspect(files, base).update_ratio
    inspect(files, base, max_update_ratio=ratio)
    with pytest.raises(errors.UpdateTooLarge):
        inspect(files, base, max_update_ratio=ratio * 0.99)


def test_zero_effect_is_found_and_is_no_error(tmp_path: Path, base: BaseDescription) -> None:
    found = inspect(make_adapter(tmp_path / "b", base, variant="zero_effect"), base)
    assert (found.effect_is_zero, found.update_ratio) == (True, 0.0)

    def disjoint(tensors: Tensors) -> None:
        for name in tensors:
            rank_slice = (slice(0, 2), slice(None)) if ".lora_A." in name else (slice(None), slice(2, 4))
            tensors[name][rank_slice] = 0

    assert inspect_changed(tmp_path / "ab", base, disjoint).effect_is_zero is True
    assert inspect(make_adapter(tmp_path / "alpha", base, alpha=0), base).effect_is_zero is True


def test_a_tiny_effect_is_not_zero(tmp_path: Path, base: BaseDescription) -> None:
    assert inspect(make_adapter(tmp_path / "s", base, scale=1e-30), base).effect_is_zero is False

    def one_value(tensors: Tensors) -> None:
        for name in tensors:
            if ".lora_B." in name:
                tensors[name][:] = 0
        tensors[f"{Q0}.lora_B.weight"][3, 1] = 1e-6

    assert inspect_changed(tmp_path / "one", base, one_value).effect_is_zero is False


def test_a_value_that_the_engines_dtype_cannot_hold_is_not_finite(tmp_path: Path, base: BaseDescription) -> None:
    half = dataclasses.replace(base, fingerprint=base.fingerprint.model_copy(update={"dtype": "float16"}))

    def grow_a(tensors: Tensors) -> None:
        tensors[f"{Q0}.lora_A.weight"][0, 0] = 70_000.0
        tensors[f"{Q0}.lora_B.weight"][:, 0] = 0

    inspect_changed(tmp_path, base, grow_a)
    with pytest.raises(errors.NotFinite, match="too large"):
        inspect_changed(tmp_path, half, grow_a)


def test_b_is_held_with_its_scaling(tmp_path: Path, base: BaseDescription) -> None:
    half = dataclasses.replace(base, fingerprint=base.fingerprint.model_copy(update={"dtype": "float16"}))

    def grow_b(tensors: Tensors) -> None:
        tensors[f"{Q0}.lora_A.weight"][0, :] = 0
        tensors[f"{Q0}.lora_B.weight"][0, 0] = 40_000.0

    inspect_changed(tmp_path, base, grow_b)  # alpha 8, rank 4: the engine holds 80,000
    with pytest.raises(errors.NotFinite):
        inspect_changed(tmp_path, half, grow_b)


def test_ranks_and_alphas_come_from_the_patterns(tmp_path: Path, base: BaseDescription) -> None:
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 40}}
    files = make_adapter(tmp_path, base, rank=4, config=patterns)
    with pytest.raises(errors.ShapeMismatch):
        inspect(files, base)
    tensors = lora_tensors(base, rank=4) | lora_tensors(base, rank=2, modules=["q_proj"])
    save_file(tensors, files.weights_path)
    found = inspect(files, base)
    assert found.rank == 4
    assert found.manifest.rank_pattern == {"q_proj": 2}
    assert found.update_ratio_module == "model.layers.1.self_attn.q_proj"


def test_the_stored_config_does_not_depend_on_how_it_was_said(tmp_path: Path, base: BaseDescription) -> None:
    named = inspect(make_adapter(tmp_path / "1", base), base)
    said = inspect(
        make_adapter(tmp_path / "2", base, config={"target_modules": "all-linear", "peft_version": "0.1"}), base
    )
    assert named.manifest.canonical() == said.manifest.canonical()


def renamed(old: str, new: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (renamed("base_model.model.", ""), errors.TensorNameInvalid),
        (renamed("lora_A.weight", "lora_A.default.weight"), errors.TensorNameInvalid),
        (renamed("lora_A.weight", "lora_A.bias"), errors.TensorNameInvalid),
        (renamed("lora_B.weight", "lora_magnitude_vector"), errors.TensorNameInvalid),
        (renamed("self_attn", "self_att\n"), errors.TensorNameInvalid),
        (renamed("layers.1.", "layers.7."), errors.ModuleUnknown),
        (renamed("q_proj", "qkv_proj"), errors.ModuleUnknown),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}),
            errors.TensorNameInvalid,
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, 32), np.float32)}),
            errors.EmbeddingUnsupported,
        ),
        (
            lambda t: t.update(
                {"base_model.model.model.embed_tokens.base_layer.weight": np.zeros((40, 16), np.float32)}
            ),
            errors.EmbeddingUnsupported,
        ),
        (
            lambda t: t.update(
                {f"base_model.model.lm_head.lora_{s}.weight": np.zeros((4, 4), np.float32) for s in "AB"}
            ),
            errors.EmbeddingUnsupported,
        ),
        (
            lambda t: t.update({f"{Q0}.lora_A.weight": t[f"{Q0}.lora_A.weight"].astype(np.float64)}),
            errors.DtypeUnsupported,
        ),
        (
            lambda t: t.update({f"{Q0}.lora_A.weight": t[f"{Q0}.lora_A.weight"].astype(np.int32)}),
            errors.DtypeUnsupported,
        ),
        (lambda t: t.update({f"{Q0}.lora_A.weight": t[f"{Q0}.lora_A.weight"][:, :-1].copy()}), errors.ShapeMismatch),
        (lambda t: t.update({f"{Q0}.lora_A.weight": t[f"{Q0}.lora_A.weight"].reshape(-1)}), errors.ShapeMismatch),
        (lambda t: t.update({f"{Q0}.lora_A.weight": t[f"{Q0}.lora_A.weight"].T.copy()}), errors.ShapeMismatch),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.zeros((0, 16), np.float32)}), errors.ShapeMismatch),
        (lambda t: t.clear(), errors.WeightsEmpty),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, base: BaseDescription, change: Callable[[Tensors], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        inspect_changed(tmp_path, base, change)


def test_one_layer_under_two_names_is_refused(tmp_path: Path, base: BaseDescription) -> None:
    bare = dataclasses.replace(base, modules={name.removeprefix("model."): s for name, s in base.modules.items()})

    def double(tensors: Tensors) -> None:
        for side in "AB":
            tensor = tensors[f"{Q0}.lora_{side}.weight"]
            tensors[f"base_model.model.layers.0.self_attn.q_proj.lora_{side}.weight"] = tensor

    files = make_adapter(tmp_path, base)
    inspect(files, bare)
    tensors = lora_tensors(base)
    double(tensors)
    save_file(tensors, files.weights_path)
    with pytest.raises(errors.TensorNameInvalid, match="the same layer"):
        inspect(files, bare)


def test_target_modules_are_compared_with_the_tensors(tmp_path: Path, base: BaseDescription) -> None:
    def with_targets(*names: str) -> Inspection:
        files = make_adapter(tmp_path / "-".join(names), base, modules=["q_proj", "v_proj"])
        files.config_path.write_text(
            files.config.decode().replace('"q_proj",\n    "v_proj"', ", ".join(f'"{n}"' for n in names))
        )
        return inspect(files, base)

    assert with_targets("v_proj", "q_proj").warnings == ()
    assert "up_proj" in with_targets("v_proj", "q_proj", "up_proj").warnings[0]
    (extra,) = with_targets("q_proj").warnings
    assert "v_proj" in extra
    assert "the engine applies them" in extra
    with pytest.raises(errors.TargetModulesMismatch):
        with_targets("up_proj", "proj")


def test_a_quantized_base_is_judged_by_a_fresh_weight_and_says_so(tmp_path: Path, base: BaseDescription) -> None:
    quantized = dataclasses.replace(
        base,
        modules={
            name: dataclasses.replace(
                shape, norm=None, in_features=None if name.endswith("v_proj") else shape.in_features
            )
            for name, shape in base.modules.items()
        },
    )
    found = inspect(make_adapter(tmp_path / "sound", base), quantized)
    assert len(found.warnings) == 2
    assert found.update_ratio == pytest.approx(inspect(make_adapter(tmp_path / "s2", base), base).update_ratio, rel=0.2)
    with pytest.raises(errors.UpdateTooLarge):
        inspect(make_adapter(tmp_path / "over", base, variant="overflow"), quantized)


def test_the_files_own_warnings_are_kept(tmp_path: Path, base: BaseDescription) -> None:
    files = make_adapter(tmp_path, base, config={"base_model_name_or_path": "another"})
    manifest = Manifest.parse(files.config, max_rank=8, base_name="tiny")
    assert "another" in inspect_weights(files.weights_path, manifest, base).warnings[0]
