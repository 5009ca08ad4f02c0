"""What a verdict stores of the general suite, and whether a revalidation has lost more of it than was lost then.

As in the verdict, plain text and chats are parts of their own (EVALUATION.md, "Forgetting").
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Self

from adapters.protocol.reports import ArmDifference
from trainer.evaluate.forgetting import Forgetting, SuiteState
from trainer.evaluate.paired_difference import IntervalMethod, paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array, as_array
from trainer.evaluate.suites.general import general_suite
from trainer.evaluate.verdict import State
from trainer.runs.protocol import Frozen


class SuiteScores(Frozen):
    """The general suite: its states, and the ids of the items that only the base or only the version got right.

    Attributes:
        items, chat_items: How many there are in plain text and in a chat.
        accuracy, chat, perplexity: The states of the parts.
        lost, won: Ids of both kinds of items.

    ``chat`` and ``chat_items`` are None in records of before they were stored, ``chat`` also if no item is in a chat.
    """

    suite: str
    items: int
    chat_items: int | None = None
    accuracy: SuiteState
    chat: SuiteState | None = None
    perplexity: SuiteState
    lost: tuple[str, ...]
    won: tuple[str, ...]

    @classmethod
    def of(cls, forgetting: Forgetting) -> Self:
        """What there is to store of a suite's result."""
        chat = forgetting.chat
        return cls(
            suite=forgetting.suite,
            items=forgetting.accuracy.items,
            chat_items=0 if chat is None else chat.items,
            accuracy=forgetting.accuracy.state,
            chat=None if chat is None else chat.state,
            perplexity=forgetting.perplexity.state,
            lost=forgetting.lost,
            won=forgetting.won,
        )

    def comparable(self, then: SuiteScores) -> bool:
        """Whether both are of the same items."""
        counts = (then.items, self.chat_items if then.chat_items is None else then.chat_items)
        return then.suite == self.suite and counts == (self.items, self.chat_items)

    def state_since(self, then: SuiteScores, method: IntervalMethod) -> State:
        """Broken if of a part more is lost than then, and more than allowed.

        Args:
            then: The scores of the earlier verdict, on the same items.
            method: With the confidence at which more has to be lost.
        """
        chats = {item.id for item in general_suite().chats}
        ids = {*then.lost, *then.won, *self.lost, *self.won}
        states = {
            _part_state(then.accuracy, self.accuracy, _rise(then, self, ids - chats, self.items, method)),
            _part_state(then.chat, self.chat, _rise(then, self, ids & chats, self.chat_items or 0, method)),
            # the perplexity of twenty fixed texts hardly differs between runs of one engine
            "broken" if self.perplexity == "broken" and then.perplexity != "broken" else "kept",
        }
        return "broken" if "broken" in states else "open" if "open" in states else "kept"


def _part_state(then: SuiteState | None, now: SuiteState | None, rise: ArmDifference | None) -> State:
    if rise is None or now not in ("broken", "open") or now == then or rise.estimate <= 0:
        return "kept"
    return "broken" if now == "broken" and rise.low > 0 else "open"


def _rise(
    then: SuiteScores, now: SuiteScores, ids: Collection[str], items: int, method: IntervalMethod
) -> ArmDifference | None:
    """How many more of a part's right answers are lost now than were then, paired by item, as a share.

    Args:
        then, now: Both evaluations' scores.
        ids: The part's items that were lost or won in either.
        items: All of the part's; with none there is no share, and the result is None.
        method: How the interval is computed.
    """
    if not items:
        return None
    unchanged = (0.0,) * (items - len(ids))

    def losses(scores: SuiteScores) -> Array:
        return as_array([*((name in scores.lost) - (name in scores.won) + 0.0 for name in sorted(ids)), *unchanged])

    rows = ("now", losses(now), NO_RUNS), ("then", losses(then), NO_RUNS)
    return paired_difference(*rows, binary=False, method=method)
