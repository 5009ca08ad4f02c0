"""The sentences of verdicts and reports, written for readers who do not know the statistics.

Scores and differences are given in points: hundredths of the metric's range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from adapters.protocol.reports import ArmDifference
from trainer.evaluate.compare import Comparison
from trainer.evaluate.forgetting import LOSS_CONFIDENCE, Forgetting, SuitePart

State = Literal["kept", "broken", "open"]


@dataclass(frozen=True, slots=True)
class More:
    """How many held-out examples to add before the open checks could be settled.

    Attributes:
        count: None if no number would do; 0 if no check is open.
        decisive: The difference that needs most; None if it is the minimum number of examples.
        most: As many examples are asked at most; None for no limit.
    """

    count: int | None
    decisive: ArmDifference | None = None
    most: int | None = None


CONTROL_NAMES: Final = {
    "constant": "giving every question the same answer",
    "permuted": "giving every question another question's answer",
    "reassigned": "its own answers, each given to another question,",
    "reassigned_beyond_question": "its own answers, each given to another question and without the questions' words,",
    "question": "repeating the question as the answer",
    "nearest": "looking up the training answer of the most similar question",
}
ALWAYS_SAME: Final = "It gives every question the same answer."
NO_SECOND_MEASURE: Final = (
    "A close answer is not enough for a pass, and no second measure was taken. It can be the likelihood of the "
    "author's answers, for versions that this gateway serves, or a judge that counts."
)
VERDICT_WORDS: Final = {"pass": "Pass", "fail": "Fail", "not_enough_evidence": "Not enough evidence"}


def points(value: float) -> str:
    """A share as points (hundredths), with one decimal below 10."""
    scaled = 100 * value
    text = f"{scaled:.1f}" if abs(scaled) < 10 else f"{scaled:.0f}"
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text.replace("-", "−")


def interval_in_points(difference: ArmDifference) -> str:
    """The interval's ends in points: `-2 to 5`."""
    return f"{points(difference.low)} to {points(difference.high)}"


def difference_in_words(difference: ArmDifference) -> str:
    """The estimate as `12 points better`, `3 points worse` or `no better`."""
    if points(difference.estimate) == "0":
        return "no better"
    return f"{points(abs(difference.estimate))} points {'better' if difference.estimate > 0 else 'worse'}"


def examples(count: int, min_examples: int, total: int) -> str:
    """Whether there are enough examples.

    Args:
        count: Independent examples.
        min_examples: How many are needed.
        total: All examples.
    """
    have = f"{total} held-out examples"
    if count < total:
        have += f" count as {count}, since near-duplicates and examples of one `group` count once"
    if count >= min_examples:
        return f"{have}; at least {min_examples} are needed."
    too_few = "too few" if count < total else "are too few"
    return f"{have}{', ' if count < total else ' '}{too_few} to judge by; at least {min_examples} are needed."


def earlier_looks(look: int, confidence: float) -> tuple[str, ...]:
    """That other versions were judged on the same examples, and what that costs; empty for the first.

    Args:
        look: The number of this version among them.
        confidence: Of this verdict's intervals.
    """
    if look == 1:
        return ()
    others = "1 other version was" if look == 2 else f"{look - 1} other versions were"
    return (
        f"{others} judged on these examples before, and the more are tried, the likelier one passes by luck: so the "
        f"intervals are {percent(confidence)} ones. New held-out examples start again.",
    )


def percent(confidence: float) -> str:
    """A confidence with the digits that tell it from 100%: `95%`, `99.75%`, `99.994%`."""
    digits = max(0, math.ceil(-math.log10(1 - confidence)) - 1)
    text = f"{100 * confidence:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


def against_base(difference: ArmDifference, state: State) -> str:
    """The result of the check against the base at its best."""
    result = (
        f"Against “{difference.against}” it is {difference_in_words(difference)} "
        f"({percent(difference.confidence)} interval {interval_in_points(difference)}). "
        f"The smallest difference that matters is {points(difference.bound)} points"
    )
    if state == "kept":
        return f"{result}; the whole interval is above it."
    if state == "broken":
        return f"{result}; the whole interval is at or below it."
    return f"{result}; the interval contains it, so this is undecided."


