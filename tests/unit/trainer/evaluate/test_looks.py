"""Who tries until one passes pays for every look, whatever is left out, reworded or deleted in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit.trainer.evaluate.worlds import QUICK, comparison, form, questions
from trainer.database import FILE, Database
from trainer.errors import InternalError
from trainer.evaluate import design_rates
from trainer.evaluate.arms import Arm, Prompt, Question
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.evaluations.look_store import LOOKS, LookStore, RunLooks, look_examples
from trainer.evaluate.looks import (
    Look,
    example_key,
    look_confidence,
    look_setup,
    looks_of,
    missing_examples,
    position,
    version_looked_at,
)
from trainer.evaluate.verdict import Rules, decide
from trainer.evaluate.verdict_text import percent

HELD_OUT = questions(40)


def looks(*versions: str, held_out: object = HELD_OUT) -> list[Look]:
    keys = tuple(example_key(question) for question in held_out)  # type: ignore[attr-defined]
    return [Look(version=version, examples=keys) for version in versions]


def result(label: str, *, digest: str | None = None, version: str | None = None, **arm: Any) -> ArmResult:
    return ArmResult(
        arm=Arm(label=label, **({"model": version or label} | arm)),
        answers=("a",) * 40,
        runs=((1.0,) * 40,),
        digest=digest,
        version=version,
    )


def sketched(*versions: str, held_out: Sequence[Question] = HELD_OUT, setup: str = "s") -> list[Look]:
    """As this release records them."""
    own = Comparison(
        metric="exact_match",
        binary=True,
        questions=tuple(held_out),
        results=tuple(result(version, version=version) for version in versions),
    )
    return looks_of(own, None, None, setup)


def edited(held_out: Sequence[Question], before: str = "", after: str = "") -> list[Question]:
    """Each question with a few more characters."""
    return [
        question.model_copy(
            update={
                "turns": tuple(
                    turn.model_copy(update={"content": before + turn.content + after}) for turn in question.turns
                )
            }
        )
        for question in held_out
    ]


def compared(*results: ArmResult) -> Comparison:
    return Comparison(metric="exact_match", binary=True, questions=HELD_OUT, results=results)


def test_the_first_version_is_first_and_each_other_one_pays() -> None:
    assert position([], "a", HELD_OUT) == 1
    assert position(looks("a", "b", "c"), "d", HELD_OUT) == 4


def test_the_same_version_again_costs_nothing() -> None:
    assert position(looks("a", "a", "b", "a"), "a", HELD_OUT) == 1
    assert position(looks("a", "b", "c", "b"), "b", HELD_OUT) == 2


def test_the_same_version_under_another_setup_pays() -> None:
    keys = looks("a")[0].examples
    before = [Look(version="a 1", examples=keys, setup=setup) for setup in ("s1", "s2", "s1")]
    assert [position(before, "a 1", HELD_OUT, setup) for setup in ("s1", "s2", "s3")] == [1, 2, 3]
    assert position(before, "b 1", HELD_OUT, "s1") == 3
    more = questions(200)
    assert position(before[:1], "a 1", more, "s3") == 2, "however many examples are new"
    assert look_setup(HELD_OUT, "m", 1) == look_setup(HELD_OUT[::-1], "m", 1)
    assert len({look_setup(HELD_OUT, "m", 1), look_setup(HELD_OUT, "m", 2), look_setup(HELD_OUT[1:], "m", 1)}) == 3


def test_an_earlier_release_s_look_is_the_same_on_the_same_examples() -> None:
    assert position(looks("d1"), "d1 voice@3", HELD_OUT, "s") == 1
    assert position(looks("d1"), "d1 voice@3", HELD_OUT[1:], "s") == 2


def test_examples_of_an_earlier_look_may_not_be_left_out() -> None:
    first = Look(version="a 1", examples=looks("a")[0].examples, setup="s1")
    assert missing_examples([first], "a 1", HELD_OUT[3:], "s2") == 3
    assert missing_examples([first], "a 1", HELD_OUT, "s2") == 0
    assert missing_examples([first], "a 1", questions(80), "s2") == 0
    assert missing_examples([first], "a 1", questions(80)[40:], "s2") == 0
    assert missing_examples([first], "b 1", HELD_OUT[3:], "s2") == 0
    assert missing_examples(looks("a 1"), "a 1", HELD_OUT[3:], "s2") == 0, "recorded by an earlier release"


def test_examples_that_are_in_the_file_and_not_drawn_are_not_missing() -> None:
    first = Look(version="a 1", examples=looks("a")[0].examples, setup="s1")
    drawn, others = questions(60)[20:], questions(60)[:20]
    assert missing_examples([first], "a 1", drawn, "s2") == 20
    assert missing_examples([first], "a 1", drawn, "s2", others) == 0
    assert missing_examples([first], "a 1", drawn, "s2", others[1:]) == 1
    assert missing_examples([first], "a 1", drawn, "s2", edited(others, after=" ok")) == 20


def test_pushing_out_of_a_sample_what_a_version_lost_gains_little() -> None:
    assert design_rates.grown_passes(250, 300, 0.0, draws=1000) <= 0.0125
    assert design_rates.grown_passes(250, 300, design_rates.BOUND, draws=1000) <= 0.06


def test_another_name_of_the_same_weights_leaves_out_nothing() -> None:
    named, renamed = (
        version_looked_at(result("x", digest="d1", version=version)) for version in ("voice@3", "voice2@1")
    )
    prompted = version_looked_at(result("x", digest="d1", version="voice@3", prompt=Prompt(system="Think first.")))
    first = Look(version=named, examples=looks("a")[0].examples, setup="s1")
    assert position([first], renamed, HELD_OUT[3:], "s2") == 2
    assert [missing_examples([first], version, HELD_OUT[3:], "s2") for version in (renamed, prompted)] == [3, 3]
    retrained = version_looked_at(result("x", digest="d2", version="voice@3"))
    assert missing_examples([first], retrained, HELD_OUT[3:], "s2") == 0
    without = [version_looked_at(result("x", version=version)) for version in ("support@1", "support@2")]
    bare = first.model_copy(update={"version": without[0]})
    assert [missing_examples([bare], version, HELD_OUT[3:], "s2") for version in without] == [3, 0]


def test_an_edited_example_is_missing() -> None:
    """Or those that a version lost could be edited until it wins, or the others edited to look new."""
    (first,) = (look.model_copy(update={"version": "d1 voice@3"}) for look in sketched("a"))
    changed = edited(HELD_OUT, after=" ok")
    assert missing_examples([first], "d1 voice@3", [*changed[:3], *HELD_OUT[3:]], "s2") == 3
    assert missing_examples([first], "d1 voice@3", changed[10:], "s2") == 40
    assert missing_examples([first], "d2 voice@4", changed[10:], "s2") == 0


def test_a_few_near_duplicates_make_a_new_file_no_old_one() -> None:
    (first,) = (look.model_copy(update={"version": "d1 voice@3"}) for look in sketched("a"))
    new, changed = questions(140)[40:], edited(HELD_OUT, after=" ok")
    assert missing_examples([first], "d1 voice@3", [*new[:98], *changed[:2]], "s2") == 0
    assert missing_examples([first], "d1 voice@3", [*new[:97], *changed[:3]], "s2") == 40
    parts = [
        look.model_copy(update={"version": "d1 voice@3"})
        for at in (0, 20)
        for look in sketched("a", held_out=HELD_OUT[at : at + 20], setup=f"s{at}")
    ]
    assert missing_examples(parts, "d1 voice@3", [*new[:96], *changed[18:22]], "s2") == 20, (
        "however many looks share them"
    )


def test_another_system_prompt_on_the_same_weights_is_another_version() -> None:
    first, second = (version_looked_at(result("candidate", digest="d1", version=f"voice@{n}")) for n in (3, 4))
    assert position(looks(first), second, HELD_OUT) == 2
    prompted = result("x", digest="d1", version="voice@3", prompt=Prompt(system="Think first."))
    grounded = result("x", digest="d1", version="voice@3", grounding={"vector_store_ids": ["vs_1"]})
    assert len({first, version_looked_at(prompted), version_looked_at(grounded)}) == 3
    assert position(looks(first), version_looked_at(prompted), HELD_OUT) == 2


def test_what_an_earlier_release_recorded_by_its_digest_is_the_same_version() -> None:
    version = version_looked_at(result("candidate", digest="d1", version="voice@3"))
    assert position(looks("d1", "d2"), version, HELD_OUT) == 1
    assert position(looks("d2", "d1"), version, HELD_OUT) == 2


def test_each_version_whose_scores_are_shown_has_been_looked_at() -> None:
    """Or the best of ten could be seen beside a candidate, and be judged as the first one afterwards."""
    arms = compared(
        result("base"),
        result("v2", digest="d2", version="voice@2"),
        result("candidate", digest="d9", version="voice@9"),
        result("now", digest="d1", version="voice@1"),
        result("gpt", model="gpt", endpoint="openai"),
    )
    shown = [look.version for look in looks_of(arms, "candidate", "now")]
    assert shown == ["d9 voice@9", "d2 voice@2"]
    assert [look.version for look in looks_of(arms, None, None)] == ["d2 voice@2", "d9 voice@9", "d1 voice@1"]
    assert next(look.version for look in looks_of(arms, "gpt", None)) == "none openai/gpt"


def test_each_prompt_that_was_tried_on_the_base_is_a_look() -> None:
    """Or the best of twenty could become a version without weights, and be judged as the first one."""
    tried = [result(f"p{at}", model="tiny", prompt=Prompt(system=f"Prompt {at}")) for at in range(20)]
    arms = compared(result("base", model="tiny"), *tried)
    labels = [arm.arm.label for arm in tried]
    seen = looks_of(arms, None, None, "s1", prompted=labels)
    assert [look.version.split()[:2] for look in seen] == [["none", "tiny"]] * 20
    assert len({look.version for look in seen}) == 20
    version = version_looked_at(result("support", version="support@1"))
    assert position(seen, version, HELD_OUT, "s2") == 21
    beside = compared(result("new", digest="d1", version="voice@3"), *tried)
    assert [look.version for look in looks_of(beside, "new", None)] == ["d1 voice@3"], "the base at its best"
    assert len(looks_of(beside, "new", None, prompted=labels)) == 21


def test_a_version_without_weights_is_known_by_its_name() -> None:
    without = [version_looked_at(result("new", version=f"support@{number}")) for number in (1, 2)]
    assert without == ["none support@1", "none support@2"]
    assert position(looks(without[0]), without[1], HELD_OUT) == 2
    arms = compared(result("base"), result("candidate", version="support@2"))
    assert [look.version for look in looks_of(arms, None, None)] == ["none support@2"]


def test_leaving_out_or_rewording_examples_resets_nothing() -> None:
    before = looks("a", "b", "c")
    assert position(before, "d", HELD_OUT[1:]) == 4
    reworded = [
        question.model_copy(
            update={
                "id": f"new {question.id}",
                "reference": "another",
                "turns": tuple(
                    turn.model_copy(update={"content": f"  {turn.content.upper()} !! "}) for turn in question.turns
                ),
            }
        )
        for question in HELD_OUT
    ]
    assert position(before, "d", reworded) == 4


@pytest.mark.parametrize("after", [" \U0001f642", " ok"])
def test_appending_something_to_every_question_makes_no_new_ones(after: str) -> None:
    before = sketched("a", "b", "c")
    changed = edited(HELD_OUT, after=after)
    assert not {example_key(question) for question in changed} & set(before[0].examples)
    assert position(before, "d", changed, "s2") == 4
    assert position(looks("a", "b", "c"), "d", changed, "s2") == 1, "an earlier release kept too little to see it"


def test_an_instruction_that_all_questions_share_makes_them_no_near_duplicates() -> None:
    shared = "You are given a customer's question about an order. Answer in one short and friendly sentence. "
    before = sketched("a", "b", held_out=edited(HELD_OUT, before=shared))
    assert position(before, "c", edited(questions(80)[40:], before=shared), "s") == 1
    assert position(before, "c", HELD_OUT, "s") == 3, "and leaving it out makes no new ones"


def test_new_examples_count_as_new() -> None:
    new = questions(80)[40:]
    assert position(sketched("a", "b", "c"), "d", new) == 1
    assert position(looks("a", "b", "c"), "d", new) == 1
    assert position(looks("a", "b", "c", "e"), "d", [*HELD_OUT, *new]) == 3, "half of them were used four times"


def test_all_later_looks_together_may_err_as_often_as_the_first() -> None:
    alphas = [(1 - look_confidence(0.95, number)) / 2 for number in range(1, 2000)]
    assert alphas[0] == pytest.approx(0.025)
    assert alphas == sorted(alphas, reverse=True)
    assert sum(alphas[1:]) == pytest.approx(0.025, rel=1e-3)
    assert sum(alphas[1:]) <= 0.025


def test_a_series_of_lucky_retrains_hardly_ever_passes_any_more() -> None:
    assert design_rates.lucky_series(100, paid=False, draws=150) >= 0.08
    assert design_rates.lucky_series(100, paid=True, draws=150) <= 0.05


def test_a_good_version_still_passes_late() -> None:
    assert design_rates.power_at(200, 0.2, 10, draws=150) >= 0.8


def test_the_verdict_says_what_the_looks_cost() -> None:
    arms = comparison({"voice@9": [[1.0] * 30 + [0.0] * 10], "base": [[0.0] * 40]})
    verdicts = [
        decide(
            arms,
            candidate="voice@9",
            bases=["base"],
            form=form(40),
            forgetting=None,
            rules=Rules(method=QUICK).at_look(look),
            look=look,
        )
        for look in (1, 5)
    ]
    first, fifth = (verdict.check("examples") for verdict in verdicts)
    assert first is not None
    assert fifth is not None
    assert "judged on these examples" not in first.sentence
    assert "4 other versions were judged on these examples before" in fifth.sentence
    assert "99.75%" in fifth.sentence
    assert verdicts[1].against_base.low < verdicts[0].against_base.low
    assert (verdicts[0].look, verdicts[1].look) == (1, 5)


@pytest.mark.parametrize(
    ("confidence", "text"), [(0.95, "95%"), (0.9, "90%"), (0.975, "97.5%"), (0.99583, "99.58%"), (0.99994, "99.994%")]
)
def test_a_confidence_near_one_keeps_its_digits(confidence: float, text: str) -> None:
    assert percent(confidence) == text


@pytest.fixture
async def run_directory(tmp_path: Path) -> AsyncIterator[Path]:
    """A run's directory under a trainer's home with its database."""
    database = Database(tmp_path / FILE)
    await database.open()
    directory = tmp_path / "evaluations" / "eval-1"
    directory.mkdir(parents=True)
    yield directory
    await database.close()


async def test_looks_outlive_what_was_looked_at(run_directory: Path) -> None:
    first, second = (RunLooks(run_directory, "acme", run) for run in ("eval-1", "ftjob-1"))
    assert await first.record(looks("a")) == looks("a")
    assert await second.record(looks("b")) == looks("a", "b")
    assert await second.record(looks("b")) == looks("a", "b"), "a worker that was started again"
    assert await first.record(looks("a")) == looks("a"), "what came later does not count"
    other = RunLooks(run_directory, "other", "eval-2")
    assert await other.record(looks("c")) == looks("c"), "another project's looks are its own"


async def test_an_examples_sketch_is_stored_once_in_each_project(run_directory: Path) -> None:
    store = RunLooks(run_directory, "acme", "eval-1")
    await store.record(looks("a"))
    assert [look.sketches for look in await store.record(looks("a"))] == [{}], "an earlier release's"
    second = RunLooks(run_directory, "acme", "eval-2")
    recorded = await second.record(sketched("b", "c"))
    assert [len(look.sketches) for look in recorded] == [40, 40, 40], "the earlier look has them from then on"
    assert position(recorded, "d 1", edited(HELD_OUT, after=" ok"), "s2") == 4
    await RunLooks(run_directory, "other", "eval-3").record(sketched("b"))
    database = Database(run_directory.parent.parent / FILE)
    counted = sa.select(sa.func.count()).select_from(look_examples)
    assert await database.run(lambda db: db.scalar(counted)) == 80
    await database.close()


async def test_of_versions_judged_side_by_side_only_one_is_the_first(run_directory: Path) -> None:
    runs = [RunLooks(run_directory, "acme", f"eval-{number}") for number in range(6)]
    seen = await asyncio.gather(*(run.record(looks(f"v{number}")) for number, run in enumerate(runs)))
    numbers = [position(known, f"v{number}", HELD_OUT) for number, known in enumerate(seen)]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


async def test_without_the_trainers_database_nothing_is_judged(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="looks cannot be recorded"):
        await RunLooks(tmp_path / "evaluations" / "eval-1", "acme", "eval-1").record(looks("a"))


async def test_the_file_of_a_worker_of_an_earlier_release_is_imported(run_directory: Path) -> None:
    database = Database(run_directory.parent.parent / FILE)
    store, (look,) = LookStore(database), looks("a")
    await store.import_file("acme", "eval-1", run_directory)  # there is none
    (run_directory / LOOKS).write_text("{")
    await store.import_file("acme", "eval-1", run_directory)
    (run_directory / LOOKS).write_text(json.dumps([{"digest": "a", "examples": look.examples}]))
    for _ in range(2):
        await store.import_file("acme", "eval-1", run_directory)
    assert await store.record("acme", "eval-2", looks("b")) == looks("a", "b")
    await database.close()
