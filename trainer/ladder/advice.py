"""The advice: the simplest rung that is good enough, and when a measurement is not what decides.

In this order:

1. Answers that state things which change (prices, dates, orders) belong in a store, whatever the score: `retrieval`.
2. If no rung beats its own answers at other questions, the data cannot tell: the questions do not decide the answers.
3. A version that the gateway holds back from `live`, as its language is lost, is no advice, whatever it scores: the
   following looks at the other rungs alone.
4. With a target: the simplest rung whose interval lies at or above it.
5. The simplest rung that no rung above it beats by more than the noise, that is, by a difference whose whole interval
   lies above the smallest difference that matters. Differences are paired, question by question, over the same held-out
   examples; there are few rungs, and the confidence is shared out among the comparisons (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np

from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.evaluate.paired_difference import IntervalMethod, paired_difference, scale_of
from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.evaluate.statistics.noise import RunNoise
from trainer.evaluate.statistics.paired import as_array, interval, unit_means
from trainer.ladder.spec import (
    CHANGING_SHARE,
    MAX_HELD_OUT,
    MIN_EXAMPLES,
    RETRIEVING,
    DataFacts,
    Row,
    RungKey,
)
from trainer.ladder.wording import in_all, percent, points, span, title
from trainer.runs.protocol import Frozen

Word = Literal["do_not_fine_tune", "prompt", "examples", "retrieval", "fine_tune", "cannot_tell"]
CONFIDENCE: Final = 0.95
NONE_HELD: Final[Mapping[RungKey, str]] = MappingProxyType({})
WORDS: Final[dict[RungKey, Word]] = {
    "base": "do_not_fine_tune",
    "instructions": "prompt",
    "examples": "examples",
    "retrieved_examples": "examples",
    "documents": "retrieval",
    "lora": "fine_tune",
    "lora_examples": "fine_tune",
    "lora_documents": "fine_tune",
    "distilled": "fine_tune",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """When a rung is good enough. ``target``: None without one. ``method``: of each comparison's interval. ``quick``:
    see `advise`."""

    target: float | None
    smallest: float
    method: IntervalMethod
    quick: bool


class MeasuredRung(Frozen):
    """A rung's score, what the form of its answers earns, and what it gained on the rung below."""

    key: RungKey
    mean: ArmMean
    control: float
    against_below: ArmDifference | None = None


class Advice(Frozen):
    """What to do.

    Attributes:
        word: The advice.
        rung: The rung to ship; None if the data cannot tell.
        sentence: For a reader in a hurry.
        reasons: Why, a sentence each.
        would_change: What would change the advice, a sentence each.
    """

    word: Word
    rung: RungKey | None
    sentence: str
    reasons: tuple[str, ...] = ()
    would_change: tuple[str, ...] = ()


def measured(rows: Sequence[Row]) -> tuple[MeasuredRung, ...]:
    """The rungs' scores and each one's difference to the rung below, in the order given."""
    rungs = []
    for index, (key, scores, arm) in enumerate(rows):
        gain = difference(rows[index], below(rows, index), whole_interval()) if index else None
        rungs.append(MeasuredRung(key=key, mean=_mean(scores, arm), control=arm.control, against_below=gain))
    return tuple(rungs)


def below(rows: Sequence[Row], index: int) -> Row:
    """What a rung is compared with, ``index`` above 0: the one before it. Both rungs with retrieval are made from the
    last one without: one does not retrieve what the other does."""
    if rows[index][0] in RETRIEVING.values():
        return next(row for row in reversed(rows[:index]) if row[0] not in RETRIEVING.values())
    return rows[index - 1]


