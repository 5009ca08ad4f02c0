"""The order of a ladder's stages and child runs, from what each has left; and its report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.costs import Prices
from adapters.protocol.runs import FileRef, LadderContext
from tests.unit.trainer.ladder.rungs_measured import right_at, scored
from trainer.evaluate.evaluations.spec import ARM_SCORES
from trainer.evaluate.scored_arms import ArmScores
from trainer.ladder import spec
from trainer.ladder.first_token import FirstTokens
from trainer.ladder.kind import CLIMBING, CONCLUDING, LadderKind
from trainer.ladder.reporting import LadderReport, build, render
from trainer.ladder.spec import (
    DataFacts,
    LadderBody,
    LadderDetails,
    LadderPlan,
    LadderSpec,
    Rung,
    RungKey,
    Rungs,
)
from trainer.runs.directories import RunDirectories
from trainer.runs.kind import Advance, RunOutcome, Wait
from trainer.runs.protocol import Control
from trainer.runs.state import Run, Status

LADDER = "ladder-1"
TITLES: dict[RungKey, str] = {
    "base": "the base as it is",
    "instructions": "instructions",
    "examples": "examples",
    "retrieved_examples": "retrieved examples",
}
GROUNDING = {"vector_store_ids": ["vs_examples"], "max_num_results": 4}
"""Of the rung with retrieved examples."""


def file_ref(name: str) -> FileRef:
    return FileRef(id=f"file-{name}", filename=f"{name}.jsonl", bytes=10, sha256="0" * 64)


def run_of(run_id: str, kind: str, status: Status, **changes: Any) -> Run:
    run = Run(
        number=1,
        id=run_id,
        kind=kind,
        project="default",
        key_id="key_1",
        run_key_id="key_2",
        created_at=1,
        body={"training_file": "file-data"},
        adapters=("support",),
        details=LadderDetails(adapter="support").model_dump(mode="json"),
        status=status,
        wanted=Control.RUN,
        queued_at=0,
        looked_at=0,
        served_at=0,
        interrupted=False,
        not_before=0,
        kills=0,
        progress="",
        events_offset=0,
        next_event=0,
        estimated_finish=None,
        pauses=0,
        paused_s=0,
        device_s=0,
        finished_at=None,
        result=None,
        cleared=False,
        parent=None,
    )
    return replace(run, **changes)


class LadderRun:
    """One ladder, driven by hand: what a worker or a child run leaves is written, and the kind is asked what to do."""

    def __init__(self, home: Path, **body: Any) -> None:
        self.ladders, self.evaluations, self.jobs = (
            RunDirectories(home / name, home / f"spent-{name}", ()) for name in ("ladders", "evaluations", "jobs")
        )
        for directories in (self.ladders, self.evaluations, self.jobs):
            directories.open()
        self.kind = LadderKind(self.ladders, self.evaluations, self.jobs)
        self.spec = LadderSpec(
            id=LADDER,
            project="default",
            created_at=1,
            gateway="http://gateway",
            base_dir=home,
            base_name="tiny",
            max_rank=16,
            context=None,
            context_tokens=2048,
            prices=Prices(device_hour=2.0, person_hour=50.0),
            keep_subsets_s=7 * 86_400,
            body=LadderBody.model_validate({"training_file": "file-data", "adapter": "support"} | body),
            context_of_request=LadderContext(adapter="support", training_file=file_ref("data")),
        )
        self.ladders.create(LADDER, self.spec, "key")
        self.run = run_of(LADDER, "ladder", Status.RUNNING)

    def plan(self, **changes: Any) -> LadderPlan:
        plan = LadderPlan(
            training=file_ref("training"),
            choosing=file_ref("choosing"),
            held_out=file_ref("held_out"),
            counts={"training": 400, "choosing": 40, "held_out": 120},
            instructions=("Be brief.", "Be kind."),
            metric={"name": "exact_match"},
            why_metric="one right answer",
            facts=DataFacts(examples=560),
            max_tokens=32,
        ).model_copy(update=changes)
        self.ladders.write(LADDER, spec.PLAN, plan)
        return plan

    def rungs(self, *keys: RungKey) -> Rungs:
        models = ["tiny", *(f"support@{number}" for number in range(1, len(keys)))]
        made = Rungs(
            instructions="Be kind.",
            rungs=tuple(
                Rung(
                    key=key,
                    title=TITLES[key],
                    model=model,
                    settings={"system_prompt": "Be <kind>."}
                    | ({"grounding": GROUNDING} if key == "retrieved_examples" else {}),
                )
                for key, model in zip(keys, models, strict=True)
            ),
        )
        self.ladders.write(LADDER, spec.RUNGS, made)
        return made

    def waits(self, outcome: Any) -> tuple[str, Wait]:
        """The purpose of the one child run that is waited for; from here on the ladder's record has it."""
        assert isinstance(outcome, Wait), outcome
        (child,) = outcome.children
        self.run = replace(self.run, details=self.run.details | outcome.details, status=Status.WAITING)
        return LadderDetails.model_validate(self.run.details).purposes[child.id], outcome

    def evaluated(self, wait: Wait, scores: ArmScores) -> Run:
        (child,) = wait.children
        self.evaluations.path_of(child.id).mkdir(exist_ok=True)
        self.evaluations.write(child.id, ARM_SCORES, scores)
        return run_of(child.id, "evaluation", Status.SUCCEEDED, parent=LADDER)

    def report(self) -> LadderReport:
        directory = self.ladders.path_of(LADDER)

        class Here:
            def path(self, name: str) -> Path:
                return directory / name

            read = staticmethod(lambda name, model: self.ladders.read(LADDER, name, model))

        return build(self.spec, self.ladders.read(LADDER, spec.PLAN, LadderPlan), Here())  # type: ignore[arg-type]


