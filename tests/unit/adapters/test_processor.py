"""What a processor computes with, and what the engine is told by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters import processor
from service.config import Settings
from service.training.config import TrainerConfig

AVX2 = "flags\t\t: fpu fma avx2"
AVX512 = "flags\t\t: fpu fma avx2 avx512f"
NATIVE = "flags\t\t: fpu fma avx2 avx512f avx512_bf16"


@pytest.mark.parametrize(
    ("line", "multiplies", "slow"),
    [
        (AVX2, False, True),
        (AVX512, False, True),
        (NATIVE, True, False),
        ("flags\t\t: fpu amx_bf16 avx512f", True, False),
        ("Features\t: fp asimd", False, True),
        ("Features\t: fp asimd bf16", True, False),
        ("", False, False),
    ],
)
def test_a_processor_without_instructions_for_bfloat16_is_served_float32(
    line: str, multiplies: bool, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert (processor.multiplies_bfloat16(), processor.is_slow_in_bfloat16()) == (multiplies, slow)
    on_cpu = Settings(engine_device="cpu", engine_dtype="auto")
    assert on_cpu.dtype == ("float32" if slow else "bfloat16")
    arguments = TrainerConfig.from_settings(on_cpu).arguments
    assert arguments[arguments.index("--dtype") + 1] == on_cpu.dtype
    assert Settings(engine_device="cuda", engine_dtype="auto").dtype == "bfloat16"
    assert Settings(engine_device="cpu", engine_dtype="bfloat16").dtype == "bfloat16"


def test_nothing_is_assumed_of_a_processor_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert not processor.multiplies_bfloat16()
    assert not processor.is_slow_in_bfloat16()
