"""Error rates and power of the verdict's checks, by simulation with the checks themselves.

    python -m trainer.evaluate.rates

Prints tables of STATISTICS.md and ADVERSARIES.md in less than a minute. "Not worse than live": a version that is worse,
equal or better; answers are right or wrong, and `live` is right on 80% of the questions. "Answers that ignore the
question": random training answers, and the sample voice. "Forgetting": how often a true loss is within the budget.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from trainer.evaluate.control_arms import reassigned_answers
from trainer.evaluate.forgetting import LOSS_CONFIDENCE, Budget, loss_state
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.paired_difference import IntervalMethod, paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array, tango_interval
from trainer.evaluate.suites.general import general_suite
from trainer.evaluate.verdict import LIVE_MARGIN, Rules, State, not_worse
from trainer.samples import sample_data

LIVE_RIGHT: Final = 0.8
RELATED: Final = 0.15
"""Share of questions on which two trainings on much the same data differ: one is right, the other wrong."""
RETRAINS: Final = 6
COUNTS: Final = (50, 100, 200, 400)
CHANGES: Final = (0.05, 0.02, 0.0, -0.02, -0.05, -0.10)
DRAWS: Final = 2000
CHAINS: Final = 1000
VOICES: Final = (30, 50, 100)
PARROTS: Final = 200
HONEST: Final = (
    *(0.039, 0.048, 0.038, 0.128, 0.004, -0.003, -0.033, -0.012, -0.067, 0.046),
    *(0.021, 0.098, -0.015, 0.029, 0.008, 0.069, 0.016, 0.048, 0.004, -0.019),
)
"""The sample voice tidewater on its 20 held-out examples: ROUGE-L of its answer minus the mean of its other answers."""
HONEST_BEYOND_QUESTION: Final = (
    *(0.041, 0.030, 0.030, 0.077, -0.011, -0.005, -0.009, -0.005, -0.076, 0.019),
    *(-0.005, 0.100, 0.008, -0.027, 0.012, 0.071, -0.004, 0.042, 0.002, -0.020),
)
"""The same without the questions' words (`control_arms.reassigned_beyond_question`)."""
TRUE_LOSSES: Final = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.10)
DISCORDANCES: Final = (0.05, 0.10, 0.15)
"""Shares of items that exactly one of base and candidate gets right."""
EARLIER_ITEMS: Final = 103
CHAT_LOSSES: Final = (0.0, 0.02, 0.05, 0.08, 0.10, 0.15, 0.20)
CHAT_DISCORDANCES: Final = (*DISCORDANCES, 0.20)
VOICES_DIFFER: Final = (0.11, 0.20)
"""Shares of items in plain text and in a chat on which the sample voices differ from their base."""
SHOWN: Final[tuple[State, ...]] = ("kept", "open", "broken")


@lru_cache(maxsize=100_000)
def state(wins: int, losses: int, count: int, rules: Rules) -> State:
    """The state of the check against `live` if only the candidate is right on ``wins`` of ``count`` questions, and only
    `live` on ``losses``."""
    equal = count - wins - losses
    candidate = np.array([1.0] * wins + [0.0] * losses + [1.0] * equal)
    live = np.array([0.0] * wins + [1.0] * losses + [1.0] * equal)
    difference = paired_difference(
        ("candidate", candidate, NO_RUNS),
        ("live", live, NO_RUNS),
        binary=True,
        method=rules.method,
        bound=-rules.margin("exact_match"),
    )
    return not_worse(difference, enough=count >= rules.min_examples).state


def differing(live: float, change: float, related: float | None) -> float:
    """The share of questions on which exactly one of the two is right.

    Args:
        live: The accuracy of `live`.
        change: The candidate's accuracy minus that of `live`.
        related: The share for equally good versions; None if the two are independent.
    """
    candidate = live + change
    if related is None:
        return live * (1 - candidate) + candidate * (1 - live)
    return max(related, abs(change))


def shares(
    change: float,
    count: int,
    *,
    related: float | None = RELATED,
    draws: int = DRAWS,
    seed: int = 0,
    rules: Rules | None = None,
) -> dict[State, float]:
    """The share of each state over ``draws`` held-out sets of ``count`` examples."""
    rules, differ = rules or Rules(), differing(LIVE_RIGHT, change, related)
    pairs = _pairs(np.random.default_rng(seed), count, change, differ, draws)
    counts = Counter(state(int(wins), int(losses), count, rules) for wins, losses in pairs)
    return {outcome: counts[outcome] / draws for outcome in SHOWN}


