"""The memory that a job needs against what there is: the numbers at creation, and again when the data are known."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch

from adapters import processor
from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import installation, running
from trainer.finetune import capacity
from trainer.finetune.capacity import (
    AvailableMemory,
    BaseModelInfo,
    available_memory,
    device_type,
    fit_memory,
    minimal_recipe,
    required_memory,
)
from trainer.installation import Installation
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.tune.memory import ModelShape
from trainer.tune.recipe import Recipe

GIB = 2**30


@pytest.fixture
def base(base_dir: Path) -> BaseModelInfo:
    return BaseModelInfo.read(base_dir)


@pytest.fixture
def engine(base_dir: Path, gateway: FakeGateway, tmp_path: Path) -> Installation:
    return installation(tmp_path, base_dir, gateway)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An `nvidia-smi` that tells of GPUs, by the names that it is asked with: (free, total) MiB."""

    def make(**gpus: tuple[int, int]) -> Path:
        asked = tmp_path / "asked"
        lines = "".join(f'  {name.lstrip("g")}) echo "{free}, {total}";;\n' for name, (free, total) in gpus.items())
        script = tmp_path / "bin" / "nvidia-smi"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\necho "$@" > {asked}\ncase "$4" in\n{lines}  *) exit 6;;\nesac\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(capacity, "DRIVER_TIMEOUT_S", 120.0)  # a shell may start slowly on a busy machine
        return asked

    return make


def test_the_base_is_known_by_its_headers(base: BaseModelInfo) -> None:
    assert base.module_suffixes() == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert base.unknown_targets(["q_proj", "proj", "lm_head", "self_attn.q_proj"]) == ["proj", "lm_head"]
    assert (base.positions, base.shape.hidden, base.shape.layers) == (512, 32, 2)


def test_more_is_needed_for_longer_examples_larger_micro_batches_and_less_where_it_is_computed_again(
    base: BaseModelInfo,
) -> None:
    lean = Recipe(batch_size=16, micro_batch_tokens=128, gradient_checkpointing=True)
    least = required_memory(lean, base, longest=128, on_gpu=True)
    for update, longest in (
        ({"gradient_checkpointing": False}, 128),
        ({"micro_batch_tokens": 256}, 128),
        ({}, 256),
        ({"rank": 64}, 128),
    ):
        assert required_memory(lean.model_copy(update=update), base, longest=longest, on_gpu=True).total > least.total
    assert required_memory(lean.model_copy(update={"batch_size": 512}), base, longest=128, on_gpu=True) == least


