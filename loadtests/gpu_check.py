"""All that has to be seen on a GPU, in one run that ends in a report to commit.

    make gpu-check                                  # or: .venv/bin/python -m loadtests.gpu_check
    make gpu-check LARGE=/models/qwen3-4b           # a base of 4B as well

Each step is a command that also runs by itself. Its output goes into the report as it is, with the time that it took;
a step that fails does not end the run. Where there is no GPU, nothing is run and nothing is written.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parent.parent
BASE: Final = REPO / "var" / "base" / "smollm2-135m-instruct"
PACKAGES: Final = ("vllm", "torch", "transformers", "peft", "bitsandbytes")
NO_GPU: Final = 2
"""Exit code."""
QUERY: Final = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


class NoGpu(Exception):
    """There is no GPU here, or none that its driver tells of."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it shows."""

    title: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step."""

    step: Step
    code: int
    output: str
    seconds: float

    def section(self) -> str:
        """Its part of the report."""
        result = "" if self.code == 0 else f" It FAILED with exit code {self.code}."
        shown = " ".join(self.step.command)
        return f"## {self.step.title}\n\n`{shown}`: {self.seconds:.0f} s.{result}\n\n```\n{self.output.strip()}\n```\n"


def gpus(query: Sequence[str] = QUERY) -> list[str]:
    """Name, memory and driver of each GPU. Raises NoGpu."""
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoGpu(f"nvidia-smi tells of none ({type(error).__name__})") from error
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if not found:
        raise NoGpu("nvidia-smi tells of none")
    return found


def steps(base: Path, work: Path, large: Path | None) -> list[Step]:
    """What is run, in this order."""
    voices = work / "voices"

    def run(title: str, module: str, *arguments: object) -> Step:
        return Step(title, (sys.executable, "-m", module, *map(str, arguments)))

    chosen = [
        run("Training the voices", "trainer.samples", "--base", base, "--out", voices),
        run("Start, voices, proof, containment", "loadtests.poison", "--base", base, "--voices", voices),
        run("What containment costs", "loadtests.containment", "--device", "cuda:0"),
        run(
            "An NF4 job: its memory beside the estimate",
            "loadtests.training.job",
            "--base",
            base,
            "--home",
            work / "job",
        ),
        run("NF4: peaks over a grid of sizes", "loadtests.training.memory", "--measure", "--device", "cuda:0"),
        run("LoRA beside plain vLLM", "loadtests.engine", "--base", base, "--out", work / "engine"),
    ]
    if large is not None:
        options = ("--quick", "--base", large, "--out", work / "large")
        chosen.append(run("A larger base beside plain vLLM", "loadtests.engine", *options))
        options = ("--base", large, "--home", work / "large-job")
        chosen.append(run("An NF4 job on it", "loadtests.training.job", *options))
    return chosen


def run_step(step: Step) -> Outcome:
    """Run one; its output is also shown as it comes."""
    print(f"── {step.title}", flush=True)
    began, lines = time.monotonic(), []
    with subprocess.Popen(
        step.command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return Outcome(step, process.returncode, "".join(lines), time.monotonic() - began)


def report(devices: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The whole report, Markdown."""
    head = [
        "# Hatrack on a GPU",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.platform()}, Python {platform.python_version()}",
        "",
        *(f"- {device}" for device in devices),
        *(f"- {package} {_version(package)}" for package in PACKAGES),
        "",
    ]
    return "\n".join([*head, *(outcome.section() for outcome in outcomes)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps and write the report; exit code 1 if one failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--large", type=Path, help="a checkpoint of 4B or so")
    parser.add_argument("--work", type=Path, default=REPO / "var" / "loadtests" / "gpu")
    parser.add_argument("--report", type=Path, default=REPO / "loadtests" / "gpu_report.md")
    chosen = parser.parse_args(argv)
    try:
        devices = gpus()
    except NoGpu as error:
        print(f"There is no GPU on this machine: {error}. Nothing was run.", file=sys.stderr)
        sys.exit(NO_GPU)
    outcomes = [run_step(step) for step in steps(chosen.base, chosen.work, chosen.large)]
    chosen.report.write_text(report(devices, outcomes))
    print(f"\n{chosen.report} has the report; commit it.")
    sys.exit(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    main()
