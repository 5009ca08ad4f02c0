"""SUITES.md and JUDGES.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.config import Settings
from trainer.evaluate.endpoints import JudgeSettings, read_endpoints
from trainer.evaluate.factory import MAX_ANSWER_TOKENS
from trainer.evaluate.sandbox.sandbox import SandboxLimits
from trainer.evaluate.spec import SUITES
from trainer.evaluate.suites.measured import MMLU_SHOTS

FOLDER = Path("trainer/evaluate")
ON_SUITES = " ".join((FOLDER / "SUITES.md").read_text().split())
ON_JUDGES = (FOLDER / "JUDGES.md").read_text()


def test_every_suite_is_told() -> None:
    assert tuple(re.findall(r"\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|", ON_SUITES)) == SUITES
    assert f"up to {MMLU_SHOTS} examples of the subject" in ON_SUITES
    assert ON_SUITES.count(f"{MAX_ANSWER_TOKENS} tokens") == 2
    assert f"maximum number of questions of a suite ({Settings.model_fields['suites_limit'].default})" in ON_SUITES


def test_the_sandboxs_limits_are_told() -> None:
    limits = SandboxLimits()
    assert (
        f"{limits.cpu_s} s of CPU time, {limits.wall_s:g} s of wall-clock time, {limits.memory_bytes // 2**20} MiB"
        in ON_SUITES
    )
    assert f"{limits.file_bytes // 2**20} MiB per file" in ON_SUITES
    assert f"an empty directory of {limits.tmp_bytes // 2**20} MiB in memory" in ON_SUITES
    assert limits.processes == 1


def test_the_example_is_a_file_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", ON_JUDGES, re.DOTALL)
    (tmp_path / "endpoints.toml").write_text(example)
    monkeypatch.setenv("BIG_KEY", "sk-big")
    judge = read_endpoints(tmp_path / "endpoints.toml").judge("strict")
    defaults = JudgeSettings(endpoint="big", model="large-1", rubric=judge.rubric)
    assert judge == defaults


def test_the_document_says_that_no_real_judge_was_run() -> None:
    assert "**No real judge was run**" in ON_JUDGES
