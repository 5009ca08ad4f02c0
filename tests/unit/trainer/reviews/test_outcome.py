"""What people prefer, as a figure, a sentence and a section of the page; and where choices of earlier releases went."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from trainer.database import MIGRATIONS, Database
from trainer.evaluate.pairs import Vote, points_of
from trainer.evaluate.statistics.paired import as_array, interval
from trainer.http import CurrentCaller
from trainer.reviews import records
from trainer.reviews.outcome import SECTION, human_preference, with_section
from trainer.reviews.records import PairChoices, Queue


def queue(pairs: int, *, reviewers: int = 1, candidate: str = "shop@3", base: str = "base") -> Queue:
    return Queue(
        number=1, evaluation="eval-1", project="default", judge="", digest="", candidate=candidate, base=base,
        created_at=0, adapters=[], reviewers=reviewers, differing=pairs, alike=0, pairs=pairs, reviewed=pairs,
    )  # fmt: skip


def choices(*votes: tuple[Vote, ...], units: tuple[int, ...] | None = None) -> list[PairChoices]:
    return [PairChoices(at, at if units is None else units[at], each) for at, each in enumerate(votes)]


def of_counts(candidate: int, tie: int, base: int) -> list[PairChoices]:
    votes: list[tuple[Vote, ...]] = [("candidate",)] * candidate + [("tie",)] * tie + [("base",)] * base
    return choices(*votes)


def test_the_figure_counts_ties_half_and_has_the_interval_of_a_judges_preference() -> None:
    found = human_preference(queue(50), of_counts(24, 10, 16))
    scores = as_array([1.0] * 24 + [0.5] * 10 + [0.0] * 16) - 0.5
    bounds = interval(scores, confidence=0.95, binary=False, seed=1)
    assert (found.candidate, found.tie, found.base, found.mean) == (24, 10, 16, pytest.approx(0.58))
    assert (found.low, found.high) == (pytest.approx(0.5 + bounds.low), pytest.approx(0.5 + bounds.high))
    assert found.sentence == (
        "On 50 pairs of different answers, without knowing whose they were, people chose shop@3 24 times, base 16 "
        f"times, and neither 10 times: 8 points of 100 from even (95% interval {points_of(bounds.low)} to "
        f"{points_of(bounds.high)}), so no preference is shown. It decides nothing in the verdict."
    )


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((45, 3, 2), "so people prefer shop@3."),
        ((2, 3, 45), "so people prefer base."),
        ((25, 0, 25), "so no preference is shown."),
        ((0, 50, 0), "so no preference is shown."),
        ((1, 0, 0), "so no preference is shown."),
    ],
)
def test_a_preference_is_said_only_where_its_interval_leaves_out_even(counts: tuple[int, int, int], shown: str) -> None:
    found = human_preference(queue(sum(counts)), of_counts(*counts))
    assert shown in found.sentence
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_questions_that_are_variants_of_one_count_once() -> None:
    """Nine variants of one question and one other question: the mean is that of two, and its interval is wide."""
    votes: list[tuple[Vote, ...]] = [("candidate",)] * 9 + [("base",)]
    found = human_preference(queue(10), choices(*votes, units=(0,) * 9 + (1,)))
    assert (found.mean, found.pairs) == (0.5, 10)
    assert (found.low, found.high) == (0, 1)


def test_a_pairs_score_is_the_mean_of_its_reviewers() -> None:
    found = human_preference(
        queue(4, reviewers=2),
        choices(("candidate", "candidate"), ("candidate", "base"), ("tie", "base"), ("base", "base")),
    )
    assert found.mean == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
    assert (found.candidate, found.tie, found.base, found.agreed) == (3, 1, 4, 0.5)
    assert found.kappa is not None
    assert found.kappa_low is not None
    assert found.kappa_low < found.kappa < (found.kappa_high or 0)


def test_reviewers_who_all_choose_the_same_have_no_kappa() -> None:
    votes: list[tuple[Vote, ...]] = [("candidate", "candidate", "candidate")] * 5
    found = human_preference(queue(5, reviewers=3), choices(*votes))
    assert (found.agreed, found.kappa) == (1.0, None)
    assert "all choices are the same" in found.sentence


@pytest.mark.parametrize(
    ("page", "before", "behind"),
    [
        (f"<main><h1>Pass</h1>{SECTION}<h2>Scores</h2></main>", "<h1>Pass</h1>", "<h2>Scores</h2>"),
        ("<main><h2>Scores</h2></main></body>", "<h2>Scores</h2>", "</main></body>"),
        ("<!doctype html><title>r</title>", "<title>r</title>", ""),
    ],
)
def test_the_section_stands_behind_the_verdict_or_at_the_end_of_an_earlier_releases_page(
    page: str, before: str, behind: str
) -> None:
    shown = with_section(page, human_preference(queue(3, candidate="<b>new</b>"), of_counts(2, 1, 0)))
    start, end = shown.index("<section>"), shown.index("</section>")
    assert shown[:start].endswith(before)
    assert behind in shown[end:]
    assert SECTION not in shown
    assert "<b>new" not in shown, "labels are escaped"
    assert "&lt;b&gt;new&lt;/b&gt; is better" in shown


@pytest.mark.sqlite
async def test_choices_of_an_earlier_release_are_kept(tmp_path: Path) -> None:
    """Its database had them in the table of pairs."""
    path = tmp_path / "jobs.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["directory"] = tmp_path
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        connection.exec_driver_sql(
            "INSERT INTO queues (number, evaluation, project, judge, digest, candidate, base, created_at, adapters) "
            "VALUES (1, 'eval-1', 'default', 'strict', 'd', 'shop@3', 'base', 5, '[\"shop\"]')"
        )
        for number, (first_is, choice, key) in enumerate(
            [("base", "first", "key_a"), ("candidate", "first", None), ("base", None, None)], start=1
        ):
            connection.exec_driver_sql(
                "INSERT INTO pairs (number, id, queue, example, turns, reference, first, second, first_is, vote, "
                "choice, key_id, chosen_at) VALUES (?, ?, 1, ?, '[]', '', 'a', 'b', ?, 'candidate', ?, ?, ?)",
                (number, f"rev-{number}", f"q{number}", first_is, choice, key, 7 if choice else None),
            )
    engine.dispose()
    database = Database(path)
    await database.open()
    try:
        found = await database.run(lambda db: records.queue(db, CurrentCaller("default", "k"), "eval-1"))
        assert found is not None
        assert (found.judge, found.reviewers, found.pairs, found.reviewed) == ("strict", 1, 3, 2)
        votes = await database.run(lambda db: records.votes(db, "default", digest="d", evaluation="eval-1"))
        assert votes == [("candidate", "base"), ("candidate", "candidate")]
        first = await database.run(lambda db: records.find(db, CurrentCaller("default", "key_other"), "rev-1"))
        assert first is not None
        assert (first.choice, first.chosen_at) == ("first", 7)
        key_a = CurrentCaller("default", "key_a")
        left = await database.run(lambda db: records.following(db, key_a, evaluation=None, after=None))
        assert left is not None
        assert left.id == "rev-3"
    finally:
        await database.close()
