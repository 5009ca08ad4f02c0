"""What people preferred on all pairs of an evaluation: the figure, its sentence, and its section of the report's page.

It decides nothing in a verdict, and it is shown only once every pair has its choices or the review was ended, and then
nothing changes: an interval that is looked at until it is narrow enough would not be one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Final

from adapters.protocol.reports import HumanPreference
from trainer.evaluate.pairs import SCORES, points_of
from trainer.reviews.records import PairChoices, Queue

CONFIDENCE: Final = 0.95
SECTION: Final = "<!-- what people prefer -->"
"""Where the report's page gets the section; pages of earlier releases lack it, and get it at their end."""
NO_WEIGHT: Final = "It decides nothing in the verdict."


def human_preference(queue: Queue, choices: Sequence[PairChoices]) -> HumanPreference | None:
    """The figure over the pairs with choices of a queue that is final; None if there are none. Blocks for some
    milliseconds.

    The mean counts each independent question once, whatever its reviewers and pairs, and so does its interval. How far
    reviewers agree is measured on the pairs that have all their choices.
    """
    if not choices:
        return None
    from trainer.evaluate.statistics import agreement, paired  # imported late: pull in their libraries

    counts = Counter(vote for pair in choices for vote in pair.votes)
    over_half = paired.as_array([sum(SCORES[vote] for vote in pair.votes) / len(pair.votes) - 0.5 for pair in choices])
    over_half = paired.unit_means(over_half, _units(choices))
    bounds = paired.interval(over_half, confidence=CONFIDENCE, binary=False, seed=queue.number)
    reviewers = None
    complete = [pair.votes for pair in choices if len(pair.votes) == queue.reviewers]
    if queue.reviewers > 1 and complete:
        reviewers = agreement.reviewer_agreement(complete, confidence=CONFIDENCE)
    figure = HumanPreference(
        of=queue.candidate,
        against=queue.base,
        pairs=len(choices),
        reviewers=queue.reviewers,
        candidate=counts["candidate"],
        tie=counts["tie"],
        base=counts["base"],
        mean=0.5 + float(over_half.mean()),
        low=max(0.0, 0.5 + bounds.low),
        high=min(1.0, 0.5 + bounds.high),
        confidence=CONFIDENCE,
        differing=queue.differing,
        alike=queue.alike,
        agreed=None if reviewers is None else reviewers.observed,
        kappa=None if reviewers is None else reviewers.kappa,
        kappa_low=None if reviewers is None else reviewers.low,
        kappa_high=None if reviewers is None else reviewers.high,
        sentence="",
    )
    return figure.model_copy(update={"sentence": _sentence(figure, queue)})


def _units(choices: Sequence[PairChoices]) -> list[int] | None:
    """The number of each pair's independent unit; None if every pair is its own."""
    named = [pair.unit for pair in choices]
    units = [unit for unit in named if unit is not None]
    return units if len(units) == len(named) and len(set(units)) < len(units) else None


def _sentence(figure: HumanPreference, queue: Queue) -> str:
    """The figure in words."""
    percent = f"{100 * figure.confidence:.0f}%"
    shown = (
        f"people prefer {figure.of}"
        if figure.low > 0.5
        else f"people prefer {figure.against}"
        if figure.high < 0.5
        else "no preference is shown"
    )
    words = (
        f"On {_count(figure.pairs, 'pair')} of different answers, without knowing whose they were, people chose "
        f"{figure.of} {_count(figure.candidate, 'time')}, {figure.against} {_count(figure.base, 'time')}, and neither "
        f"{_count(figure.tie, 'time')}: {points_of(figure.mean - 0.5)} points of 100 from even ({percent} interval "
        f"{points_of(figure.low - 0.5)} to {points_of(figure.high - 0.5)}), so {shown}."
    )
    if figure.alike:
        asked = figure.alike + (figure.differing or 0)
        words += f" On {figure.alike} of all {asked} questions both gave the same answer; these were not shown."
    if queue.ended_at is not None:
        words += f" The review was ended early: {queue.reviewed} of its {_count(queue.pairs, 'pair')} had all choices."
    return f"{words}{_agreement(figure, percent)} {NO_WEIGHT}"


def _agreement(figure: HumanPreference, percent: str) -> str:
    if figure.agreed is None:
        return ""
    words = f" Two reviewers of a pair chose the same {100 * figure.agreed:.0f} times of 100"
    if figure.kappa is None or figure.kappa_low is None or figure.kappa_high is None:
        return f"{words}; all choices are the same, so that Fleiss' κ cannot be measured."
    return (
        f"{words}: Fleiss' κ = {figure.kappa:.2f} ({percent} interval {figure.kappa_low:.2f} to "
        f"{figure.kappa_high:.2f})."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def with_section(page: str, figure: HumanPreference) -> str:
    """The report's page with a section that shows the figure. Labels are escaped."""
    rows: tuple[tuple[str, int], ...] = (
        (f"{figure.of} is better", figure.candidate),
        ("neither is better", figure.tie),
        (f"{figure.against} is better", figure.base),
    )
    cells = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="num">{count}</td></tr>' for label, count in rows
    )
    section = (
        f"<section>\n  <h2>What people prefer</h2>\n  <p>{escape(figure.sentence)}</p>\n"
        f'  <div class="scroll"><table><tbody>{cells}</tbody></table></div>\n</section>\n'
    )
    if SECTION in page:
        return page.replace(SECTION, section, 1)
    head, end, tail = page.rpartition("</main>")
    return head + section + end + tail if end else page + section