def test_a_number_is_as_long_as_the_worker_will_compute_with(
    base: BaseModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.tune.model import compute_dtype

    assert capacity.number_bytes(on_gpu=False) == compute_dtype(torch.device("cpu")).itemsize
    assert capacity.number_bytes(on_gpu=True) == 2
    needs = {}
    for flags in ("flags\t\t: fpu avx512f avx512_bf16", "Features\t: fp asimd bf16", "flags\t\t: fpu avx2", ""):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
        needs[flags] = required_memory(Recipe(), base, longest=9, on_gpu=False).base
    assert [size // min(needs.values()) for size in needs.values()] == [1, 1, 2, 2]


def test_the_least_that_a_wish_can_become(base: BaseModelInfo) -> None:
    def least(wish: HyperparameterRequest) -> Recipe:
        return minimal_recipe(wish, base, max_rank=16, length=256, file_bytes=4096, on_gpu=False)

    assert (least(HyperparameterRequest()).batch_size, least(HyperparameterRequest()).gradient_checkpointing) == (
        4,
        True,
    )
    assert least(HyperparameterRequest()).micro_batch_tokens == 1
    assert (least(HyperparameterRequest(batch_size=64)).batch_size, least(HyperparameterRequest(lora_rank=3)).rank) == (
        64,
        3,
    )


def test_what_a_cpu_has(engine: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "CGROUP", tmp_path / "none")
    memory = psutil.virtual_memory()
    # as it is at one moment: an engine that starts beside the tests takes gigabytes between two looks
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    free = available_memory("cpu", engine)
    assert (free.device, free.bytes) == ("cpu", memory.available)
    with_worker = available_memory("cpu", engine, working=[os.getpid(), 2**22 + 1])
    # this process has loaded torch: its memory counts as free by then
    assert with_worker.bytes > free.bytes + 10 * 2**20
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text(f"{3 * GIB}\n")
    (group / "memory.current").write_text(f"{2 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    monkeypatch.setattr(capacity, "CGROUP", group)
    assert available_memory("cpu", engine) == AvailableMemory(
        "cpu", int(1.5 * GIB), "left of the container's memory limit"
    )
    (group / "memory.max").write_text("max\n")
    assert available_memory("cpu", engine).why == "free now"


def test_what_a_gpu_has_beside_the_engines_share(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = driver(g0=(6_000, 80_000), g1=(70_000, 80_000))
    engine = Installation(Path("h"), "u", Path("b"), "n", 16, engine_device="cuda", engine_memory=0.8)
    mib = 2**20
    assert available_memory("cuda", engine).bytes == 6_000 * mib  # somebody else is there, too
    assert "--query-gpu=memory.free,memory.total" in asked.read_text()
    assert available_memory("cuda:0", engine, working=[1]).bytes == int(80_000 * mib * (1 - 0.8))
    assert available_memory("cuda:0", engine).why == "the engine has 80% of 78.1 GiB"
    assert available_memory("cuda:1", engine) == AvailableMemory("cuda:1", 70_000 * mib, "free now")
    assert available_memory("cuda:1", engine, working=[1]).bytes == 80_000 * mib
    assert available_memory("cuda:7", engine).bytes > 2**60  # a driver that does not tell is no reason to refuse
    on_cpu = Installation(Path("h"), "u", Path("b"), "n", 16, engine_device="cpu")
    assert available_memory("cuda", on_cpu).bytes == 6_000 * mib
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert available_memory("cuda:0", engine).bytes == int(80_000 * mib * (1 - 0.8))
    assert available_memory("cuda:1", engine).bytes == 0


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch, engine: Installation) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert available_memory("cuda", engine).bytes > 2**60
    monkeypatch.setattr(capacity, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (device_type("auto"), device_type("cpu"), device_type("cuda:1")) == ("cuda", "cpu", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_type("auto") == "cpu"


async def test_what_cannot_fit_is_refused_at_creation_with_the_numbers(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        capacity,
        "available_memory",
        lambda *_, **__: AvailableMemory("cuda:0", GIB // 2, "the engine has 85% of 24.0 GiB"),
    )
    async with running(tmp_path, base_dir, gateway) as trainer:
        with pytest.raises(openai.BadRequestError) as refused:
            await trainer.client().create(hyperparameters={"batch_size": 8})
        assert trainer.trainer.jobs.directories.ids() == []
    assert (refused.value.code, refused.value.param) == ("insufficient_memory", "hyperparameters.max_length")
    assert "0.9 GiB (base" in refused.value.message
    assert "cuda:0, where 0.5 GiB are available (the engine has 85% of 24.0 GiB)" in refused.value.message


LLAMA_8B = BaseModelInfo(
    ModelShape(
        layers=32, hidden=4096, heads=32, intermediate=14_336, vocabulary=128_256, weights=8_030_261_248,
        embeddings=1_050_673_152, streams=True,
    ),
    positions=8192,
    modules=frozenset(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("gib", "tokens", "recomputed"), [(80, 8192, False), (40, 4096, False), (16, 8192, True), (11, 4096, True)]
)
def test_a_step_is_divided_until_it_fits_and_recomputed_only_if_that_does_not_do(
    gib: int, tokens: int, recomputed: bool
) -> None:
    recipe = Recipe(batch_size=16, max_length=4096, quantization="nf4", micro_batch_tokens=16_384)
    available = AvailableMemory("cuda:0", gib * GIB, "free now")
    fitted, check = fit_memory(recipe, LLAMA_8B, available, longest=4096, on_gpu=True)
    assert check.fits
    assert (fitted.micro_batch_tokens, fitted.gradient_checkpointing) == (tokens, recomputed)
    assert fitted.batch_size == 16


def test_what_does_not_fit_one_example_at_a_time_does_not_fit() -> None:
    available = AvailableMemory("cuda:0", 8 * GIB, "free now")
    recipe = Recipe(batch_size=16, max_length=4096, quantization="nf4", micro_batch_tokens=16_384)
    fitted, check = fit_memory(recipe, LLAMA_8B, available, longest=4096, on_gpu=True)
    assert not check.fits
    assert (fitted.micro_batch_tokens, fitted.gradient_checkpointing) == (4096, True)


async def test_what_the_data_ask_for_is_divided_recomputed_or_refused_before_it_is_trained(
    tmp_path: Path, base_dir: Path, base: BaseModelInfo, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(*, rank: int, again: bool) -> int:
        recipe = Recipe(rank=rank, max_length=64, micro_batch_tokens=9, gradient_checkpointing=again)
        return required_memory(recipe, base, longest=9, on_gpu=False).total

    available = needed(rank=16, again=True)
    assert available < needed(rank=16, again=False) < needed(rank=17, again=True)
    monkeypatch.setattr(capacity, "available_memory", lambda *_, **__: AvailableMemory("cpu", available, "free now"))
    async with running(tmp_path, base_dir, gateway) as trainer:
        client = trainer.client()
        small = {"max_length": 9, "lora_rank": 4}  # passes the check at creation; the stand-in plans as `metadata` says
        fits = await client.create(metadata={"batch": "4"}, hyperparameters=small)
        divided = await client.create(metadata={"batch": "2048"}, hyperparameters=small)
        again = await client.create(metadata={"rank": "16"}, hyperparameters=small)
        never = await client.create(metadata={"rank": "17"}, hyperparameters=small)
        recipes = {}
        for made in (fits, divided, again):
            job = await client.ended(made.id)
            assert job.status == "succeeded"
            recipes[made.id] = job.hatrack["plan"]["recipe"]
        assert (recipes[fits.id]["micro_batch_tokens"], recipes[fits.id]["gradient_checkpointing"]) == (512, False)
        assert (recipes[divided.id]["batch_size"], recipes[divided.id]["gradient_checkpointing"]) == (2048, False)
        tokens = recipes[divided.id]["micro_batch_tokens"]
        assert 9 <= tokens < 512
        assert any(f"at most {tokens} tokens" in message for message in await client.messages(divided.id))
        assert recipes[again.id]["gradient_checkpointing"]
        assert any("gradient checkpointing is on" in message for message in await client.messages(again.id))
        job = await client.ended(never.id)
        assert (job.status, job.error.code) == ("failed", "insufficient_memory")
        assert "free now" in job.error.message
        assert not any(event.type == "metrics" for event in await client.events(never.id))
