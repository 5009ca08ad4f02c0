"""Held-out examples that are not independent count once, whoever made them look like many."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.unit.trainer.evaluate.worlds import QUICK, comparison, form
from trainer.data.format import parse_chat
from trainer.data.split import split
from trainer.errors import DataInvalid
from trainer.evaluate import design_rates
from trainer.evaluate.arms import ChatMessage, Question
from trainer.evaluate.compare import independent_units
from trainer.evaluate.paired_difference import IntervalMethod, paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import interval, unit_means
from trainer.evaluate.verdict import Rules, decide

TOPICS = (
    "My parcel has not arrived yet",
    "How do I change the billing address",
    "The app crashes on my phone",
    "Can I get a refund for the broken lamp",
    "Which cards do you accept abroad",
    "I forgot the password of my account",
    "Do you deliver to islands in winter",
    "Please cancel the subscription at once",
)


def asked(*texts: str, groups: tuple[str | None, ...] = ()) -> list[Question]:
    return [
        Question(
            id=str(at),
            turns=(ChatMessage(role="user", content=text),),
            reference="yes",
            group=groups[at] if groups else None,
        )
        for at, text in enumerate(texts)
    ]


def test_near_duplicates_are_one_unit() -> None:
    variants = [f"{topic}{end}" for topic in TOPICS for end in ("", "!", "?!", ".", " …", "!!")]
    assert len(set(independent_units(asked(*variants)))) == len(TOPICS)


def test_other_questions_are_units_of_their_own() -> None:
    assert independent_units(asked(*TOPICS)) == tuple(range(len(TOPICS)))


def test_a_declared_group_is_one_unit_and_joins_near_duplicates() -> None:
    questions = asked(
        TOPICS[0], TOPICS[1], TOPICS[0] + "!", TOPICS[2], TOPICS[3], groups=("ann", "bob", None, "ann", None)
    )
    assert independent_units(questions) == (0, 1, 0, 0, 2)


def test_one_long_instruction_does_not_make_near_duplicates() -> None:
    instruction = (
        "You are given a customer's message. Decide which department has to answer it, and name nothing but that "
        "department.\nMessage: "
    )
    assert len(set(independent_units(asked(*(instruction + topic for topic in TOPICS))))) == len(TOPICS)


def test_but_variants_of_one_question_stay_together_under_an_instruction() -> None:
    instruction = "Decide which department has to answer the following message of a customer.\nMessage: "
    variants = [f"{instruction}{TOPICS[0]}{end}" for end in ("", "!", ".", "?")]
    assert len(set(independent_units(asked(*variants)))) == 1


def test_a_unit_counts_once_whatever_its_size() -> None:
    assert unit_means(np.array([1.0, 0.0, 1.0, 1.0]), (0, 0, 1, 2)).tolist() == [0.5, 1.0, 1.0]
    assert unit_means(np.array([1.0, 0.0]), None).tolist() == [1.0, 0.0]
    won, lost = np.array([1.0] * 10 + [0.0, 0.0]), np.array([0.0] * 10 + [1.0, 1.0])
    difference = paired_difference(
        ("a", won, NO_RUNS), ("b", lost, NO_RUNS), binary=True, method=QUICK, units=(0,) * 10 + (1, 2)
    )
    assert (difference.examples, difference.wins, difference.losses) == (3, 1, 2)
    assert difference.estimate == pytest.approx(-1 / 3)


def test_eighty_examples_in_eight_groups_are_too_few() -> None:
    """As many copies of one good answer as one likes show nothing."""
    arms = comparison({"voice@3": [[1.0] * 80], "base": [[0.0] * 80]})
    units = tuple(at // 10 for at in range(80))
    rules = Rules(method=QUICK)
    apart = decide(arms, candidate="voice@3", bases=["base"], form=form(80), forgetting=None, rules=rules)
    together = decide(
        arms.model_copy(update={"units": units}),
        candidate="voice@3",
        bases=["base"],
        form=form(80),
        forgetting=None,
        rules=rules,
    )
    assert [check.state for check in apart.checks if check.name in ("examples", "base")] == ["kept", "kept"]
    assert together.examples == 8
    check = together.check("examples")
    assert check is not None
    assert check.state == "open"
    assert "80 held-out examples count as 8" in check.sentence
    assert "80 examples, which count as 8," in together.sentence


def test_groups_no_longer_let_equal_arms_pass() -> None:
    assert design_rates.grouped_passes(20, 4, 0.0, by_units=False, draws=120) >= 0.08
    assert design_rates.grouped_passes(20, 4, 0.0, by_units=True, draws=120) <= 0.05


def test_a_split_keeps_a_group_on_one_side() -> None:
    random.seed(3)
    words = [f"w{number}x{number * 7}y" for number in range(400)]
    lines = "".join(
        f'{{"messages": [{{"role": "user", "content": "{" ".join(random.sample(words, 6))}"}}, '
        f'{{"role": "assistant", "content": "a"}}], "group": {number // 5}}}\n'
        for number in range(200)
    )
    examples = parse_chat(lines.encode())
    divided = split(examples)
    held = {examples[index].group for index in divided.held_out}
    assert held
    assert held.isdisjoint(examples[index].group for index in divided.training)


@pytest.mark.parametrize("group", ['""', "true", "1.5", "[]", '"' + "x" * 201 + '"'])
def test_a_group_is_a_short_string_or_a_number(group: str) -> None:
    line = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "group": %s}\n'
    with pytest.raises(DataInvalid, match="group must"):
        parse_chat((line % group).encode())


@pytest.mark.parametrize("name", [name for name, _, _ in design_rates.CASES])
def test_rare_large_losses_do_not_hide_below_the_interval(name: str) -> None:
    draw, reach = next((draw, reach) for case, draw, reach in design_rates.CASES if case == name)
    assert design_rates.above_truth(draw, 30, reach, draws=150)[0] <= 0.055


def test_the_sample_that_shows_no_loss_is_not_sure_of_its_gain() -> None:
    gains = np.random.default_rng(1).normal(0.04, 0.03, 30)
    before = interval(gains, confidence=0.95, binary=False, seed=0, resamples=500)
    now = interval(gains, confidence=0.95, binary=False, seed=0, resamples=500, reach=(1.0, 1.0))
    assert before.low > 0.02 > 0.0 > now.low
    assert now.high > before.high
    small = interval(gains, confidence=0.95, binary=False, seed=0, resamples=500, reach=(0.1, 0.9))
    assert small.low > 0.02, "where little can be lost, the gain stays sure"


def test_the_method_says_nothing_new_of_single_examples() -> None:
    row = np.array([1.0, 0.0] * 20)
    method = IntervalMethod()
    alone, units = (
        paired_difference(("a", row, NO_RUNS), ("b", 1 - row, NO_RUNS), binary=True, method=method, units=given)
        for given in (None, tuple(range(40)))
    )
    assert alone == units
