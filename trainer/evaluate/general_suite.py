"""The general suite as a part of an evaluation, and the base's measurements of it, which are kept over evaluations.

What a base finds likely changes with its fingerprint alone, so that one measurement serves every evaluation on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from trainer.durable import replaced_file
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Arm
from trainer.evaluate.compare import OnStage
from trainer.evaluate.forgetting import Forgetting, SuitePart, compare_measurements
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.spec import GENERAL, SuiteResult
from trainer.evaluate.suites.general import SuiteItems, SuiteMeasurement, general_suite, measure
from trainer.evaluate.verdict import Rules

DIRECTORY: Final = "base-measurements"
"""In the trainer's directory."""
MAX_KEPT: Final = 200
"""Files; there is one for each fingerprint, system prompt, setting of the template and choice of items."""


class BaseMeasurements:
    """Measurements of the general suite on the base alone, under one fingerprint of the engine.

    Only counts and log-probabilities of the suite's items are kept, which are public: no project's data.

    Args:
        directory: Shared by all runs of a trainer.
        base_model: The base's served name.
        fingerprint: Of the engine that is asked.
        template_switches: The scorer's: what a chat's prompt ends with depends on them.
        reuse: Whether earlier measurements are used. A revalidation measures anew: it asks whether anything changed.
    """

    def __init__(
        self,
        directory: Path,
        base_model: str,
        fingerprint: str,
        *,
        template_switches: Mapping[str, bool] | None = None,
        reuse: bool = True,
    ) -> None:
        self._directory, self._base_model = directory, base_model
        self._fingerprint, self._reuse = fingerprint, reuse
        self._template_switches = {**(template_switches or {})}
        self._measured: dict[Path, SuiteMeasurement] = {}

    def find(self, arm: Arm, items: SuiteItems, *, shuffled: bool) -> SuiteMeasurement | None:
        """An earlier measurement of the same arm on the same items; None if there is none that may be used."""
        path = self._path(arm, items, shuffled)
        if path is None or not self._reuse:
            return None
        try:
            return SuiteMeasurement.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):  # ValidationError: of another release
            return None

    def add(self, arm: Arm, items: SuiteItems, measurement: SuiteMeasurement, *, shuffled: bool) -> None:
        """Take up a measurement, to be kept by `keep`; one of another model than the base is not."""
        path = self._path(arm, items, shuffled)
        if path is not None:
            self._measured[path] = measurement

    def keep(self) -> None:
        """Write what was measured, once it is known that the engine has not changed meanwhile. Raises OSError."""
        if not self._measured:
            return
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for path, measurement in self._measured.items():
            with replaced_file(path) as file:
                file.write(measurement.model_dump_json().encode())
        self._measured.clear()
        by_age = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[MAX_KEPT:]:
            path.unlink(missing_ok=True)

    def _path(self, arm: Arm, items: SuiteItems, shuffled: bool) -> Path | None:
        if arm.endpoint is not None or arm.model != self._base_model:
            return None
        asked = [self._fingerprint, arm.model, arm.prompt.model_dump(), self._template_switches]
        measured = [*asked, items.model_dump(), shuffled]
        return self._directory / f"{hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()}.json"


class GeneralSuite:
    """The general suite of this package, as a `Suite`.

    Args:
        scorer: Measures the log-probabilities.
        rules: With the budget, and the number of items.
        base_measurements: Those of the base that are kept; None: everything is measured.
    """

    name = GENERAL

    def __init__(self, scorer: Scorer, rules: Rules, base_measurements: BaseMeasurements | None = None) -> None:
        self._scorer, self._rules, self._kept = scorer, rules, base_measurements

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """See `Suite`."""
        items, budget = general_suite().limited(self._rules.forget_items), self._rules.budget
        shuffled = budget.perplexity is None
        base = None if self._kept is None else self._kept.find(before, items, shuffled=shuffled)
        if base is None:
            base = await self._measure(before, items, on_stage, shuffled=shuffled)
            if self._kept is not None:
                self._kept.add(before, items, base, shuffled=shuffled)
        base = base.model_copy(update={"label": before.label})
        candidate = await self._measure(after, items, on_stage)
        forgetting = compare_measurements(items, base, candidate, budget, self._rules.method)
        return SuiteResult(
            name=self.name,
            kind="budget",
            state=forgetting.state,
            silent=all(part.state == "silent" for part in _accuracies(forgetting)),
            sentence=verdict_text.forgetting(forgetting),
            numbers={
                name: {"before": part.base, "after": part.candidate}
                for name, part in (
                    ("accuracy", forgetting.accuracy),
                    ("chat", forgetting.chat),
                    ("perplexity", forgetting.perplexity),
                )
                if part is not None
            },
            forgetting=forgetting,
        )

    async def _measure(
        self, arm: Arm, items: SuiteItems, on_stage: OnStage | None, *, shuffled: bool = False
    ) -> SuiteMeasurement:
        def on_progress(done: int, total: int) -> None:
            if on_stage is not None:
                on_stage(f"general suite, {arm.label}", done, total)

        return await measure(arm, items, self._scorer, on_progress, shuffled=shuffled)


def _accuracies(forgetting: Forgetting) -> list[SuitePart]:
    return [part for part in (forgetting.accuracy, forgetting.chat) if part is not None]