@pytest.fixture
def ladder(tmp_path: Path) -> LadderRun:
    return LadderRun(tmp_path)


async def climbed(ladder: LadderRun, shares: dict[RungKey, float]) -> Advance | Wait | RunOutcome[Any]:
    """What follows once the prompts are compared, with these scores."""
    ladder.plan()
    _, choosing = ladder.waits(await ladder.kind.stage_ended(ladder.run, CLIMBING, ()))
    candidates = scored({"candidate 1": right_at(0.2, 1), "candidate 2": right_at(0.4, 2)})  # type: ignore[dict-item]
    children = [ladder.evaluated(choosing, candidates)]
    assert await ladder.kind.children_ended(ladder.run, children) == Advance()
    assert ladder.kind.next_stage(ladder.run) is CLIMBING
    ladder.rungs(*shares)
    purpose, comparing = ladder.waits(await ladder.kind.stage_ended(ladder.run, CLIMBING, ()))
    assert purpose == "prompts"
    scores = scored({key: right_at(share, seed) for seed, (key, share) in enumerate(shares.items())})
    children.append(ladder.evaluated(comparing, scores))
    return await ladder.kind.children_ended(ladder.run, children)


async def test_the_instructions_are_chosen_on_a_part_of_their_own(ladder: LadderRun) -> None:
    ladder.plan()
    purpose, wait = ladder.waits(await ladder.kind.stage_ended(ladder.run, CLIMBING, ()))
    assert purpose == "choose"
    (child,) = wait.children
    assert child.spec.body.held_out == "file-choosing"  # type: ignore[attr-defined]
    assert [arm.prompt.system for arm in child.spec.body.arms] == ["Be brief.", "Be kind."]  # type: ignore[attr-defined]


async def test_a_lora_is_trained_where_it_could_matter_and_then_asked(ladder: LadderRun) -> None:
    purpose, wait = ladder.waits(await climbed(ladder, {"base": 0.1, "instructions": 0.5}))
    assert purpose == "job"
    (job,) = wait.children
    assert (job.body["training_file"], job.body["validation_file"]) == ("file-training", "file-held_out")
    assert job.spec.judging.promote == "never"  # type: ignore[attr-defined]
    done = run_of(job.id, "finetune", Status.SUCCEEDED, result={"fine_tuned_model": "support@4", "seconds": 60.0})
    purpose, asking = ladder.waits(await ladder.kind.children_ended(ladder.run, [done]))
    assert purpose == "lora"
    assert [arm.model for arm in asking.children[0].spec.body.arms] == ["support@4"]  # type: ignore[attr-defined]
    child = ladder.evaluated(asking, scored({"lora": right_at(0.9, 9)}))
    assert await ladder.kind.children_ended(ladder.run, [done, child]) == Advance(details={"stage": "conclude"})
    assert ladder.kind.next_stage(ladder.run) is CONCLUDING
    report = ladder.report()
    assert [rung.key for rung in report.rungs] == ["base", "instructions", "lora"]
    assert (report.advice.word, report.advice.rung) == ("fine_tune", "lora")
    assert report.rungs[-1].once.money == pytest.approx(60 / 3600 * 2)


