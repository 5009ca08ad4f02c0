"""The advice: the cheapest rung that is good enough, and the cases in which no score decides."""

from __future__ import annotations

import pytest

from tests.unit.trainer.ladder.rungs_measured import NO_FACTS, QUESTIONS, right_at, rows, scored
from trainer.ladder.advice import advise, measured
from trainer.ladder.spec import DataFacts

SMALLEST = 0.02


def test_a_base_that_answers_everything_right_needs_nothing() -> None:
    scores = scored({"base": right_at(0.97, 1), "instructions": right_at(0.98, 2), "lora": right_at(0.98, 3)})
    advice = advise(rows(scores), NO_FACTS, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("do_not_fine_tune", "base")
    assert advice.sentence == (
        "Do not fine-tune: nothing measured is shown to be better than the base as it is, which scores 96.7 of 100."
    )


def test_the_cheapest_rung_that_no_dearer_one_beats_is_advised() -> None:
    scores = scored({"base": right_at(0.2, 1), "instructions": right_at(0.8, 2), "lora": right_at(0.82, 3)})
    advice = advise(rows(scores), NO_FACTS, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("prompt", "instructions")
    assert "No rung above it is shown to be better by more than 2 points: the best of them, the LoRA," in " ".join(
        advice.reasons
    )


def test_a_lora_that_is_better_beyond_the_noise_is_advised() -> None:
    scores = scored({"base": right_at(0.1, 1), "instructions": right_at(0.3, 2), "lora": right_at(0.8, 3)})
    advice = advise(rows(scores), NO_FACTS, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("fine_tune", "lora")


def test_a_target_ends_the_ladder_at_the_first_rung_whose_whole_interval_reaches_it() -> None:
    scores = scored({"base": right_at(0.2, 1), "instructions": right_at(0.85, 2), "lora": right_at(0.99, 3)})
    assert advise(rows(scores), NO_FACTS, target=0.7, smallest=SMALLEST).rung == "instructions"
    assert advise(rows(scores), NO_FACTS, target=0.84, smallest=SMALLEST).rung == "lora"


def test_a_target_that_no_rung_reaches_is_named() -> None:
    scores = scored({"base": right_at(0.2, 1), "lora": right_at(0.6, 2)})
    advice = advise(rows(scores), NO_FACTS, target=0.9, smallest=SMALLEST)
    assert advice.rung == "lora"
    assert "No rung reaches the target of 90% with confidence" in advice.sentence


def test_facts_that_change_belong_in_a_store_whatever_the_score() -> None:
    facts = DataFacts(examples=100, changing_facts=60)
    scores = scored({"base": right_at(0.1, 1), "documents": right_at(0.5, 2), "lora": right_at(0.95, 3)})
    advice = advise(rows(scores), facts, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("retrieval", "documents")
    without = scored({"base": right_at(0.1, 1), "lora": right_at(0.95, 3)})
    advice = advise(rows(without), facts, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("retrieval", None)
    assert "--docs" in advice.sentence


@pytest.mark.parametrize("noisy", [False, True])
def test_answers_that_do_not_follow_from_the_questions_cannot_tell(noisy: bool) -> None:
    facts = DataFacts(examples=600, noisy_labels=noisy)
    scores = scored({"base": right_at(0.1, 1), "lora": right_at(0.12, 2)}, control=0.11)
    advice = advise(rows(scores), facts, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("cannot_tell", None)
    assert ("data report" in " ".join(advice.reasons)) == noisy


def test_too_few_examples_cannot_tell() -> None:
    scores = scored({"base": right_at(0.1, 1, 20), "lora": right_at(0.9, 2, 20)})
    advice = advise(rows(scores), NO_FACTS, target=None, smallest=SMALLEST)
    assert advice.word == "cannot_tell"
    assert "20 independent held-out examples" in advice.sentence


def test_each_rung_is_compared_with_the_one_below_question_by_question() -> None:
    base = right_at(0.5, 1)
    better = tuple(1.0 if index % 4 == 0 else score for index, score in enumerate(base))
    rungs = measured(rows(scored({"base": base, "instructions": better})))
    assert rungs[0].against_below is None
    gain = rungs[1].against_below
    assert gain is not None
    assert gain.losses == 0
    assert gain.wins == round(gain.estimate * QUESTIONS)


def test_documents_are_compared_with_the_rung_that_they_were_added_to() -> None:
    scores = scored(
        {
            "base": right_at(0.1, 1),
            "examples": right_at(0.4, 2),
            "retrieved_examples": right_at(0.6, 3),
            "documents": right_at(0.55, 4),
            "lora": right_at(0.5, 5),
        }
    )
    against = {rung.key: rung.against_below for rung in measured(rows(scores))}
    compared = {key: each and each.against for key, each in against.items()}
    assert compared == {
        "base": None,
        "examples": "base",
        "retrieved_examples": "examples",
        "documents": "examples",
        "lora": "documents",
    }
    assert against["documents"] is not None
    assert against["documents"].estimate == pytest.approx(0.15)


@pytest.mark.parametrize(("gained", "settles"), [(16, True), (8, False)])
def test_the_advice_says_how_many_examples_would_settle_a_close_comparison(gained: int, settles: bool) -> None:
    base = [1.0] * 60 + [0.0] * 60
    better = [0.0] * 5 + [1.0] * 55 + [1.0] * gained + [0.0] * (60 - gained)
    advice = advise(rows(scored({"base": base, "instructions": better})), NO_FACTS, target=None, smallest=SMALLEST)
    assert advice.rung == "base"
    (change,) = advice.would_change
    assert f"(now {QUESTIONS})" in change
    assert ("run it on about" in change) == settles
    assert ("a ladder holds out 300 at most" in change) == (not settles)
    quick = advise(
        rows(scored({"base": base, "instructions": better})), NO_FACTS, target=None, smallest=SMALLEST, quick=True
    )
    assert ("run it without `--quick`, on about" in quick.would_change[0]) == settles


def test_a_lora_is_called_better_than_every_prompt_only_where_that_is_shown() -> None:
    ordered = {
        key: tuple(1.0 if index < right else 0.0 for index in range(80))
        for key, right in {"base": 0, "instructions": 50, "lora": 54, "lora_examples": 58}.items()
    }
    advice = advise(rows(scored(ordered)), NO_FACTS, target=None, smallest=0.0)  # type: ignore[arg-type]
    assert advice.rung == "lora"
    assert "no prompt does as well" not in advice.sentence
    assert "that it is itself better than every simpler one is not shown" in advice.sentence


def test_a_lora_that_reaches_the_target_is_not_called_better_than_a_prompt_that_scores_more() -> None:
    narrow, wide = [1.0] * 114 + [0.7] * 6, [1.0] * 119 + [0.0] * 1
    wide[:8] = [0.0] * 8
    scores = scored({"base": [0.0] * 120, "instructions": wide, "lora": narrow})
    scores = scores.model_copy(update={"binary": False})
    advice = advise(rows(scores), NO_FACTS, target=0.945, smallest=SMALLEST)
    assert advice.sentence == "Fine-tune: the LoRA is the simplest rung that is shown to reach the target of 94.5%."


def test_prompts_that_all_fail_do_not_blame_the_data_where_no_lora_was_measured() -> None:
    failed = scored({"base": [0.0] * QUESTIONS, "instructions": [0.0] * QUESTIONS}, control=0.0)
    advice = advise(rows(failed), NO_FACTS, target=None, smallest=SMALLEST)
    assert (advice.word, advice.rung) == ("cannot_tell", None)
    assert advice.sentence.startswith("Not to be told without a LoRA")
    noisy = advise(rows(failed), DataFacts(examples=600, noisy_labels=True), target=None, smallest=SMALLEST)
    assert "its answers do not follow from its questions" in noisy.sentence


def test_rungs_that_all_fail_are_not_called_good_enough() -> None:
    scores = scored({"base": right_at(0.17, 1), "instructions": right_at(0.18, 2)})
    advice = advise(rows(scores), NO_FACTS, target=0.9, smallest=SMALLEST)
    assert "good enough" not in advice.sentence
    assert "which scores 16.7 of 100" in advice.sentence


HELD = {"lora": "with it, the perplexity of plain text is 42 times the base's"}


def test_a_lora_that_may_not_go_live_is_no_advice() -> None:
    scores = scored({"base": right_at(0.1, 1), "instructions": right_at(0.6, 2), "lora": right_at(0.99, 3)})
    advice = advise(rows(scores), NO_FACTS, target=None, smallest=SMALLEST, held_back=HELD)  # type: ignore[arg-type]
    assert (advice.word, advice.rung) == ("prompt", "instructions")
    assert advice.sentence.startswith("Not the LoRA as it is: it scores more, and has lost its language. The best that")
    assert advice.reasons[0].endswith(f"It is held back from `live`: {HELD['lora']}.")
    assert "gentler training" in advice.would_change[0]
    reached = advise(rows(scores), NO_FACTS, target=0.9, smallest=SMALLEST, held_back=HELD)  # type: ignore[arg-type]
    assert reached.rung == "instructions"


def test_a_lora_that_may_not_go_live_and_is_no_better_is_not_spoken_of() -> None:
    scores = scored({"base": right_at(0.1, 1), "instructions": right_at(0.8, 2), "lora": right_at(0.8, 3)})
    held = advise(rows(scores), NO_FACTS, target=None, smallest=SMALLEST, held_back=HELD)  # type: ignore[arg-type]
    assert held.rung == "instructions"
    assert "live" not in " ".join((held.sentence, *held.reasons, *held.would_change))