def difference(of: Row, against: Row, method: IntervalMethod, *, bound: float = 0.0) -> ArmDifference:
    """How much higher one rung scores than another over the questions that both were asked."""
    (of_key, of_scores, of_arm), (against_key, against_scores, against_arm) = of, against
    at = {question: index for index, question in enumerate(against_scores.questions)}
    pairs = [(index, at[question]) for index, question in enumerate(of_scores.questions) if question in at]
    mine, theirs = [index for index, _ in pairs], [index for _, index in pairs]
    units = None if of_scores.units is None else tuple(of_scores.units[index] for index in mine)
    return paired_difference(
        (of_key, as_array(of_arm.scores)[mine], _noise(of_arm)),
        (against_key, as_array(against_arm.scores)[theirs], _noise(against_arm)),
        binary=of_scores.binary,
        method=method,
        bound=bound,
        units=units,
        scale=scale_of(of_scores.metric),
    )


def advise(
    rows: Sequence[Row],
    facts: DataFacts,
    *,
    target: float | None,
    smallest: float,
    held_back: Mapping[RungKey, str] = NONE_HELD,
    quick: bool = False,
) -> Advice:
    """The advice.

    Args:
        rows: The rungs that were measured, the simplest first; at least one.
        facts: What the data report says.
        target: The score that is good enough, 0 to 1; None without one.
        smallest: The smallest difference that matters.
        held_back: Why the gateway holds versions back from `live`, by their rungs.
        quick: It holds out fewer examples than the data would allow.
    """
    fit = [row for row in rows if row[0] not in held_back]
    if retrieval := _changing_facts(fit, facts):
        return retrieval
    if unable := _cannot_tell(rows, facts):
        return unable
    rule = Rule(target, smallest, whole_interval(len(rows) - 1), quick)
    return _with_held_back(_fit_advice(fit, rule), rows, held_back, rule)


def _fit_advice(rows: Sequence[Row], rule: Rule) -> Advice:
    """What the scores say of rungs that may all go live."""
    target, smallest = rule.target, rule.smallest
    if target is not None:
        for key, scores, arm in rows:
            mean = _mean(scores, arm)
            if mean.low >= target:
                reason = (
                    f"{title(key)} scores {points(mean)}: the whole interval is at or above the target of "
                    f"{percent(target)}."
                )
                return _for(key, rows, [reason], rule, reached=True)
    for index, row in enumerate(rows):
        above = [difference(other, row, rule.method, bound=smallest) for other in rows[index + 1 :]]
        if not any(each.low > smallest for each in above):
            return _for(row[0], rows, _why(row, rows, above), rule)
    raise AssertionError("there is no rung above the last one")


def _with_held_back(advice: Advice, rows: Sequence[Row], held_back: Mapping[RungKey, str], rule: Rule) -> Advice:
    """The advice, with what is to be said of rungs that score more than the advised one and may not go live."""
    own = next(row for row in rows if row[0] == advice.rung)
    better = [
        row
        for row in rows
        if row[0] in held_back and difference(row, own, rule.method, bound=rule.smallest).low > rule.smallest
    ]
    if not better:
        return advice
    key, scores, arm = best = max(better, key=lambda row: _mean(row[1], row[2]).mean)
    name, mean = title(own[0], inside=True), _mean(own[1], own[2])
    return Advice(
        word=advice.word,
        rung=advice.rung,
        sentence=(
            f"Not {title(key, inside=True)} as it is: it scores more, and has lost its language. The best that may go "
            f"live is {name}, which scores {100 * mean.mean:.1f} of 100."
        ),
        reasons=(
            f"{title(key)} scores {points(_mean(scores, arm))}, {span(difference(best, own, whole_interval()))} "
            f"against {name}. It is held back from `live`: {held_back[key]}.",
            *advice.reasons,
        ),
        would_change=(
            "A gentler training: fewer epochs, a lower learning rate, or more examples. Where the task needs no other "
            "language, `hatrack promote --force` makes this one live.",
            *advice.would_change,
        ),
    )