def chain(
    change: float,
    count: int,
    *,
    related: float | None = RELATED,
    draws: int = CHAINS,
    seed: int = 0,
    rules: Rules | None = None,
) -> float:
    """The mean accuracy of `live` after RETRAINS candidates in a row.

    Each candidate differs by ``change`` from the current `live`, which it replaces if the check is kept.
    """
    rules, rng = rules or Rules(), np.random.default_rng(seed)
    levels = np.full(draws, LIVE_RIGHT)
    for _ in range(RETRAINS):
        for level in np.unique(levels):
            indices = np.flatnonzero(levels == level)
            differ = differing(float(level), change, related)
            pairs = _pairs(rng, count, change, differ, len(indices))
            passed = [state(int(wins), int(losses), count, rules) == "kept" for wins, losses in pairs]
            levels[indices[passed]] = round(float(level) + change, 6)
    return float(levels.mean())


def _pairs(random: np.random.Generator, count: int, change: float, differ: float, draws: int) -> np.ndarray:
    """Wins and losses of each draw."""
    wins = (differ + change) / 2
    return random.multinomial(count, [wins, differ - wins, 1 - differ], size=draws)[:, :2]


def tables(*, draws: int = DRAWS, chains: int = CHAINS, rules: Rules | None = None) -> str:
    """Both tables in Markdown: single versions, and chains of retrains."""
    heads = "".join(f" {count} examples |" for count in COUNTS)
    ruler = "|---|---|" + "---|" * len(COUNTS)
    lines = [f"| the new version is | differ on |{heads}", ruler]
    for change in CHANGES:
        for related in (RELATED, None):
            cells = [_cell(shares(change, count, related=related, draws=draws, rules=rules)) for count in COUNTS]
            lines.append(f"| {_change_in_words(change)} | {_share(related, change)} | {' | '.join(cells)} |")
    lines += ["", f"| each of six is | differ on |{heads}", ruler]
    for change in CHANGES[2:]:
        for related in (RELATED, None):
            ends = [100 * chain(change, count, related=related, draws=chains, rules=rules) for count in COUNTS]
            cells = [f"{end:.1f}" for end in ends]
            lines.append(f"| {_change_in_words(change)} | {_share(related, change)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parrots(count: int, *, draws: int = PARROTS, seed: int = 0) -> float:
    """How often random training answers pass the control `reassigned`."""
    rng, metric = np.random.default_rng(seed), RougeL()
    answers = [example.judged.answer for example in sample_data("tidewater").examples]
    passes = 0
    for draw in range(draws):
        order = rng.permutation(len(answers))
        references = [answers[at] for at in order[:count]]
        given = [answers[at] for at in rng.choice(order[count:], count)]
        own = np.array([metric.score(answer, reference) for answer, reference in zip(given, references, strict=True)])
        passes += _above(own - reassigned_answers(given, references, metric, seed=draw).array)
    return passes / draws


def honest(count: int, *, draws: int = PARROTS, seed: int = 0, differences: Sequence[float] = HONEST) -> float:
    """How often the sample voice passes it: its 20 measured differences, drawn with replacement.

    Sets of other sizes than 20 are extrapolations: 20 differences do not contain rarer ones, and their mean is itself
    uncertain (HONEST: 0.022, standard error 0.010), whatever the number of draws.
    """
    random = np.random.default_rng(seed)
    return sum(_above(random.choice(differences, count)) for _ in range(draws)) / draws


def honest_beyond_question(count: int, *, draws: int = PARROTS, seed: int = 0) -> float:
    """As `honest`, for the control `reassigned_beyond_question`."""
    return honest(count, draws=draws, seed=seed, differences=HONEST_BEYOND_QUESTION)


def _above(differences: Array) -> bool:
    zeros = np.zeros(len(differences))
    method = IntervalMethod(resamples=1000)
    return (
        paired_difference(("own", differences, NO_RUNS), ("mixed", zeros, NO_RUNS), binary=False, method=method).low > 0
    )


def voices(*, draws: int = PARROTS) -> str:
    """In Markdown: how often the control `reassigned` is passed, in percent."""
    lines = [f"| answers |{''.join(f' {count} examples |' for count in VOICES)}", "|---|" + "---|" * len(VOICES)]
    rows = (
        ("random training answers", parrots),
        ("the sample voice's", honest),
        ("the sample voice's, without the questions' words", honest_beyond_question),
    )
    for name, share in rows:
        lines.append(f"| {name} | {' | '.join(f'{100 * share(count, draws=draws):.3g}' for count in VOICES)} |")
    return "\n".join(lines)


@lru_cache(maxsize=100_000)
def forgetting_state(lost: int, won: int, count: int, budget: float) -> State:
    """The state of a part if ``lost`` of ``count`` items are right only before, and ``won`` only after."""
    return loss_state((lost - won) / count, *tango_interval(lost, won, count, LOSS_CONFIDENCE), budget)


def forgetting_shares(
    loss: float,
    count: int,
    differ: float,
    *,
    budget: float = Budget().accuracy,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[State, float]:
    """The share of each state over ``draws`` sets of ``count`` items.

    Args:
        loss: The true loss of accuracy.
        count: Items.
        differ: The share on which base and candidate differ, at least ``loss``.
        budget: What may be lost.
        draws, seed: Of the simulation.
    """
    pairs = _pairs(np.random.default_rng(seed), count, loss, max(differ, abs(loss)), draws)
    counts = Counter(forgetting_state(int(lost), int(won), count, budget) for lost, won in pairs)
    return {outcome: counts[outcome] / draws for outcome in SHOWN}


def kept_by_estimate(loss: float, count: int, differ: float, *, draws: int = 10 * DRAWS, seed: int = 0) -> float:
    """How often the estimate alone is within the accuracy budget: the rule of earlier versions, for comparison."""
    pairs = _pairs(np.random.default_rng(seed), count, loss, differ, draws)
    return float(np.mean((pairs[:, 0] - pairs[:, 1]) / count <= Budget().accuracy))


def forgetting_tables(*, draws: int = DRAWS) -> str:
    """In Markdown, percent *kept* / *open* / *broken*: the items in plain text, and those in a chat."""
    suite, budget = general_suite(), Budget()
    lines = []
    for what, count, allowed, losses, discordances in (
        ("in plain text", len(suite.choices), budget.accuracy, TRUE_LOSSES, DISCORDANCES),
        ("in a chat", len(suite.chats), budget.chat, CHAT_LOSSES, CHAT_DISCORDANCES),
    ):
        heads = "".join(f" differ on {100 * share:.0f}% |" for share in discordances)
        lines += ["", f"| true loss, {count} items {what} |{heads}", "|---|" + "---|" * len(discordances)]
        for loss in losses:
            shares_of = [forgetting_shares(loss, count, differ, budget=allowed, draws=draws) for differ in discordances]
            lines.append(f"| {100 * loss:.0f} points | {' | '.join(map(_cell, shares_of))} |")
    share = kept_by_estimate(0.08, EARLIER_ITEMS, DISCORDANCES[1])
    lines += ["", f"8 points, {EARLIER_ITEMS} items, by the estimate alone, differ on 10%: {100 * share:.0f}% kept"]
    plain, chat, both = (100 * share for share in kept_together(draws=10 * draws))
    lines += [
        f"no loss, where {' and '.join(f'{100 * share:.0f}%' for share in VOICES_DIFFER)} differ: plain text kept in "
        f"{plain:.0f}%, chats in {chat:.0f}%, both in {both:.0f}%"
    ]
    return "\n".join(lines[1:])


def kept_together(
    loss: float = 0.0, differ: tuple[float, float] = VOICES_DIFFER, *, draws: int = 10 * DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """How often plain text, chats, and both together are kept: the power of *forgetting*, but for the perplexity.

    Args:
        loss: The true loss of accuracy in both parts.
        differ: The shares of items in plain text and in a chat on which base and candidate differ, at least ``loss``.
        draws, seed: Of the simulation.
    """
    suite, budget, random = general_suite(), Budget(), np.random.default_rng(seed)
    kept = []
    for count, allowed, share in zip(
        (len(suite.choices), len(suite.chats)), (budget.accuracy, budget.chat), differ, strict=True
    ):
        pairs = _pairs(random, count, loss, share, draws)
        kept.append([forgetting_state(int(lost), int(won), count, allowed) == "kept" for lost, won in pairs])
    plain, chat = np.array(kept)
    return float(plain.mean()), float(chat.mean()), float((plain & chat).mean())


def _cell(outcome_shares: dict[State, float]) -> str:
    return " / ".join(f"{100 * outcome_shares[outcome]:.3g}" for outcome in SHOWN)


def _change_in_words(change: float) -> str:
    if change == 0:
        return "equal"
    return f"{abs(100 * change):.0f} points {'better' if change > 0 else 'worse'}"


def _share(related: float | None, change: float) -> str:
    return f"{100 * differing(LIVE_RIGHT, change, related):.0f}%"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.rates", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help="simulated comparisons per cell")
    parser.add_argument("--chains", type=int, default=CHAINS, help="simulated chains per cell")
    parser.add_argument("--margin", type=float, default=LIVE_MARGIN, help="margin against `live`")
    parser.add_argument("--voices", type=int, default=PARROTS, help="simulated sets of answers per cell")
    options = parser.parse_args(arguments)
    print(tables(draws=options.draws, chains=options.chains, rules=Rules(live_margin=options.margin)))
    print(f"\n{voices(draws=options.voices)}")
    print(f"\n{forgetting_tables(draws=options.draws)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
