"""Training on the items of the forgetting check buys that check, so the data report says so."""

from __future__ import annotations

from pathlib import Path

import pytest

import trainer.samples
from tests.unit.trainer.test_answer_faults import examples
from trainer.data.format import read_chat
from trainer.data.suite_overlap import MIN_ITEMS, suite_items, suite_overlap
from trainer.evaluate.suites.general import general_suite
from trainer.samples import MARLOW

HONEST = [("Where is my parcel?", "It is on its way."), ("What is the capital of France?", "Paris.")]


def asked_and_answered() -> list[tuple[str, str]]:
    """The suite's multiple-choice items as training examples."""
    suite = general_suite()
    pairs = [(item.stem, item.choices[item.answer]) for item in suite.choices]
    return pairs + [(item.question, item.choices[item.answer]) for item in suite.chats]


def test_the_items_are_those_of_the_suite() -> None:
    suite = general_suite()
    assert len(suite_items()) == len(suite.choices) + len(suite.chats) + len(suite.texts)


@pytest.mark.parametrize("wording", ["{}", "I was wondering: {}", "Complete the sentence, please.\n{}"])
def test_training_on_the_forgetting_check_is_reported(wording: str) -> None:
    pairs = [(wording.format(question), answer) for question, answer in asked_and_answered()]
    (finding,) = suite_overlap(examples([*HONEST, *pairs]))
    assert (finding.code, finding.severity) == ("forgetting_suite", "warning")
    assert finding.count >= 0.9 * len(pairs)
    assert "*forgetting*" in finding.message


def test_a_few_questions_that_everybody_asks_are_not() -> None:
    assert suite_overlap(examples([*HONEST, *asked_and_answered()[: MIN_ITEMS - 2]])) == []


def test_the_samples_have_none() -> None:
    folder = Path(trainer.samples.__file__).parent
    for file in (folder / "pemberton.jsonl", folder / "tidewater.jsonl", MARLOW / "training.jsonl"):
        assert suite_overlap(read_chat(file).examples) == []
