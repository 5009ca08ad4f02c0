import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters import base as base_module
from adapters.base import BaseDescription, Fingerprint, ModuleShape, describe
from adapters.errors import BaseInvalid
from tests.support.adapters import describe_base, make_base


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_base(tmp_path / "model")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(model: Path) -> None:
    """Save the same tensors again, in two files with an index."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, model / file)
        weight_map |= dict.fromkeys(part, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_layers_have_the_checkpoints_names_shapes_and_norms(model: Path) -> None:
    base = describe_base(model)
    assert len(base.modules) == 2 * 7
    shape = base.modules["model.layers.1.mlp.down_proj"]
    weight = load_file(model / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].astype(np.float64)
    assert (shape.out_features, shape.in_features) == weight.shape == (16, 48)
    assert shape.norm == pytest.approx(np.linalg.norm(weight), rel=1e-12)
    assert base.embeddings == {"model.embed_tokens"}
    assert base.initializer_range == 0.02


def test_shards_are_one_model(model: Path) -> None:
    whole = describe_base(model)
    shard(model)
    assert describe_base(model).modules == whole.modules


def test_find_knows_checkpoints_that_lack_the_inner_prefix() -> None:
    part = dict.fromkeys(Fingerprint.model_fields, "x")
    base = BaseDescription("b", Fingerprint(**part), {"h.0.attn": ModuleShape(2, 2, 1.0)}, frozenset(), 0.02)
    assert base.find("h.0.attn") == "h.0.attn"
    assert base.find("transformer.h.0.attn") == "h.0.attn"
    assert base.find("h.1.attn") is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("config", lambda model: edit_json(model / "config.json", rope_theta=5)),
        ("tokenizer", lambda model: (model / "tokenizer.json").write_text("{}")),
        ("tokenizer", lambda model: edit_json(model / "tokenizer_config.json", add_bos_token=True)),
        ("tokenizer", lambda model: (model / "added_tokens.json").write_text("{}")),
        ("template", lambda model: (model / "chat_template.jinja").write_text("other")),
        ("quantization", lambda model: edit_json(model / "config.json", quantization_config={"quant_method": "awq"})),
        ("weights", lambda model: make_base(model, seed=1)),
    ],
)
def test_each_part_of_the_fingerprint_follows_its_files(model: Path, part: str, change: Any) -> None:
    before = describe_base(model).fingerprint
    change(model)
    after = describe_base(model).fingerprint
    assert part in before.differences(after)
    assert set(before.differences(after)) <= {part, "config"}
    assert before.servable_with(after) == (part not in ("weights", "config", "quantization"))
    assert before.due_against(after) == before.servable_with(after)
    assert before.digest != after.digest


def test_the_fingerprint_ignores_who_saved_the_model(model: Path) -> None:
    before = describe_base(model).fingerprint
    edit_json(model / "config.json", transformers_version="9.9", _name_or_path="/home/me")
    edit_json(model / "tokenizer_config.json", name_or_path="x")
    (model / "README.md").write_text("x")
    after = describe_base(model).fingerprint
    assert after == before
    assert not before.due_against(after)


def test_the_template_is_found_wherever_it_is(model: Path) -> None:
    in_file = describe_base(model).fingerprint.template
    text = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    assert describe_base(model).fingerprint.template == "none"
    edit_json(model / "tokenizer_config.json", chat_template=text)
    in_config = describe_base(model).fingerprint
    assert in_config.template == in_file
    edit_json(model / "tokenizer_config.json", chat_template=[{"name": "default", "template": text}])
    several = describe_base(model).fingerprint
    assert several.differences(in_config) == ("template",)


def test_engine_dtype_and_quantization_are_taken_as_given(model: Path) -> None:
    base = describe(model, served_name="m", dtype="torch.float16", quantization="fp8", engine_version="0.33.0")
    assert (base.fingerprint.dtype, base.fingerprint.quantization) == ("float16", "fp8")
    assert base.fingerprint.engine_version == "0.33.0"
    assert base.fingerprint.differences(describe_base(model).fingerprint) == ("dtype", "quantization", "engine_version")


def test_the_cache_saves_reading_the_weights_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = describe_base(model, cache_dir=cache)
    assert sorted(path.name for path in cache.iterdir()) == ["hashes.json", f"norms-{first.fingerprint.weights}.json"]

    def forbidden(layer: object) -> float:
        raise AssertionError("a norm was computed again")

    monkeypatch.setattr(base_module, "norm_of", forbidden)
    assert describe_base(model, cache_dir=cache) == first


def test_the_cache_notices_another_file_and_survives_damage(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = describe_base(model, cache_dir=cache)
    for path in cache.iterdir():
        path.write_bytes(b'{"format": 1, "val')
    assert describe_base(model, cache_dir=cache) == first
    before = (model / "model.safetensors").stat().st_mtime_ns
    make_base(model, seed=7)
    # a file of the same length is known by its time, and a clock may stand still for 10 ms
    os.utime(model / "model.safetensors", ns=(before + 10**9, before + 10**9))
    second = describe_base(model, cache_dir=cache)
    assert second == describe_base(model)
    assert second.fingerprint.weights != first.fingerprint.weights


def quantized(model: Path, tensors: dict[str, Any], **config: Any) -> BaseDescription:
    save_file(tensors, model / "model.safetensors")
    edit_json(model / "config.json", quantization_config=config)
    return describe_base(model)


def test_quantized_layers_tell_what_they_can(model: Path) -> None:
    packed = {"l.q_proj.qweight": np.zeros((4, 6), np.int32), "l.norm.weight": np.zeros(3, np.float16)}
    gptq = quantized(model, packed, quant_method="gptq", bits=4)
    assert gptq.modules == {"l.q_proj": ModuleShape(6, 32, None)}
    assert gptq.fingerprint.quantization == "gptq"
    assert quantized(model, packed, quant_method="awq", bits=4).modules == {"l.q_proj": ModuleShape(48, 4, None)}
    assert quantized(model, packed, quant_method="hqq", bits=3).modules == {"l.q_proj": ModuleShape(None, None, None)}
    eight = {"l.q_proj.weight": np.zeros((4, 6), ml_dtypes.float8_e4m3fn)}
    assert quantized(model, eight, quant_method="fp8").modules == {"l.q_proj": ModuleShape(4, 6, None)}
    four = {"l.q_proj.weight": np.zeros((12, 1), np.uint8)}
    assert quantized(model, four, quant_method="bitsandbytes").modules == {"l.q_proj": ModuleShape(None, None, None)}


def test_a_base_weight_that_is_not_finite_has_no_norm(model: Path) -> None:
    base = quantized(model, {"l.q_proj.weight": np.full((2, 2), math.inf, np.float32)})
    assert base.modules["l.q_proj"].norm is None


@pytest.mark.parametrize(
    "breakage",
    [
        lambda model: (model / "config.json").unlink(),
        lambda model: (model / "config.json").write_text("[]"),
        lambda model: (model / "config.json").write_text("{"),
        lambda model: (model / "model.safetensors").unlink(),
        lambda model: (model / "model.safetensors").write_bytes(b"\0" * 100),
        lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'),
        lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_a_clean_error(model: Path, breakage: Any) -> None:
    breakage(model)
    with pytest.raises(BaseInvalid):
        describe_base(model)