async def test_a_rung_that_cannot_matter_any_more_is_skipped_and_the_report_says_why(tmp_path: Path) -> None:
    ladder = LadderRun(tmp_path, target=0.7)
    outcome = await climbed(ladder, {"base": 0.1, "instructions": 0.95})
    assert isinstance(outcome, Advance)
    (skipped,) = ladder.report().skipped
    assert (skipped.key, "reaches the target" in skipped.reason) == ("lora", True)


async def test_a_job_that_fails_leaves_the_prompts_to_advise_on(ladder: LadderRun) -> None:
    _, wait = ladder.waits(await climbed(ladder, {"base": 0.1, "instructions": 0.5}))
    failed = run_of(wait.children[0].id, "finetune", Status.FAILED, result={"error": {"message": "out of memory"}})
    assert isinstance(await ladder.kind.children_ended(ladder.run, [failed]), Advance)
    report = ladder.report()
    assert report.advice.rung == "instructions"
    assert "out of memory" in report.skipped[0].reason


async def test_a_lora_that_cannot_be_asked_leaves_the_prompts_to_advise_on(ladder: LadderRun) -> None:
    _, wait = ladder.waits(await climbed(ladder, {"base": 0.1, "instructions": 0.5}))
    done = run_of(wait.children[0].id, "finetune", Status.SUCCEEDED, result={"fine_tuned_model": "support@4"})
    _, asking = ladder.waits(await ladder.kind.children_ended(ladder.run, [done]))
    failed = run_of(asking.children[0].id, "evaluation", Status.CANCELLED)
    for _ in range(2):  # what follows may be tried again after a crash
        assert isinstance(await ladder.kind.children_ended(ladder.run, [done, failed]), Advance)
    report = ladder.report()
    assert [rung.key for rung in report.rungs] == ["base", "instructions"]
    assert [skipped.reason for skipped in report.skipped] == [
        f"the evaluation {failed.id} was cancelled: see its events"
    ]


async def test_a_worker_that_was_killed_before_all_versions_were_made_climbs_again(ladder: LadderRun) -> None:
    ladder.plan()
    _, choosing = ladder.waits(await ladder.kind.stage_ended(ladder.run, CLIMBING, ()))
    candidates = scored({"candidate 1": right_at(0.2, 1), "candidate 2": right_at(0.4, 2)})  # type: ignore[dict-item]
    await ladder.kind.children_ended(ladder.run, [ladder.evaluated(choosing, candidates)])
    assert await ladder.kind.stage_ended(ladder.run, CLIMBING, ()) is None


async def test_an_evaluation_that_fails_ends_the_ladder_with_its_message(ladder: LadderRun) -> None:
    ladder.plan()
    _, wait = ladder.waits(await ladder.kind.stage_ended(ladder.run, CLIMBING, ()))
    error = {"code": "engine_changed", "message": "the engine changed"}
    failed = run_of(wait.children[0].id, "evaluation", Status.FAILED, result={"error": error})
    outcome = await ladder.kind.children_ended(ladder.run, [failed])
    assert isinstance(outcome, RunOutcome)
    assert outcome.result.error is not None
    assert (outcome.result.status, outcome.result.error.code) == ("failed", "engine_changed")


async def test_the_page_holds_every_rung_escaped_and_loads_nothing(ladder: LadderRun) -> None:
    _, wait = ladder.waits(await climbed(ladder, {"base": 0.1, "instructions": 0.5, "examples": 0.6}))
    failed = run_of(wait.children[0].id, "finetune", Status.CANCELLED)
    await ladder.kind.children_ended(ladder.run, [failed])
    seconds = {"base": (9, 0.05, 0.07, 0.06), "instructions": (9, 2.5, 2.6, 2.4), "examples": (9, 1)}
    times = FirstTokens.model_validate({"seconds": seconds, "failed": ["examples"]})
    ladder.ladders.write(LADDER, spec.FIRST_TOKENS, times)
    page = render(ladder.report())
    assert "Be &lt;kind&gt;." in page
    assert ">60 ms<br>" in page
    assert ">2.5 s<br>" in page
    assert ">–<br>" in page
    assert [rung.first_token is None for rung in ladder.report().rungs] == [False, False, True]
    assert not re.search(r"\s(?:src|href)=|url\(|@import", page)
    assert page.count('class="rung') == 3
    assert "hatrack promote support@" in page
    assert json.loads(ladder.report().model_dump_json())["rungs"][0]["key"] == "base"
