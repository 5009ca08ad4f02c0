"""What the general suite finds of the base is measured once for each fingerprint, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from trainer.evaluate import general_suite
from trainer.evaluate.arms import Arm, Prompt
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.general_suite import BaseMeasurements, GeneralSuite
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.spec import SuiteResult
from trainer.evaluate.verdict import Rules

BASE, TUNED = Arm(label="base", model="smol"), Arm(label="voice@3", model="voice@3")


@pytest.fixture
def measured(gateway: Gateway, tmp_path: Path) -> Any:
    """Runs the suite in a new run's directory; returns the result, and which models were asked."""
    runs: list[Path] = []

    async def measure(
        fingerprint: str = "f1", *, before: Arm = BASE, items: int = 40, keep: bool = True, **options: Any
    ) -> tuple[SuiteResult, set[str]]:
        kept = BaseMeasurements(tmp_path / "base-measurements", "smol", fingerprint, **options)
        runs.append(tmp_path / f"run-{len(runs)}")
        scorer = HttpScorer(Endpoint(gateway.url, SecretStr(KEY)), runs[-1] / "scores.jsonl")
        gateway.requests.clear()
        result = await GeneralSuite(scorer, Rules(forget_items=items), kept).run(before, TUNED)
        if keep:
            kept.keep()
        return result, {body["model"] for _, body in gateway.requests}

    return measure


async def test_the_base_is_measured_once(measured: Any) -> None:
    first, asked = await measured()
    assert asked == {"smol", "voice@3"}
    second, asked = await measured(before=BASE.model_copy(update={"label": "base with passages"}))
    assert asked == {"voice@3"}
    assert second.forgetting.against == "base with passages"
    assert second.numbers == first.numbers


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "f2"},
        {"items": 44},
        {"before": BASE.model_copy(update={"prompt": Prompt(system="Be brief.")})},
        {"before": Arm(label="older", model="voice@2")},
        {"template_switches": {"enable_thinking": False}},
        {"reuse": False},
    ],
)
async def test_it_is_measured_again_if_anything_is_different(measured: Any, other: dict[str, Any]) -> None:
    await measured()
    before = other.get("before", BASE)
    for _ in range(2 if other in ({"reuse": False}, {"before": Arm(label="older", model="voice@2")}) else 1):
        _, asked = await measured(**other)
        assert asked == {before.model, "voice@3"}


async def test_what_a_changing_engine_answered_is_not_kept(measured: Any, tmp_path: Path) -> None:
    await measured(keep=False)
    assert not (tmp_path / "base-measurements").exists()
    _, asked = await measured()
    assert "smol" in asked


async def test_a_damaged_file_is_measured_again(measured: Any, tmp_path: Path) -> None:
    await measured()
    (path,) = (tmp_path / "base-measurements").iterdir()
    path.write_text("{")
    assert "smol" in (await measured())[1]
    assert (await measured())[1] == {"voice@3"}


async def test_only_the_newest_are_kept(measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general_suite, "MAX_KEPT", 2)
    for fingerprint in ("f1", "f2", "f3"):
        await measured(fingerprint, items=20)
    assert len(list((tmp_path / "base-measurements").iterdir())) == 2