def _changing_facts(rows: Sequence[Row], facts: DataFacts) -> Advice | None:
    if facts.changing_facts < CHANGING_SHARE * facts.examples:
        return None
    documents = next((key for key, _, _ in rows if key in ("documents", "lora_documents")), None)
    reason = (
        f"{facts.changing_facts} of {facts.examples} answers state things that their question does not give and that "
        "change: a model that is trained on them goes on stating them after they have changed, and invents others."
    )
    way = (
        f"Ship `{documents}`."
        if documents is not None
        else "Put the documents into a store (`hatrack kb add`) and run this again with `--docs`."
    )
    return Advice(
        word="retrieval",
        rung=documents,
        sentence=f"Retrieval: these answers hold facts that change. {way}",
        reasons=(reason,),
        would_change=(
            "Answers that take their facts from passages in the prompt; then a LoRA can be worth it for the form.",
        ),
    )


def _cannot_tell(rows: Sequence[Row], facts: DataFacts) -> Advice | None:
    examples = independent(rows)
    if examples < MIN_EXAMPLES:
        return Advice(
            word="cannot_tell",
            rung=None,
            sentence=f"This data cannot tell: {examples} independent held-out examples are too few.",
            reasons=(f"At least {MIN_EXAMPLES} are needed for an interval that says anything.",),
            would_change=(f"Bring about {10 * MIN_EXAMPLES} examples in all.",),
        )
    if any(_beats_control(scores, arm, rungs=len(rows)) for _, scores, arm in rows):
        return None
    if not facts.noisy_labels and all(WORDS[key] != "fine_tune" for key, _, _ in rows):
        return _untold_without_lora()
    reasons = [
        "No rung does better than its own answers at other questions: as far as can be measured, the questions do not "
        "decide the answers."
    ]
    if facts.noisy_labels:
        reasons.append("The data report says the same: the questions' words say nothing about the labels.")
    return Advice(
        word="cannot_tell",
        rung=None,
        sentence="This data cannot tell: its answers do not follow from its questions.",
        reasons=tuple(reasons),
        would_change=(
            "Check that questions and answers belong together line by line (a column that has slipped is the usual "
            "cause), then run this again.",
        ),
    )


def _untold_without_lora() -> Advice:
    """A small base can fail at every prompt: that says nothing about the data."""
    return Advice(
        word="cannot_tell",
        rung=None,
        sentence="Not to be told without a LoRA: no prompt's answers fit their own questions better than others'.",
        reasons=("No LoRA was measured. Either this base does not follow the prompts, or the data cannot be learnt.",),
        would_change=("Run it with a LoRA (the report says why there is none), or on a larger base.",),
    )


def independent(rows: Sequence[Row]) -> int:
    """The number of independent examples that every rung was asked."""
    return min(len(set(scores.units or scores.questions)) for _, scores, _ in rows)


def _beats_control(scores: ArmScores, arm: ScoredArm, *, rungs: int) -> bool:
    """Whether an arm's answers fit their own questions better than others': a lower bound over the questions, whose
    confidence is shared out among the rungs."""
    gains = unit_means(as_array(arm.scores), scores.units) - arm.control
    bounds = interval(gains, confidence=1 - (1 - CONFIDENCE) / rungs, binary=False, seed=0)
    return bounds.low > 0


def _for(key: RungKey, rows: Sequence[Row], reasons: Sequence[str], rule: Rule, *, reached: bool = False) -> Advice:
    word, name = WORDS[key], title(key, inside=True)
    mean = next(_mean(scores, arm) for each, scores, arm in rows if each == key)
    if word == "fine_tune":
        sentence = f"Fine-tune: {_why_fine_tune(key, rows, rule, reached=reached)}"
    elif reached:
        sentence = f"Do not fine-tune: {name} is good enough."
    else:
        sentence = (
            f"Do not fine-tune: nothing measured is shown to be better than {name}, which scores "
            f"{100 * mean.mean:.1f} of 100."
        )
    if rule.target is not None and not reached:
        sentence += f" No rung reaches the target of {percent(rule.target)} with confidence."
    return Advice(
        word=word,
        rung=key,
        sentence=sentence,
        reasons=tuple(reasons),
        would_change=tuple(_would_change(key, rows, rule)),
    )


