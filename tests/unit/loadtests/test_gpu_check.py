"""`make gpu-check`: it says where there is no GPU, and a step that fails stands in the report as failed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from loadtests import gpu_check
from loadtests.gpu_check import NO_GPU, NoGpu, Step, gpus, report, run_step, steps


def test_where_there_is_no_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi in it
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--report", str(tmp_path / "report.md")])
    assert ended.value.code == NO_GPU
    assert "no GPU on this machine" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("program", ["", "raise SystemExit(9)"])
def test_a_driver_without_a_gpu_has_none(program: str) -> None:
    with pytest.raises(NoGpu):
        gpus([sys.executable, "-c", program])
    assert gpus([sys.executable, "-c", "print('A100, 80 GiB, 550')"]) == ["A100, 80 GiB, 550"]


def test_a_failed_step_is_in_the_report_with_what_it_said() -> None:
    good, bad = (
        run_step(Step(title, (sys.executable, "-c", program)))
        for title, program in (("Good", "print('fine')"), ("Bad", "print('broken'); raise SystemExit(4)"))
    )
    text = report(["A100"], [good, bad])
    assert "- A100\n" in text
    assert "## Good" in text
    assert "FAILED" not in text[: text.index("## Bad")]
    assert "It FAILED with exit code 4." in text
    assert "broken" in text


def test_each_step_is_a_module_that_is_there() -> None:
    modules = [step.command[2] for step in steps(Path("base"), Path("work"), Path("large"))]
    assert len(modules) == 8
    assert all(importlib.util.find_spec(module) is not None for module in modules)
