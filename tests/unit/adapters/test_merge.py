"""Merged checkpoints: what PEFT computes, in the base's own layout; refused where that is not possible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from adapters import merge as merging
from adapters.errors import BaseInvalid, NotFinite
from adapters.merge import licence_files, merge, merged_bytes
from tests.support.adapters import describe_base, make_adapter, make_base

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
TOKENS = torch.tensor([[5, 17, 42, 8, 60, 3, 33]])
PATTERNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "alphas": {"alpha_pattern": {"layers.1.mlp.down_proj": 3, "down_proj": 32}},
}


def real_base(directory: Path, *, dtype: torch.dtype, tied: bool, shards: bool = False, fused: bool = False) -> Path:
    """A checkpoint that transformers has saved, of random weights."""
    torch.manual_seed(3)
    config = (Phi3Config if fused else LlamaConfig)(**SMALL, tie_word_embeddings=tied)
    model = (Phi3ForCausalLM if fused else LlamaForCausalLM)(config).to(dtype)
    model.save_pretrained(directory, max_shard_size="20KB" if shards else "1GB")
    return directory


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits.float()
    return found


def pefts(base_dir: Path, adapter_dir: Path, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the base, and of base and adapter merged by PEFT in `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype)
    plain = logits(model)
    return plain, logits(PeftModel.from_pretrained(model, str(adapter_dir)).merge_and_unload())


@pytest.mark.parametrize("config", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize(
    ("tied", "shards", "fused"), [(True, False, False), (False, True, False), (False, False, True)]
)
def test_a_merged_model_computes_what_peft_computes(
    tmp_path: Path, config: dict[str, Any], tied: bool, shards: bool, fused: bool
) -> None:
    base_dir = real_base(tmp_path / "base", dtype=torch.float32, tied=tied, shards=shards, fused=fused)
    base = describe_base(base_dir)
    modules = ("qkv_proj", "gate_up_proj", "down_proj") if fused else ("q_proj", "v_proj", "down_proj")
    adapter = make_adapter(tmp_path / "adapter", base, scale=0.5, modules=modules, config=config)
    target = tmp_path / "merged"
    target.mkdir()
    result = merge(base_dir, adapter.directory, target, base=base)
    assert len(result.modules) == 6
    plain, expected = pefts(base_dir, adapter.directory, torch.float32)
    found = logits(AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32))
    assert (expected - plain).abs().max() > 0.1, "the adapter does nothing that could be seen"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(file.bytes for file in result.files) + sum(
        path.stat().st_size for path in merging.side_files(base_dir)
    ) == merged_bytes(base_dir)


def test_ranks_by_module_are_merged_with_their_own_scaling(tmp_path: Path) -> None:
    base_dir = real_base(tmp_path / "base", dtype=torch.float32, tied=True)
    base = describe_base(base_dir)
    adapter = make_adapter(tmp_path / "adapter", base, rank=4, scale=0.5, modules=("q_proj", "v_proj"))
    tensors = load_file(adapter.weights_path)
    narrow = {
        name: np.ascontiguousarray((value[:2] if "lora_A" in name else value[:, :2]) if "v_proj" in name else value)
        for name, value in tensors.items()
    }
    save_file(narrow, adapter.weights_path)
    adapter.config_path.write_text(json.dumps(json.loads(adapter.config) | {"rank_pattern": {"v_proj": 2}}))
    (tmp_path / "merged").mkdir()
    merge(base_dir, adapter.directory, tmp_path / "merged", base=base)
    _, expected = pefts(base_dir, adapter.directory, torch.float32)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merged_value_is_rounded_once_to_the_nearest(tmp_path: Path, dtype: str) -> None:
    base_dir = real_base(tmp_path / "base", dtype=getattr(torch, dtype), tied=True)
    base = describe_base(base_dir)
    adapter = make_adapter(tmp_path / "adapter", base, scale=0.5, modules=("q_proj",))
    (tmp_path / "merged").mkdir()
    merge(base_dir, adapter.directory, tmp_path / "merged", base=base)
    before, after = load_file(base_dir / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    lora = load_file(adapter.weights_path)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if "q_proj" not in name:
            assert after[name].tobytes() == value.tobytes(), f"{name} was not to change"
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        exact: NDArray[Any] = value.astype(np.float64) + 2.0 * (
            lora[f"{module}.lora_B.weight"].astype(np.float64) @ lora[f"{module}.lora_A.weight"].astype(np.float64)
        )
        unit = np.finfo(np.float16).eps if dtype == "float16" else float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
        half_a_step = 0.5 * unit * 2.0 ** np.floor(np.log2(np.abs(exact)))
        float32s = 1e-7  # where the sum cancels, its own rounding in float32 counts
        assert np.all(np.abs(after[name].astype(np.float64) - exact) <= half_a_step + float32s)


def test_memory_is_bounded_by_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_dir = make_base(tmp_path / "base", hidden=64)
    base = describe_base(base_dir)
    adapter = make_adapter(tmp_path / "adapter", base)
    for name in ("whole", "blocks"):
        (tmp_path / name).mkdir()
    whole = merge(base_dir, adapter.directory, tmp_path / "whole", base=base)
    monkeypatch.setattr(merging, "CHUNK_ELEMENTS", 100)
    monkeypatch.setattr(merging, "COPY_BYTES", 7)
    written: list[int] = []
    blocks = merge(base_dir, adapter.directory, tmp_path / "blocks", base=base, on_bytes=written.append)
    assert whole.files == blocks.files
    assert max(written[: -len(merging.side_files(base_dir))]) <= 3 * 64 * 2, "a row of 192 values is the largest block"
    assert sum(written) == merged_bytes(base_dir)


def test_the_other_files_come_along_and_hatracks_own_notes_do_not(tmp_path: Path) -> None:
    base_dir = make_base(tmp_path / "base")
    for name in ("LICENSE", "NOTICE.txt", "generation_config.json", "modeling_own.py", "prepared.json", "pytorch.bin"):
        (base_dir / name).write_text(name)
    (base_dir / "README.md").write_text("the base's card")
    (base_dir / ".cache").mkdir()
    adapter = make_adapter(tmp_path / "adapter", describe_base(base_dir))
    (tmp_path / "merged").mkdir()
    merge(base_dir, adapter.directory, tmp_path / "merged", base=describe_base(base_dir))
    copied = {path.name for path in (tmp_path / "merged").iterdir()}
    kept = {"LICENSE", "NOTICE.txt", "generation_config.json", "modeling_own.py"}
    own = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"}
    assert copied == kept | own
    assert licence_files(base_dir) == ["LICENSE", "NOTICE.txt"]


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    for number, config in enumerate(({"quantization_config": {"quant_method": "gptq"}}, {"model_type": "gpt2"})):
        base_dir = make_base(tmp_path / f"base{number}", **config)
        base = describe_base(base_dir)
        adapter = make_adapter(tmp_path / f"adapter{number}", base)
        with pytest.raises(BaseInvalid, match=r"quantized|transposed"):
            merge(base_dir, adapter.directory, tmp_path, base=base)


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    base_dir = make_base(tmp_path / "base")
    tensors = load_file(base_dir / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {key: value.astype(np.float16) for key, value in tensors.items()}
    tensors[name] = np.full_like(tensors[name], 65000.0)
    save_file(tensors, base_dir / "model.safetensors", metadata={"format": "pt"})
    base = describe_base(base_dir)
    adapter = make_adapter(tmp_path / "adapter", base, scale=400.0, modules=("q_proj",), layers=(0,))
    (tmp_path / "merged").mkdir()
    with pytest.raises(NotFinite, match="q_proj"):
        merge(base_dir, adapter.directory, tmp_path / "merged", base=base)
    shutil.rmtree(tmp_path / "merged")