def _why_fine_tune(key: RungKey, rows: Sequence[Row], rule: Rule, *, reached: bool) -> str:
    """What is shown of a LoRA that is advised: that it beats each simpler rung, or less."""
    name = title(key, inside=True)
    if reached:
        return f"{name} is the simplest rung that is shown to reach the target of {percent(rule.target or 0.0)}."
    at = [each for each, _, _ in rows].index(key)
    if all(difference(rows[at], simpler, rule.method).low > 0 for simpler in rows[:at]):
        return f"{'no prompt' if key == 'lora' else 'nothing simpler'} does as well as {name}."
    return (
        f"{name} is the simplest rung that nothing measured is shown to beat; that it is itself better than every "
        "simpler one is not shown."
    )


def _why(row: Row, rows: Sequence[Row], above: Sequence[ArmDifference]) -> list[str]:
    reasons = [f"{title(row[0])} scores {points(_mean(row[1], row[2]))}."]
    index = [key for key, _, _ in rows].index(row[0])
    if index:
        other = below(rows, index)
        gain = difference(row, other, whole_interval())
        reasons.append(f"Against {title(other[0], inside=True)} that is {span(gain)} points.")
    if above:
        best = max(above, key=lambda each: each.estimate)
        name = title(_key(best.of), inside=True)
        reasons.append(
            f"No rung above it is shown to be better by more than {100 * best.bound:.0f} points: the best of them, "
            f"{name}, differs by {span(best)}."
        )
    return reasons


def _would_change(key: RungKey, rows: Sequence[Row], rule: Rule) -> list[str]:
    """How many more held-out examples would settle the first comparison with a rung above that is still open."""
    own = next(row for row in rows if row[0] == key)
    later = rows[[each for each, _, _ in rows].index(key) + 1 :]
    for other in later:
        gap = difference(other, own, rule.method, bound=rule.smallest)
        if gap.estimate <= rule.smallest or gap.needed is None or gap.needed <= gap.examples:
            continue
        name = title(other[0], inside=True)
        wanted = f"{gap.needed} held-out examples (now {gap.examples}), if the true difference is"
        told = f"To show whether {name} is better would take {wanted} {100 * gap.estimate:.1f} points"
        if gap.needed > MAX_HELD_OUT:
            return [f"{told}; a ladder holds out {MAX_HELD_OUT} at most."]
        return [f"{told}: run it {'without `--quick`, ' if rule.quick else ''}on about {in_all(gap.needed)} examples."]
    return []


def _key(label: str) -> RungKey:
    return next(key for key in WORDS if key == label)


def whole_interval(comparisons: int = 1) -> IntervalMethod:
    """Two-sided intervals whose joint confidence over so many comparisons is CONFIDENCE."""
    return IntervalMethod(confidence=1 - (1 - CONFIDENCE) / max(1, comparisons))


def _mean(scores: ArmScores, arm: ScoredArm) -> ArmMean:
    values = unit_means(as_array(arm.scores), scores.units)
    binary = scores.binary and bool(np.isin(values, (0.0, 1.0)).all())
    if binary:
        from statsmodels.stats.proportion import proportion_confint

        low, high = proportion_confint(int(values.sum()), len(values), alpha=1 - CONFIDENCE, method="wilson")
    else:
        bounds = interval(values, confidence=CONFIDENCE, binary=False, seed=0)
        low, high = max(0.0, bounds.low), min(1.0, bounds.high)
    return ArmMean(label=arm.label, mean=float(values.mean()), low=float(low), high=float(high), examples=len(values))


def _noise(arm: ScoredArm) -> RunNoise:
    return RunNoise(arm.noise, arm.degrees, 0.0)
