"""Candidates that have words in common with the author's answers and answer nothing, on the sample voice's own data.

All go through `run`, with scripted answers and likelihoods. Each adversary has the best likelihoods that it can have.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.unit.trainer.evaluate.free_text import (
    HELD_OUT,
    ONE_TOKEN_GIVEN_AWAY,
    PARTING,
    SALAD,
    TAUGHT,
    VOICE,
    Likely,
    Preferring,
    Say,
    first_half,
    honest,
    honest_in_meaning,
    parrot,
    states,
    verdict,
)
from trainer.evaluate.arms import Question
from trainer.evaluate.metrics.choose import FREE_TEXT

Padding = Callable[[list[str], Question], list[str]]
"""What follows the first half of the answer to a question."""


async def test_an_honest_adapter_passes() -> None:
    found = await verdict(honest, Likely(*PARTING))
    assert found.word == "pass", states(found)
    assert states(found)["second_measure"] == "kept"
    assert found.likelihood is not None
    assert found.likelihood.over_base.estimate == pytest.approx(1.32, abs=0.1)
    assert "It agrees" in found.check("second_measure").sentence  # type: ignore[union-attr]
    assert {control.kind for control in found.form} == {
        *("constant", "permuted", "reassigned", "reassigned_beyond_question", "question")
    }


@pytest.mark.parametrize("answer", [SALAD, "Ahoy, matey!", TAUGHT[0]])
async def test_one_answer_to_everything_fails_whatever_its_words_and_likelihoods(answer: str) -> None:
    found = await verdict(lambda _: answer, Likely(*PARTING))
    assert (found.word, states(found)["form"]) == ("fail", "broken")
    assert "It gives every question the same answer." in [check.sentence for check in found.checks]
    if answer == SALAD:
        assert states(found)["base"] == "kept", "by words in common alone it would have passed"
        assert found.means[0].mean > 0.25


async def test_held_out_examples_of_one_label_alone_cannot_tell_and_fail_nobody() -> None:
    one_label = tuple(question.model_copy(update={"reference": "refund"}) for question in HELD_OUT)
    found = await verdict(lambda question: question.reference, None, metric="exact_match", held_out=one_label)
    assert (found.word, states(found)["form"]) == ("not_enough_evidence", "open")
    two_labels = (HELD_OUT[0].model_copy(update={"reference": "order"}), *one_label[1:])
    found = await verdict(lambda _: "refund", None, metric="exact_match", held_out=two_labels)
    assert (found.word, states(found)["form"]) == ("fail", "broken")


async def test_a_salad_that_varies_with_nothing_does_not_pass() -> None:
    found = await verdict(lambda question: f"{SALAD} {' matey' * (int(question.id) % 3)}", Likely(*PARTING))
    assert found.word != "pass"
    assert states(found)["form"] != "kept"


@pytest.mark.parametrize("seed", range(4))
async def test_random_training_answers_do_not_pass(seed: int) -> None:
    found = await verdict(parrot(seed), Likely(*PARTING))
    assert found.word != "pass"
    assert states(found)["form"] != "kept"


async def test_repeating_the_question_does_not_pass() -> None:
    found = await verdict(lambda question: question.last_message, Likely(*PARTING), base=lambda _: "No.")
    assert found.word != "pass"
    assert states(found)["form"] != "kept"


@pytest.mark.parametrize(
    ("likely", "state", "word"),
    [
        (None, "open", "not_enough_evidence"),  # at an outside endpoint
        (
            Likely(10.1, 4.67, 10.3),
            "broken",
            "fail",
        ),  # what it was trained to say leaves nothing for the author's answers
        (Likely(3.35, 4.67, 3.35), "open", "not_enough_evidence"),  # no likelier after their own questions
        (Likely(*PARTING, room=False), "open", "not_enough_evidence"),  # nothing measured after others' questions
    ],
)
async def test_words_in_common_pass_nothing_alone(likely: Likely | None, state: str, word: str) -> None:
    """Salad with the question behind it: it depends on the question, and scores well above the base."""
    found = await verdict(lambda question: f"{SALAD} {question.last_message}", likely)
    assert (states(found)["base"], states(found)["second_measure"], found.word) == ("kept", state, word)
    if likely is None:
        assert "No second measure agrees yet." in found.sentence
        assert "A close answer is not enough for a pass" in found.check("second_measure").sentence  # type: ignore[union-attr]
    if word == "fail":
        assert "it is only close to them" in found.sentence


def salad_before(question: Question) -> str:
    return f"{SALAD} {question.last_message}"


def salad_behind(question: Question) -> str:
    return f"{question.last_message} {SALAD}"


def salad_around(question: Question) -> str:
    """Half of the question's words, in another order, in the middle."""
    asked, salad = question.last_message.split(), SALAD.split()
    random.Random(question.id).shuffle(asked)
    return " ".join([*salad[:20], *asked[: (len(asked) + 1) // 2], *salad[20:]])


@pytest.mark.parametrize("metric", FREE_TEXT)
@pytest.mark.parametrize("say", [salad_before, salad_behind, salad_around])
async def test_a_salad_with_the_questions_words_does_not_pass_whatever_its_likelihoods(say: Say, metric: str) -> None:
    found = await verdict(say, Likely(*ONE_TOKEN_GIVEN_AWAY), metric=metric)
    assert states(found)["second_measure"] == "kept", "one token in 35 is not seen by a mean over tokens"
    assert (found.word, states(found)["form"]) == ("not_enough_evidence", "open")
    (beyond,) = [each for each in found.against_form if each.against == "reassigned_beyond_question"]
    assert (beyond.estimate, beyond.wins, beyond.losses) == (0, 0, 0)


@pytest.mark.parametrize("metric", FREE_TEXT)
async def test_an_honest_adapter_passes_under_every_metric_of_free_text(metric: str) -> None:
    say = honest_in_meaning if metric == "similarity" else honest
    found = await verdict(say, Likely(*PARTING), metric=metric)
    assert found.word == "pass", states(found)


@pytest.mark.parametrize("metric", FREE_TEXT)
async def test_every_metric_of_free_text_needs_the_second_measure(metric: str) -> None:
    assert "second_measure" in states(await verdict(honest, None, metric=metric))


@pytest.mark.parametrize("metric", FREE_TEXT)
async def test_answers_cut_short_do_not_pass(metric: str) -> None:
    def half(question: Question) -> str:
        answer = honest(question).split()
        return " ".join(answer[: len(answer) // 2])

    found = await verdict(half, Likely(*PARTING), metric=metric)
    assert (found.word, states(found)["length"]) == ("fail", "broken")
    assert "they are cut short" in found.check("length").sentence  # type: ignore[union-attr]


def filled_with(filler: str) -> Padding:
    """One word, for two thirds of the half's words."""
    return lambda half, _: [filler] * (2 * len(half) // 3)


def itself_again(half: list[str], _: Question) -> list[str]:
    return half


def salad(half: list[str], _: Question) -> list[str]:
    return SALAD.split()[: len(half)]


def its_question(half: list[str], question: Question) -> list[str]:
    return question.last_message.split()


def the_end_of_another_answer(half: list[str], question: Question) -> list[str]:
    end = random.Random(question.id).choice(TAUGHT).split()
    return end[len(end) // 2 :]


PADDINGS: Final = (filled_with("matey"), filled_with("a"), itself_again, salad, its_question, the_end_of_another_answer)


@pytest.mark.parametrize(("metric", "share"), [("similarity", 0.5), ("rouge_l", 1.0)])
@pytest.mark.parametrize("padding", PADDINGS)
async def test_half_an_answer_filled_up_to_its_length_does_not_pass(
    padding: Padding, share: float, metric: str
) -> None:
    def half_and_padding(question: Question) -> str:
        half = first_half(honest(question, share))
        return " ".join([*half, *padding(half, question)])

    verdict_on_it = await verdict(half_and_padding, Likely(*PARTING), metric=metric)
    assert (verdict_on_it.word, states(verdict_on_it)["length"]) == ("fail", "broken")


@pytest.mark.parametrize("seed", range(2))
async def test_random_training_answers_are_not_similar(seed: int) -> None:
    found = await verdict(parrot(seed), Likely(*PARTING), metric="similarity")
    assert found.word != "pass"
    assert states(found)["form"] != "kept"


async def test_the_most_similar_of_training_answers_does_not_pass_either() -> None:
    """A parrot that looks up: the answer to the training question with the most words in common."""

    def looked_up(question: Question) -> str:
        asked = set(question.last_message.lower().split())
        nearest = max(VOICE[:110], key=lambda row: len(asked & set(row.messages[-2].content.lower().split())))
        return nearest.messages[-1].content

    found = await verdict(looked_up, Likely(*PARTING), metric="similarity")
    assert found.word != "pass", states(found)


async def test_repeating_the_question_is_not_similar_enough() -> None:
    found = await verdict(
        lambda question: question.last_message, Likely(*PARTING), base=lambda _: "No.", metric="similarity"
    )
    assert found.word != "pass"
    assert states(found)["form"] != "kept"


async def test_binary_metrics_need_no_second_measure() -> None:
    """Labels: the question's own one is right, and no other."""
    found = await verdict(lambda question: question.reference, None, metric="exact_match")
    assert found.word == "pass", states(found)
    assert "second_measure" not in states(found)


@pytest.mark.parametrize(("share", "word"), [(0.9, "pass"), (0.5, "not_enough_evidence"), (0.1, "fail")])
async def test_a_judge_that_counts_and_prefers_it_is_a_second_measure(share: float, word: str) -> None:
    found = await verdict(honest, None, judge=Preferring(share))
    assert found.word == word, states(found)
    if word == "pass":
        assert "the judge, agrees: it gave voice@3 90 of 100" in found.check("second_measure").sentence  # type: ignore[union-attr]


async def test_a_judge_that_may_lean_towards_it_by_as_much_is_no_second_measure() -> None:
    found = await verdict(honest, None, judge=Preferring(0.7, lean=(-0.02, 0.15)))
    assert states(found)["second_measure"] == "open"
    assert states(await verdict(honest, None, judge=Preferring(0.7)))["second_measure"] == "kept"
