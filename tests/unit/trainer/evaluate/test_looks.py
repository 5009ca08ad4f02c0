"""Who tries until one passes pays for every look, whatever is left out, reworded or deleted in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainer.evaluate.worlds import QUICK, comparison, form, questions
from trainer.database import Database
from trainer.evaluate import design_rates
from trainer.evaluate.arms import Arm
from trainer.evaluate.compare import ArmResult
from trainer.evaluate.evaluations.look_store import EARLIER_LOOKS, LIST, LOOKS, LookStore, read_looks
from trainer.evaluate.looks import Look, example_key, look_confidence, position
from trainer.evaluate.verdict import Rules, decide
from trainer.evaluate.verdict_text import percent

HELD_OUT = questions(40)


def looks(*digests: str, held_out: object = HELD_OUT) -> list[Look]:
    keys = tuple(example_key(question) for question in held_out)  # type: ignore[attr-defined]
    return [Look(digest=digest, examples=keys) for digest in digests]


def test_the_first_version_is_first_and_each_other_one_pays() -> None:
    assert position([], "a", HELD_OUT) == 1
    assert position(looks("a", "b", "c"), "d", HELD_OUT) == 4
    assert position(looks("a", "b", "c"), None, HELD_OUT) == 4


def test_the_same_version_again_costs_nothing() -> None:
    assert position(looks("a", "a", "b", "a"), "a", HELD_OUT) == 1
    assert position(looks("a", "b", "c", "b"), "b", HELD_OUT) == 2


def test_a_version_without_weights_is_known_by_its_name() -> None:
    without = ArmResult(arm=Arm(label="new", model="support@2"), answers=(), runs=((),), version="support@2")
    with_weights = without.model_copy(update={"digest": "d" * 64})
    base = without.model_copy(update={"version": None})
    assert (without.looked_at, with_weights.looked_at, base.looked_at) == ("support@2", "d" * 64, None)
    assert position(looks("support@1"), without.looked_at, HELD_OUT) == 2
    assert position(looks("support@1", "support@2", "support@3"), without.looked_at, HELD_OUT) == 2


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


def test_new_examples_count_as_new() -> None:
    new = questions(80)[40:]
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


async def test_looks_outlive_what_was_looked_at(tmp_path: Path) -> None:
    store, folder = LookStore(database := Database(tmp_path / "trainer.db")), tmp_path / "run"
    await database.open()
    try:
        folder.mkdir()
        for run, digest in (("eval-1", "a"), ("ftjob-1", "b")):
            (folder / LOOKS).write_bytes(LIST.dump_json(looks(digest)))
            await store.take("acme", run, folder)
            await store.take("acme", run, folder)  # a repeated conclusion
        await store.prepare("acme", folder)
        assert read_looks(folder / EARLIER_LOOKS) == looks("a", "b")
        await store.prepare("other", folder)
        assert read_looks(folder / EARLIER_LOOKS) == [], "another project's looks are its own"
    finally:
        await database.close()


def test_a_missing_or_broken_file_holds_no_looks(tmp_path: Path) -> None:
    assert read_looks(tmp_path / "none.json") == []
    (tmp_path / "broken.json").write_text("{")
    assert read_looks(tmp_path / "broken.json") == []
