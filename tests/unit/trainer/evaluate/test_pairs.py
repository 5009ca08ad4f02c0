"""When a judge's agreement with people makes it count, what is said of it, and how many more reviews it takes."""

from __future__ import annotations

import json

import pytest

from trainer.evaluate.endpoints import JudgeSettings
from trainer.evaluate.pairs import JudgeAgreement, Vote

SETTINGS = JudgeSettings(endpoint="big", model="large-1", rubric="The better answer is right and short.")
Votes = list[tuple[Vote, Vote]]


def standing(votes: Votes) -> JudgeAgreement:
    return JudgeAgreement.of_votes(SETTINGS.digest, votes)


def reviewed(agreed: int, leaned: int = 0, against: int = 0) -> Votes:
    """Equally many agreed votes for the candidate, ties and the base, and votes that lean to one side or the other."""
    votes: Votes = [(vote, vote) for vote in ("candidate", "tie", "base") for _ in range(agreed // 3)]
    return [*votes, *[("candidate", "base")] * leaned, *[("base", "candidate")] * against]


def test_a_judge_that_agrees_and_does_not_lean_counts() -> None:
    good = standing(reviewed(108, 6, 6))
    assert good.pairs == 120
    assert good.lean == 0
    assert good.counts(SETTINGS)
    assert good.more_reviews(SETTINGS) == 0
    sentence = good.sentence("strict", SETTINGS)
    assert sentence.startswith(
        "The judge strict counts: on 120 pairs its agreement with people is κ = 0.85 (98% interval"
    )
    assert "gives the candidate 0 points of 100 more than people do (98% interval −" in sentence


def test_an_estimate_above_the_threshold_is_not_enough() -> None:
    """The estimate of κ is 0.6, which 120 reviews do not tell from 0.5."""
    fair = standing(reviewed(87, 16, 17))
    assert fair.kappa is not None
    assert fair.kappa > 0.57
    assert not fair.counts(SETTINGS)
    assert "it is not shown to agree with people enough" in fair.sentence("strict", SETTINGS)


def test_one_that_only_ever_errs_towards_the_candidate_does_not_count() -> None:
    """The two agree equally often with people; one of them leans."""
    honest, leaning = standing(reviewed(105, 8, 7)), standing(reviewed(105, 15, 0))
    assert honest.observed == leaning.observed
    assert honest.counts(SETTINGS)
    assert leaning.kappa is not None
    assert leaning.kappa > 0.8
    assert not leaning.counts(SETTINGS)
    assert "it leans towards the candidate" in leaning.sentence("strict", SETTINGS)
    assert "No practical number of reviews would be enough" in leaning.sentence("strict", SETTINGS)


def test_one_that_leans_towards_the_base_counts_and_that_is_said() -> None:
    strict = standing(reviewed(105, 0, 15))
    assert strict.counts(SETTINGS)
    assert "12.5 points of 100 fewer than people do" in strict.sentence("strict", SETTINGS)
    assert "It leans towards the base" in strict.sentence("strict", SETTINGS)


def test_ties_that_become_votes_for_the_candidate_are_a_lean_too() -> None:
    """No vote is turned into its opposite, but every third tie of people's is one for the candidate."""
    votes: Votes = [(vote, vote) for vote in ("candidate", "base") for _ in range(30)]
    votes += [("tie", "tie")] * 30 + [("candidate", "tie")] * 30
    kind = standing(votes)
    assert kind.lean == pytest.approx(0.125)
    assert kind.kappa is not None
    assert kind.kappa > 0.6
    assert not kind.counts(SETTINGS)


def test_a_record_of_an_earlier_version_does_not_say_whether_it_leans() -> None:
    stored = {"digest": SETTINGS.digest, "pairs": 400, "kappa": 0.9, "low": 0.85, "high": 0.95, "observed": 0.93}
    old = JudgeAgreement.model_validate_json(json.dumps(stored))
    assert (old.lean, old.lean_high, old.confidence) == (None, None, 0.95)
    assert not old.counts(SETTINGS)
    assert "did not measure whether it leans towards the candidate" in old.sentence("strict", SETTINGS)
    assert old.more_reviews(SETTINGS) is None


def test_votes_that_are_all_the_same_measure_nothing() -> None:
    same = standing([("candidate", "candidate")] * 200)
    assert (same.kappa, same.lean) == (None, 0)
    assert not same.counts(SETTINGS)
    assert "cannot be measured" in same.sentence("strict", SETTINGS)
    assert same.more_reviews(SETTINGS) is None


@pytest.mark.parametrize(
    ("votes", "more"),
    [
        ([], 100),
        (reviewed(18, 1, 1), 80),
        (reviewed(96, 2, 2), 0),
        (reviewed(54, 20, 26), None),
    ],
)
def test_it_says_how_many_more_reviews_would_be_enough(votes: Votes, more: int | None) -> None:
    assert standing(votes).more_reviews(SETTINGS) == more


def test_as_many_more_reviews_as_it_says_are_enough_if_the_estimates_hold() -> None:
    votes = reviewed(81, 10, 9)
    now = standing(votes)
    more = now.more_reviews(SETTINGS)
    assert more is not None
    assert more > 0
    assert f"About {more} more reviews would be enough" in now.sentence("strict", SETTINGS)
    later = standing(votes * (1 + -(-more // len(votes))))
    assert (later.kappa, later.lean) == (pytest.approx(now.kappa), pytest.approx(now.lean))
    assert later.counts(SETTINGS)


def test_another_models_agreement_is_worth_nothing() -> None:
    other = SETTINGS.model_copy(update={"model": "large-2"})
    good = standing(reviewed(120))
    assert good.counts(SETTINGS)
    assert not good.counts(other)
    assert good.more_reviews(other) == 100
    assert "people have looked at 0 of its votes" in good.sentence("strict", other)