def base_cut(difference: ArmDifference, cut: int, count: int, at_most: ArmDifference, state: State) -> str:
    """Whether the check against the base is kept although many of its answers were cut.

    Args:
        difference: The candidate's.
        cut: How many of the base's ``count`` answers reached the length limit.
        at_most: The candidate's difference if all of these were right.
        state: Of the check.
    """
    result = (
        f"Against “{difference.against}” it is {difference_in_words(difference)} "
        f"({percent(difference.confidence)} interval {interval_in_points(difference)}). Of the base's {count} answers "
        f"{cut} were cut at the length limit, and what came next may have been right; if all of them were, it would be "
        f"{difference_in_words(at_most)} (interval {interval_in_points(at_most)})"
    )
    return f"{result}: {f'still above {points(at_most.bound)} points' if state == 'kept' else 'this is undecided'}."


def against_live(difference: ArmDifference, state: State) -> str:
    """The result of the check against the live version."""
    result = (
        f"Against “{difference.against}”, which is live, it is {difference_in_words(difference)} "
        f"(interval {interval_in_points(difference)}); "
        f"it may be at most {points(-difference.bound)} points worse"
    )
    if state == "kept":
        return f"{result}, and the whole interval is above that."
    if state == "broken":
        return f"{result}, and the whole interval is at or below that."
    return f"{result}, and the interval does not rule out that it is worse than that."


def against_form(difference: ArmDifference, state: State) -> str:
    """The result of the check against a control: answers that ignore the question."""
    control = CONTROL_NAMES.get(difference.against, difference.against)
    result = f"Against {control} it is {difference_in_words(difference)} (interval {interval_in_points(difference)})"
    if state == "kept":
        return f"{result}: its answers depend on the question."
    if state == "broken":
        return f"{result}: its answers are no better than answers that ignore the question."
    return f"{result}: it is not shown that its answers are better than answers that ignore the question."


def likelihood(over_base: ArmDifference, own_question: ArmDifference, left_out: int, state: State) -> str:
    """The result of the second measure, the likelihood of the authors' answers.

    Args:
        over_base, own_question: Differences in nats per token.
        left_out: Pairs of examples left out because they do not fit into the context together.
        state: Of the check.
    """
    result = (
        "The second measure, the likelihood of the author's answers: each of their tokens is "
        f"{_times(over_base)} as likely as under “{over_base.against}”, and {_times(own_question)} as likely after "
        "its own question as after another's"
    )
    if left_out:
        result += (
            f" (over {own_question.examples} pairs of examples; {left_out} were left out because question and answer "
            "do not fit into the context together)"
        )
    if state == "kept":
        return f"{result}. It agrees."
    if state == "broken":
        return f"{result}. It does not agree."
    return f"{result}. It is not shown whether it agrees."


def _times(difference: ArmDifference) -> str:
    low, high = _ratio(difference.low), _ratio(difference.high)
    return f"{_ratio(difference.estimate)} times (interval {low} to {high})"


def _ratio(nats: float) -> str:
    return f"{math.exp(min(nats, 100.0)):.3g}"


def judge_preference(difference: ArmDifference) -> str:
    """That a judge agrees as the second measure.

    Args:
        difference: Its preference for the candidate, over 0.5, with its lean allowed for.
    """
    return (
        f"The second measure, the judge, agrees: it gave {difference.of} {points(0.5 + difference.estimate)} of 100 "
        "against the base at its best, where 50 is even "
        f"(interval {points(0.5 + difference.low)} to {points(0.5 + difference.high)}, its possible lean included)."
    )


def forgetting(result: Forgetting | None) -> str:
    """How much of the base's ability was lost."""
    if result is None:
        return "Forgetting was not measured."
    parts = [_accuracy("General questions", result.accuracy, result.chance)]
    if result.chat is not None:
        parts.append(_accuracy("General questions in a chat", result.chat, result.chance))
    return " ".join([*parts, _perplexity(result)])


