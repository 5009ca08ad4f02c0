"""A worker that trains nothing: it keeps the folder's protocol with a real process, in a tenth of the time.

    python stand_in.py FOLDER --stage validate|train

What it does stands in the job's metadata: `steps` (of 20 ms each, 5 where nothing is said), `hold` (it stays at that
step until it is told something else), `die` (the step before which it kills itself; `each`: after every one), `lives`
(it does so that many times), `pace` (the tokens/s that it tells), `deaf` (it looks at no order), `judging` (once its
version is there: `die`, `hold`, or the verdict's word).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from adapters.protocol.reports import ExampleLengths
from trainer.data.report import HeldOut, Report
from trainer.errors import RunDirectoryBusy
from trainer.evaluate.evaluations.spec import VerdictRecord
from trainer.finetune import spec
from trainer.finetune.spec import JobResult, JobSpec, PrimaryMetric, TrainingPlan
from trainer.runs import protocol
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import BUSY, DONE, PAUSED, STOPPED, Control
from trainer.tune.recipe import Recipe

STEP_S = 0.02


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage")
    options = parser.parse_args()
    try:
        with RunDirectory(options.folder) as folder:
            job = JobSpec.model_validate_json(folder.path(protocol.SPEC).read_bytes())
            return validate(folder, job) if options.stage == "validate" else StandIn(folder, job).train()
    except RunDirectoryBusy:
        return BUSY


def validate(folder: RunDirectory, job: JobSpec) -> int:
    lengths = ExampleLengths(shortest=9, median=9, p95=9, longest=9, total=90, trained=40)
    report = Report(
        file="f", sha256="0", format="chat", examples=10, trained_on=10, dropped=0,
        held_out=HeldOut(examples=0, source="none"), lengths=lengths, max_length=64, findings=(), system_prompt=None,
        answers=(), distinct_answers=10, shown=(), size="10 examples",
    )  # fmt: skip
    rank, batch = int(job.metadata.get("rank", "4")), int(job.metadata.get("batch", "4"))
    recipe = Recipe(rank=rank, epochs=1, batch_size=batch, max_length=64)
    folder.write(spec.REPORT, report)
    primary = PrimaryMetric(name="rouge_l", why="it is free text", answers=("yes", "no"), max_tokens=16)
    folder.write(
        spec.PLAN, TrainingPlan(recipe=recipe, chosen={}, system_prompt=None, tokens_an_epoch=90, primary=primary)
    )
    folder.emit_event("looked at the data")
    return DONE


class StandIn:
    def __init__(self, folder: RunDirectory, job: JobSpec) -> None:
        self.folder, self.metadata, self.term = folder, job.metadata, False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        self.term = True

    def train(self) -> int:
        steps = int(self.metadata.get("steps", "5"))
        done = sorted(self.folder.path(spec.CHECKPOINTS).glob("step-*"))
        for step in range(int(done[-1].name[5:]) + 1 if done else 1, steps + 1):
            self._step(step, steps)
            while (ordered := self._ordered()) is None and self._waits(step):
                time.sleep(STEP_S)
            if ordered == DONE:
                self.folder.write(protocol.RESULT, JobResult(status="cancelled"))
            if ordered is not None:
                return ordered
        self.folder.emit_event("voice@1 is proven")
        device = "cpu" if "pace" in self.metadata else ""
        result = JobResult(status="succeeded", fine_tuned_model="voice@1", trained_tokens=40, cost=0.5, device=device)
        self.folder.write(spec.PUSHED, result)
        ordered = self._judge()
        if ordered is not None:
            return ordered
        self.folder.write(protocol.RESULT, result.model_copy(update=self._judged()))
        return DONE

    def _waits(self, step: int) -> bool:
        """At the step `hold` until it is told to stop; at the step `wait_at` until there is a file `wait_for`."""
        if self.metadata.get("hold") == str(step):
            return True
        return self.metadata.get("wait_at") == str(step) and not Path(self.metadata["wait_for"]).exists()

    def _judge(self) -> int | None:
        how = self.metadata.get("judging")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while how == "hold" and (ordered := self._ordered()) != DONE:
            if ordered is not None:
                return ordered
            time.sleep(STEP_S)
        return None

    def _judged(self) -> dict[str, Any]:
        how = self.metadata.get("judging")
        if how not in ("pass", "fail"):
            return {}
        judged = VerdictRecord(verdict=how, sentence=f"{how}: s", metric="rouge_l", examples=40, live=how == "pass")  # type: ignore[arg-type]
        return {"judged": judged, "files": ("file-report", "file-page", "file-held")}

    def _step(self, step: int, steps: int) -> None:
        time.sleep(STEP_S)
        if self.metadata.get("die") == str(step) and self._lives() > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.folder.emit_event(
            f"Step {step}", type="metrics", step=step, total_steps=steps, train_loss=1 / step,
            train_mean_token_accuracy=0.5, seconds_left=(steps - step) * STEP_S, ends_epoch=step == steps,
            full_valid_loss=2 / step, full_valid_mean_token_accuracy=0.4,
            **({"tokens_per_s": float(self.metadata["pace"])} if "pace" in self.metadata else {}),
        )  # fmt: skip
        if self.metadata.get("keep", "yes") == "yes":
            self.folder.path(spec.CHECKPOINTS).joinpath(f"step-{step:08d}").mkdir(parents=True)
        if self.metadata.get("die") == "each" and step < steps:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.metadata.get("paused"):
            self.folder.emit_event("stood still", paused_s=1.5)

    def _lives(self) -> int:
        path = self.folder.path("lives")
        left = int(path.read_text()) if path.exists() else int(self.metadata.get("lives", "99"))
        path.write_text(json.dumps(left - 1))
        return left

    def _ordered(self) -> int | None:
        if self.metadata.get("deaf"):
            return None
        wanted = self.folder.control()
        if wanted is Control.CANCEL:
            return DONE
        if self.term:
            return STOPPED
        return PAUSED if wanted is Control.PAUSE else None


if __name__ == "__main__":
    sys.exit(main())
