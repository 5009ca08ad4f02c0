"""Which LoRAs a ladder trains after the prompts, in which order, and what the learning curve says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.protocol.runs import TeacherRef
from tests.unit.trainer.ladder.rungs_measured import right_at, rows, scored
from tests.unit.trainer.ladder.test_kind import GROUNDING, LADDER, LadderRun, climbed, file_ref, ladder, run_of
from trainer.ladder import reporting, spec
from trainer.ladder.costs import rung_year
from trainer.ladder.kind import CONCLUDING, LABELLING
from trainer.ladder.reporting import render
from trainer.ladder.spec import DataFacts, Labels, Rung, Rungs, TrainingKey
from trainer.ladder.trainings import next_training
from trainer.runs.kind import Advance, Wait
from trainer.runs.state import Run, Status

__all__ = ["ladder"]
SHARES: dict[Any, float] = {"base": 0.1, "instructions": 0.2, "examples": 0.3, "retrieved_examples": 0.5}


async def prompts_compared(ladder: LadderRun, *, subsets: bool = False, **shares: float) -> Any:
    """What follows the prompts, one of which has retrieved examples."""
    outcome = await climbed(ladder, SHARES | shares)
    if subsets:
        counts = {"training": 400, "choosing": 40, "held_out": 120, "half": 200, "quarter": 100}
        ladder.plan(subsets={"half": file_ref("half"), "quarter": file_ref("quarter")}, counts=counts)
    return outcome


class Climb:
    """Goes up the LoRAs: each job makes a version, each evaluation finds the share that the test gives."""

    def __init__(self, ladder: LadderRun) -> None:
        self.ladder = ladder
        self.children: list[Run] = []
        self.jobs: list[Any] = []
        self.asked: dict[TrainingKey, dict[str, Any]] = {}

    async def lora(self, wait: Any, key: TrainingKey, share: float, seed: int, *, held_back: str | None = None) -> Any:
        purpose, training = self.ladder.waits(wait)
        assert purpose == ("job" if key == "lora" else f"job:{key}")
        (job,) = training.children
        self.jobs.append(job.spec)
        result = {"fine_tuned_model": f"support@{10 + seed}", "seconds": 60.0, "held_back": held_back}
        self.children.append(run_of(job.id, "finetune", Status.SUCCEEDED, result=result))
        purpose, asking = self.ladder.waits(await self.ladder.kind.children_ended(self.ladder.run, self.children))
        assert purpose == key
        self.asked[key] = asking.children[0].spec.context.groundings
        scores = scored({key: right_at(share, seed)})  # type: ignore[dict-item]
        self.children.append(self.ladder.evaluated(asking, scores))
        return await self.ladder.kind.children_ended(self.ladder.run, self.children)


@pytest.fixture
def climb(ladder: LadderRun) -> Climb:
    return Climb(ladder)


async def test_a_lora_with_retrieval_is_trained_with_the_grounding_of_the_rung_below(climb: Climb) -> None:
    outcome = await climb.lora(await prompts_compared(climb.ladder), "lora", 0.6, 1)
    outcome = await climb.lora(outcome, "lora_examples", 0.95, 2)
    assert isinstance(outcome, Advance)
    plain, retrieving = climb.jobs
    assert (plain.grounding, plain.judging.requested) == (None, True)
    assert (retrieving.grounding, retrieving.judging.requested) == (GROUNDING, False)
    assert climb.asked == {"lora": {}, "lora_examples": {"support@12": GROUNDING}}
    report = climb.ladder.report()
    assert [rung.key for rung in report.rungs][-2:] == ["lora", "lora_examples"]
    assert (report.advice.word, report.advice.rung) == ("fine_tune", "lora_examples")
    assert "with retrieved examples" in report.advice.sentence


@pytest.mark.parametrize(
    ("shares", "lora", "reason"),
    [
        ({"retrieved_examples": 0.3, "examples": 0.5}, 0.6, "gains nothing by the same retrieval"),
        ({}, 1.0, "answers every held-out example correctly"),
    ],
)
async def test_retrieval_that_can_not_matter_is_left_out(
    climb: Climb, shares: dict[str, float], lora: float, reason: str
) -> None:
    outcome = await climb.lora(await prompts_compared(climb.ladder, **shares), "lora", lora, 1)
    assert isinstance(outcome, Advance)
    assert climb.ladder.kind.next_stage(replace(climb.ladder.run, details=climb.ladder.run.details)) is CONCLUDING
    (skipped,) = climb.ladder.report().skipped
    assert (skipped.key, reason in skipped.reason) == ("lora_examples", True)


@pytest.mark.parametrize(
    ("documents", "trained"), [(0.45, "lora_examples"), (0.7, "lora_documents")], ids=["less", "more"]
)
def test_of_two_rungs_with_retrieval_the_better_one_gets_a_lora(documents: float, trained: str) -> None:
    keys: dict[Any, float] = SHARES | {"documents": documents, "lora": 0.6}
    measured = rows(scored({key: right_at(share, seed) for seed, (key, share) in enumerate(keys.items())}))
    made = Rungs(
        rungs=tuple(
            Rung(key=key, title=key, model=f"support@{number}", settings={"grounding": {"vector_stores": [key]}})
            for number, (key, _, _) in enumerate(measured)
        )
    )
    plan: Any = SimpleNamespace(facts=DataFacts(examples=600, noisy_labels=True), subsets={}, prompts=0)
    body = SimpleNamespace(lora=True, target=None, quick=False)
    ladder: Any = SimpleNamespace(
        body=body, smallest_difference=0.02, base_name="base", context_of_request=SimpleNamespace(teacher=None)
    )
    found = next_training(ladder, plan, made, measured, {"lora"})
    assert (found.key, found.skipped) == (trained, ())


@pytest.mark.parametrize(("quick", "trained"), [(False, "lora_examples"), (True, None)])
def test_a_quick_ladder_trains_none_with_retrieval_whose_gain_is_within_the_noise(
    quick: bool, trained: str | None
) -> None:
    below = right_at(0.5, 1)
    slightly_better = [1.0 if index == below.index(0.0) else score for index, score in enumerate(below)]
    shares: Any = {"examples": below, "retrieved_examples": slightly_better, "lora": right_at(0.6, 2)}
    measured = rows(scored(shares))
    made = Rungs(
        rungs=tuple(
            Rung(key=key, title=key, model="support@1", settings={"grounding": {"vector_stores": ["vs_1"]}})
            for key, _, _ in measured
        )
    )
    plan: Any = SimpleNamespace(facts=DataFacts(examples=600, noisy_labels=False), subsets={}, prompts=0)
    ladder: Any = SimpleNamespace(body=SimpleNamespace(lora=True, target=None, quick=quick))
    found = next_training(ladder, plan, made, measured, {"lora"})
    assert found.key == trained
    assert all("within the noise" in each.reason for each in found.skipped)
    assert bool(found.skipped) == quick


def test_labels_of_which_single_words_say_nothing_are_trained_on() -> None:
    chance = scored({"base": right_at(0.5, 1), "instructions": right_at(0.5, 2)}, control=0.5)
    plan: Any = SimpleNamespace(facts=DataFacts(examples=600, noisy_labels=True), subsets={}, prompts=0)
    ladder: Any = SimpleNamespace(body=SimpleNamespace(lora=True, target=None), smallest_difference=0.02)
    assert next_training(ladder, plan, Rungs(), rows(chance), set()).key == "lora"


async def test_the_curve_says_whether_more_examples_would_help(climb: Climb) -> None:
    outcome = await prompts_compared(climb.ladder, subsets=True)
    for seed, (key, share) in enumerate({"lora": 0.9, "lora_examples": 0.9, "half": 0.5, "quarter": 0.3}.items()):
        outcome = await climb.lora(outcome, key, share, seed)  # type: ignore[arg-type]
    assert isinstance(outcome, Advance)
    assert [job.training_file.id for job in climb.jobs[-2:]] == ["file-half", "file-quarter"]
    kept = 7 * 86_400
    assert [job.keep_version_s for job in climb.jobs] == [None, None, kept, kept], "a rung stays, a part is deleted"
    assert "are deleted 7 days after" in render(climb.ladder.report())
    report = climb.ladder.report()
    assert report.curve is not None
    assert [(point.part, point.examples) for point in report.curve.points] == [
        ("a quarter", 100),
        ("a half", 200),
        ("all", 400),
    ]
    assert report.curve.sentence.startswith("More examples would probably help. 400 examples against 200 of them: +40")
    assert [rung.key for rung in report.rungs][-1] == "lora_examples"


async def test_what_the_parts_of_the_curve_took_is_no_rung_s(climb: Climb, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = await prompts_compared(climb.ladder, subsets=True)
    for key in ("lora", "lora_examples", "half", "quarter"):
        outcome = await climb.lora(outcome, key, 0.5, 1)  # type: ignore[arg-type]
    judged: list[float] = []

    def counted(*arguments: Any, judging_seconds: float, **more: Any) -> Any:
        judged.append(judging_seconds)
        return rung_year(*arguments, judging_seconds=judging_seconds, **more)

    monkeypatch.setattr(reporting, "rung_year", counted)
    rungs = climb.ladder.report().rungs
    assert len(judged) == len(rungs) == 6
    assert sum(judged) == pytest.approx(3 * 60), "the prompts, and two LoRAs"


async def test_a_part_that_fails_leaves_a_shorter_curve(climb: Climb) -> None:
    outcome = await prompts_compared(climb.ladder, subsets=True)
    outcome = await climb.lora(outcome, "lora", 0.9, 1)
    outcome = await climb.lora(outcome, "lora_examples", 0.9, 2)
    _, training = climb.ladder.waits(outcome)
    error = {"error": {"message": "out of memory"}}
    climb.children.append(run_of(training.children[0].id, "finetune", Status.FAILED, result=error))
    outcome = await climb.ladder.kind.children_ended(climb.ladder.run, climb.children)
    assert isinstance(outcome, Wait)
    assert "out of memory" in outcome.notes[0]
    outcome = await climb.lora(outcome, "quarter", 0.89, 3)
    assert isinstance(outcome, Advance)
    report = climb.ladder.report()
    assert report.curve is not None
    assert [point.part for point in report.curve.points] == ["a quarter", "all"]
    assert [skipped.key for skipped in report.skipped] == ["half"]


# the cleanest half


async def halves_compared(climb: Climb, cleaner: int = 60, **shares: float) -> Any:
    """What a ladder does after the LoRA, the half and, unless it is left out, the cleanest half."""
    outcome = await prompts_compared(climb.ladder, retrieved_examples=0.3, examples=0.5)
    counts = {"training": 400, "choosing": 40, "held_out": 120, "half": 200, "cleanest_half": 200}
    files = {"half": file_ref("half"), "cleanest_half": file_ref("cleanest_half")}
    climb.ladder.plan(subsets=files, counts=counts, cleaner=cleaner)
    for seed, (key, share) in enumerate(shares.items()):
        outcome = await climb.lora(outcome, key, share, seed)  # type: ignore[arg-type]
    return outcome


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({"half": 0.5, "cleanest_half": 0.85}, "Both more examples and cleaner ones would probably help."),
        ({"half": 0.9, "cleanest_half": 0.6}, "Cleaner examples would hardly help; whether more would is open."),
        (
            {"half": 0.6, "cleanest_half": 0.55},
            "More examples would probably help; whether cleaner ones would is open.",
        ),
    ],
)
async def test_the_report_says_whether_more_or_cleaner_examples_would_help(
    climb: Climb, shares: dict[str, float], sentence: str
) -> None:
    outcome = await halves_compared(climb, lora=0.9, **shares)
    assert isinstance(outcome, Advance)
    assert climb.jobs[-1].training_file.id == "file-cleanest_half"
    report = climb.ladder.report()
    curve = report.curve
    assert curve is not None
    assert curve.cleanest is not None
    assert curve.cleaner is not None
    assert curve.against_all is not None
    assert curve.cleaner.estimate == pytest.approx(shares["cleanest_half"] - shares["half"])
    assert curve.against_all.estimate == pytest.approx(shares["cleanest_half"] - 0.9)
    assert "the cleanest 200 against 200 at random" in curve.sentence
    assert [point.part for point in curve.points] == ["a half", "all"]
    assert curve.sentence.startswith(f"{sentence} 400 examples against 200 of them: ")
    assert "cleanest_half" not in [rung.key for rung in report.rungs], "no rung: the advice never names it"
    assert "or cleaner ones?" in render(report)


async def test_data_that_the_report_finds_clean_has_no_cleanest_half(climb: Climb) -> None:
    outcome = await halves_compared(climb, cleaner=9, lora=0.9, half=0.5)
    assert isinstance(outcome, Advance)
    report = climb.ladder.report()
    (reason,) = (each.reason for each in report.skipped if each.key == "cleanest_half")
    assert "the cleanest half has only 9 that the random half has not" in reason
    assert report.curve is not None
    assert report.curve.sentence.startswith("More examples would probably help. 400 examples against 200 of them")


async def test_without_the_random_half_the_cleanest_is_compared_with_all(climb: Climb) -> None:
    outcome = await halves_compared(climb, lora=0.9)
    _, training = climb.ladder.waits(outcome)
    error = {"error": {"message": "out of memory"}}
    climb.children.append(run_of(training.children[0].id, "finetune", Status.FAILED, result=error))
    outcome = await climb.ladder.kind.children_ended(climb.ladder.run, climb.children)
    assert isinstance(await climb.lora(outcome, "cleanest_half", 0.8, 5), Advance)
    curve = climb.ladder.report().curve
    assert curve is not None
    assert (curve.cleaner, curve.against_all is not None) == (None, True)
    assert "was not measured. The cleanest 200 against all 400" in curve.sentence


# the teacher

LABELS = Labels(
    teacher="support@2",
    outside=False,
    prompts=300,
    answered=280,
    refused=15,
    truncated=5,
    prompt_tokens=30_000,
    completion_tokens=3_000,
    engine_seconds=180.0,
    file=file_ref("labelled"),
)


async def teacher_is_next(climb: Climb, lora: float = 0.7) -> Advance:
    """A ladder with a teacher, whose LoRA is measured."""
    outcome = await prompts_compared(climb.ladder, retrieved_examples=0.3, examples=0.5)
    climb.ladder.plan(prompts=300)
    outcome = await climb.lora(outcome, "lora", lora, 1)
    assert isinstance(outcome, Advance)
    climb.ladder.run = replace(climb.ladder.run, details=climb.ladder.run.details | outcome.details)
    return outcome


async def test_the_teacher_is_asked_once_its_answers_can_still_matter_and_a_lora_learns_from_them(climb: Climb) -> None:
    await teacher_is_next(climb)
    kind, run = climb.ladder.kind, climb.ladder.run
    assert kind.next_stage(run) is LABELLING
    assert await kind.stage_ended(run, LABELLING, ()) is None  # the worker was killed before the first reply …
    climb.ladder.ladders.write(LADDER, spec.LABELS, LABELS.model_copy(update={"file": None}))
    assert await kind.stage_ended(run, LABELLING, ()) is None  # … or before the last
    climb.ladder.ladders.write(LADDER, spec.LABELS, LABELS)
    outcome = await climb.lora(await kind.stage_ended(run, LABELLING, ()), "distilled", 0.95, 2)
    assert isinstance(outcome, Advance)
    assert kind.next_stage(climb.ladder.run) is CONCLUDING
    assert climb.jobs[-1].training_file == LABELS.file
    report = climb.ladder.report()
    distilled = report.rungs[-1]
    assert (distilled.key, distilled.against_below is not None) == ("distilled", True)
    assert (report.advice.word, report.advice.rung) == ("fine_tune", "distilled")
    assert "the LoRA that learnt from the teacher" in report.advice.sentence
    # 60 s of training and 180 s of the teacher, at 2 an hour
    assert (distilled.once.device_seconds, distilled.once.money) == (240, pytest.approx(240 / 3600 * 2))
    assert distilled.once.teacher == pytest.approx(180 / 3600 * 2)
    assert report.labels == LABELS
    page = render(report)
    assert "support@2 answered 280 of 300 prompts; 15 refused and 5 cut" in " ".join(page.split())


async def test_a_teacher_is_not_paid_where_nothing_can_score_more(climb: Climb) -> None:
    await teacher_is_next(climb, lora=1.0)
    assert climb.ladder.kind.next_stage(climb.ladder.run) is CONCLUDING
    skipped = {each.key: each.reason for each in climb.ladder.report().skipped}
    assert "the LoRA answers every held-out example correctly" in skipped["distilled"]


async def test_a_teacher_is_not_paid_once_the_target_is_reached(tmp_path: Path) -> None:
    climb = Climb(LadderRun(tmp_path, target=0.8))
    await teacher_is_next(climb, lora=0.99)
    assert climb.ladder.kind.next_stage(climb.ladder.run) is CONCLUDING
    skipped = {each.key: each.reason for each in climb.ladder.report().skipped}
    assert skipped["distilled"] == "the LoRA reaches the target already"


@pytest.mark.parametrize(
    ("teacher", "asked"),
    [
        ("support@2", False),  # the instructions, which the LoRA beats
        ("tiny", False),  # the base, which would be told the instructions
        ("support@3", True),  # the fixed examples, which it is not shown to beat
        ("voice@2", True),  # no rung: nobody knows how good it is
    ],
)
async def test_a_teacher_that_a_lora_already_beats_teaches_nothing(climb: Climb, teacher: str, asked: bool) -> None:
    context = climb.ladder.spec.context_of_request
    context = context.model_copy(update={"teacher": TeacherRef(name=teacher, outside=False)})
    climb.ladder.spec = climb.ladder.spec.model_copy(update={"context_of_request": context})
    climb.ladder.ladders.write(LADDER, "spec.json", climb.ladder.spec)
    await teacher_is_next(climb, lora=0.55)
    assert (climb.ladder.kind.next_stage(climb.ladder.run) is LABELLING) is asked
    if not asked:
        skipped = {each.key: each.reason for each in climb.ladder.report().skipped}
        assert skipped["distilled"] == "the LoRA is better than the teacher, whose answers it would learn"


async def test_a_teacher_may_still_help_where_the_lora_could_not_be_trained(climb: Climb) -> None:
    outcome = await prompts_compared(climb.ladder, retrieved_examples=0.3, examples=0.5)
    climb.ladder.plan(prompts=300)
    _, training = climb.ladder.waits(outcome)
    error = {"error": {"message": "out of memory"}}
    failed = run_of(training.children[0].id, "finetune", Status.FAILED, result=error)
    outcome = await climb.ladder.kind.children_ended(climb.ladder.run, [failed])
    assert isinstance(outcome, Advance)
    assert outcome.details == {"stage": "label"}


async def test_a_teacher_that_cannot_be_asked_leaves_the_other_rungs_to_advise_on(climb: Climb) -> None:
    await teacher_is_next(climb)
    reason = "the teacher support@2 stayed busy (429 queue_full)"
    climb.ladder.ladders.write(LADDER, spec.LABELS, LABELS.model_copy(update={"file": None, "error": reason}))
    for _ in range(2):  # what follows may be tried again after a crash
        outcome = await climb.ladder.kind.stage_ended(climb.ladder.run, LABELLING, ())
        assert isinstance(outcome, Advance)
        assert (outcome.notes[0], outcome.details) == (reason, {"stage": "conclude"})
    report = climb.ladder.report()
    assert report.advice.rung == "lora"
    assert [each.reason for each in report.skipped if each.key == "distilled"] == [reason]


async def test_a_lora_that_may_not_go_live_excludes_no_other_and_is_not_advised(climb: Climb) -> None:
    why = "with it, the perplexity of plain text is 42 times the base's"
    outcome = await climb.lora(await prompts_compared(climb.ladder), "lora", 1.0, 1, held_back=why)
    outcome = await climb.lora(outcome, "lora_examples", 0.9, 2)
    assert isinstance(outcome, Advance)
    report = climb.ladder.report()
    assert report.advice.rung == "lora_examples"
    assert why in report.advice.reasons[0]
    assert [rung.held_back for rung in report.rungs if rung.key == "lora"] == [why]
    assert "support@11, held back" in render(report)