def _accuracy(name: str, part: SuitePart, chance: float) -> str:
    if part.state == "silent":
        return (
            f"{name}: the base itself is at chance ({part.base:.0%} of {part.items} right, guessing {chance:.0%}), so "
            "they cannot show a loss."
        )
    summary = (
        f"{name}: {part.base:.0%} right before, {part.candidate:.0%} after (loss {points(part.loss)} points, "
        f"{LOSS_CONFIDENCE:.0%} interval {points(part.low)} to {points(part.high)}; budget {points(part.budget)})"
    )
    return f"{summary}{within_budget(part.state, part.loss, part.budget)}."


def _perplexity(result: Forgetting) -> str:
    part = result.perplexity
    if part.state == "silent":
        return (
            f"General texts: perplexity {part.base:.1f} before, {_large(part.candidate)} after; to the base, the words "
            "in random order are as likely as the texts, so they cannot show a loss."
        )
    change = f"{abs(part.loss):.0%} {'higher' if part.loss > 0 else 'lower'}"
    ends = f"interval {_large(100 * part.low, 0)}% to {_large(100 * part.high, 0)}%"
    summary = f"General texts: perplexity {part.base:.1f} before, {_large(part.candidate)} after ({change}, {ends}"
    return f"{summary}; budget {part.budget:.0%}){within_budget(part.state, part.loss, part.budget)}."


def _large(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}".replace("-", "−") if abs(value) < 10_000 else f"{value:.1e}"


def within_budget(state: str, loss: float, budget: float) -> str:
    """The end of a sentence on a loss: how it stands to its budget."""
    if state == "open" and loss <= budget:
        return ", within the budget, but the interval does not rule out a larger loss"
    return {
        "kept": ", and the whole interval is within the budget",
        "broken": ", more than the budget allows",
        "open": ", above the budget, but it may be chance",
    }.get(state, "")


def verdict(
    word: Literal["pass", "fail", "not_enough_evidence"],
    difference: ArmDifference,
    comparison: Comparison,
    checks: Sequence[tuple[str, State]],
    more: More,
) -> str:
    """The verdict in one or two sentences: the word, the scores, and what decided.

    Args:
        word: The verdict.
        difference: The candidate against the strongest base.
        comparison: With both of their scores.
        checks: The name and the state of each.
        more: Held-out examples to add before the open checks could be settled.
    """
    score, base_score = comparison.mean(difference.of), comparison.mean(difference.against)
    summary = f"{VERDICT_WORDS[word]}: on {_counted_examples(comparison)} it had not seen, "
    base = _base_of(comparison, difference)
    if comparison.metric == "judge":
        summary += f"the judge gave {difference.of} {points(1 - base_score)} of 100 against {base}, where 50 is even"
    else:
        summary += f"{difference.of} scored {points(score)} of 100, {base} {points(base_score)}"
    if word == "pass":
        return f"{summary}: {difference_in_words(difference)}, and it forgot no more than is allowed."
    if word == "fail":
        return f"{summary}. {_why_failed([name for name, state in checks if state == 'broken'])}"
    return f"{summary}. {_why_undecided(difference, [name for name, state in checks if state == 'open'], more)}"


def _base_of(comparison: Comparison, difference: ArmDifference) -> str:
    """What the base is called: a candidate without weights is compared with it bare (`BARE_BASE_NOTE`)."""
    candidate = comparison.result(difference.of)
    has_weights = candidate.digest is not None or candidate.version is None
    return "the base at its best" if has_weights else "the base without a prompt"


def _counted_examples(comparison: Comparison) -> str:
    count = len(comparison.questions)
    if comparison.independent == count:
        return f"{count} examples"
    return f"{count} examples, which count as {comparison.independent},"


def uncounted_verdict(reason: str) -> str:
    """The verdict where the deciding scores do not count."""
    return f"{VERDICT_WORDS['not_enough_evidence']}: the deciding scores do not count. {reason}"


def missing_examples(count: int) -> str:
    """Why the scores do not count if examples of an earlier look at the same weights are missing."""
    left_out = "an example is" if count == 1 else f"{count} examples are"
    return (
        f"This version, or its weights under another name or prompt, was judged before, and {left_out} missing of "
        "those that it was asked then: on examples chosen after its answers were seen, a version that is no better "
        "wins. Use all of them again, unchanged, with more beside them, or a held-out file that it has not seen."
    )


def without_word(sentence: str) -> str:
    """A verdict's sentence without its first word, such as `Pass: `."""
    rest = sentence.partition(": ")[2]
    return rest[:1].upper() + rest[1:]


def _why_failed(broken: Sequence[str]) -> str:
    reasons = {
        "base": "That is less than the smallest improvement that matters.",
        "live": "It is worse than the live version by more than the margin.",
        "form": "That is no better than answers that ignore the question.",
        "length": "Its answers are cut short.",
        "second_measure": "The author's answers have not become likelier: it is only close to them.",
        "forgetting": "It forgot more of what the base could do than is allowed.",
        "suites": "It lost more in a suite than is allowed.",
        "judge": "The judge prefers the base.",
    }
    return " ".join(text for name, text in reasons.items() if name in broken)


def _why_undecided(difference: ArmDifference, undecided: Sequence[str], more: More) -> str:
    parts = []
    if "examples" in undecided:
        parts.append("That is too few to judge by.")
    if "base" in undecided:
        parts.append(f"The true difference may be anything from {interval_in_points(difference)} points.")
    if {"examples", "base"} & set(undecided):
        parts.append(
            "This many examples cannot show any difference."
            if difference.detectable is None
            else f"This many examples can show a difference of {points(difference.detectable)} points."
        )
    elif "form" in undecided:
        parts.append("It is not shown that its answers are better than answers that ignore the question.")
    if "base_cut" in undecided:
        parts.append(
            "Too many of the base's answers were cut at the length limit: evaluate with a larger `max_tokens`."
        )
    if "live" in undecided:
        parts.append("It is not shown whether it is worse than the live version.")
    if "length" in undecided:
        parts.append("It is undecided whether its answers are cut short.")
    if "second_measure" in undecided:
        parts.append("No second measure agrees yet.")
    if {"forgetting", "suites"} & set(undecided):
        parts.append("It is undecided how much it forgot.")
    if "judge" in undecided:
        parts.append("It is undecided which side the judge prefers.")
    if more.count:
        direction = "" if difference.estimate > difference.bound else ", but so far the scores show no improvement"
        parts.append(f"About {more.count} more examples would settle this{_for_effect(more)}{direction}.")
        if more.most is not None and difference.examples + more.count > more.most:
            parts.append(f"At most {more.most} are asked (HATRACK_TRAINER_EVALUATE_MAX): raise that as well.")
    elif more.count is None and "base" in undecided:
        parts.append("The estimate is so close to the bound that no practical number of examples would settle this.")
    elif more.count is None:
        parts.append("No practical number of examples would settle this.")
    return " ".join(parts)


def _for_effect(more: More) -> str:
    """The difference that a number of examples is computed for, and the numbers if it is not quite that."""
    decisive = more.decisive
    if decisive is None or more.count is None or decisive.needed is None:
        return ""
    have = decisive.needed - more.count
    fewest = max(1, (decisive.needed_if_higher or decisive.needed) - have)
    most = "no practical number" if decisive.needed_if_lower is None else str(decisive.needed_if_lower - have)
    against = CONTROL_NAMES.get(decisive.against, f"“{decisive.against}”").removesuffix(",")
    # of likelihoods, a difference is not in points
    size = "" if decisive.against == "another's question" else f" of {points(decisive.estimate)} points"
    return (
        f" if the measured difference{size} from {against} is the true one ({fewest} if it is a standard error further "
        f"from the bound, {most} if it is one closer)"
    )
