"""Verdicts in words that a manager understands. Scores are told in points of a hundred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from trainer.evaluate.compare import Comparison
from trainer.evaluate.forgetting import Forgetting, SuitePart
from trainer.evaluate.paired_difference import Difference

State = Literal["kept", "broken", "open"]
CONTROL_NAMES: Final = {
    "constant": "giving every question the same answer",
    "permuted": "giving every question the answer to another",
    "reassigned": "its own answers, each given to another question,",
    "reassigned_beyond_question": "its own answers, each given to another question, without the questions' words,",
    "question": "giving the question back as the answer",
}
ALWAYS_SAME: Final = "It gives every question the same answer."
NO_SECOND_MEASURE: Final = (
    "Words in common are not enough for a pass, and no second measure was taken. The likelihood of the author's "
    "answers is one, for versions that this gateway serves; a judge that counts is the other."
)
VERDICT_WORDS: Final = {"pass": "Pass", "fail": "Fail", "not_enough_evidence": "Not enough evidence"}


def points(value: float) -> str:
    """A share as points of a hundred, with a decimal where it is small."""
    scaled = 100 * value
    text = f"{scaled:.1f}" if abs(scaled) < 10 else f"{scaled:.0f}"
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text.replace("-", "−")


def interval_in_points(found: Difference) -> str:
    """An interval in points."""
    return f"{points(found.low)} to {points(found.high)}"


def difference_in_words(found: Difference) -> str:
    """A difference as `12 points better` or `3 points worse`."""
    if points(found.estimate) == "0":
        return "no better"
    return f"{points(abs(found.estimate))} points {'better' if found.estimate > 0 else 'worse'}"


def examples(count: int, least: int) -> str:
    """Whether so many examples are enough."""
    if count >= least:
        return f"{count} held-out examples; at least {least} are needed."
    return f"{count} held-out examples are too few to judge by; at least {least} are needed."


def against_base(found: Difference, state: State) -> str:
    """What was seen against the base at its best."""
    seen = (
        f"Against “{found.against}” it is {difference_in_words(found)} "
        f"({found.confidence:.0%} interval {interval_in_points(found)}); "
        f"{points(found.bound)} points is the least that matters"
    )
    if state == "kept":
        return f"{seen}, and the whole interval is above it."
    if state == "broken":
        return f"{seen}, and the whole interval is at or below it."
    return f"{seen}, and the interval holds it: it may be so or not."


def against_live(found: Difference, state: State) -> str:
    """What was seen against the version that serves now."""
    seen = (
        f"Against “{found.against}”, which serves now, it is {difference_in_words(found)} "
        f"(interval {interval_in_points(found)}); "
        f"it may be at most {points(-found.bound)} points worse"
    )
    if state == "kept":
        return f"{seen}, and the whole interval is above that."
    if state == "broken":
        return f"{seen}, and the whole interval is at or below that."
    return f"{seen}, and the interval does not exclude that it is worse than that."


def against_form(found: Difference, state: State) -> str:
    """What was seen against answers that ignore the question."""
    control = CONTROL_NAMES.get(found.against, found.against)
    seen = f"Against {control} it is {difference_in_words(found)} (interval {interval_in_points(found)})"
    if state == "kept":
        return f"{seen}: its answers are to the questions."
    if state == "broken":
        return f"{seen}: its answers are no more than one gets without the question."
    return f"{seen}: whether its answers are more than one gets without the question is not shown."


def likelihood(over_base: Difference, own_question: Difference, left_out: int, state: State) -> str:
    """Whether the likelihood of the author's answers agrees; both differences are in nats a token. ``left_out``: pairs
    of two examples that were too long."""
    seen = (
        f"The second measure, the likelihood of the author's answers: a token of them is {_times(over_base)} as likely "
        f"as under “{over_base.against}”, and {_times(own_question)} as likely after its own question as after "
        "another's"
    )
    if left_out:
        seen += (
            f" (over {own_question.examples} pairs of examples; {left_out} were left out, whose question and answer "
            "do not fit into the context together)"
        )
    if state == "kept":
        return f"{seen}: it agrees."
    if state == "broken":
        return f"{seen}: it does not agree."
    return f"{seen}: whether it agrees is not shown."


def _times(found: Difference) -> str:
    low, high = _ratio(found.low), _ratio(found.high)
    return f"{_ratio(found.estimate)} times (interval {low} to {high})"


def _ratio(nats: float) -> str:
    return f"{math.exp(min(nats, 100.0)):.3g}"


def judge_preference(found: Difference) -> str:
    """That a judge agrees; by how much it prefers the candidate, over even."""
    return (
        f"The second measure, the judge, agrees: it gave {found.of} {points(0.5 + found.estimate)} of 100 against the "
        f"base at its best, where 50 is even (interval {points(0.5 + found.low)} to {points(0.5 + found.high)})."
    )


def forgetting(found: Forgetting | None) -> str:
    """What was lost of what the base could do."""
    if found is None:
        return "What it forgot was not measured."
    return f"{_accuracy(found)} {_perplexity(found.perplexity)}"


def _accuracy(found: Forgetting) -> str:
    part = found.accuracy
    if part.state == "silent":
        return (
            f"The base itself is at chance in the suite's {part.items} questions ({part.base:.0%} right, guessing "
            f"{found.chance:.0%}): the suite cannot show a loss."
        )
    seen = (
        f"General questions: {part.base:.0%} right before, {part.candidate:.0%} after (loss {points(part.loss)} "
        f"points, interval {points(part.low)} to {points(part.high)}; budget {points(part.budget)})"
    )
    return f"{seen}{_against_budget(part)}."


def _perplexity(part: SuitePart) -> str:
    change = f"{abs(part.loss):.0%} {'higher' if part.loss > 0 else 'lower'}"
    seen = f"General texts: perplexity {part.base:.1f} before, {_large(part.candidate)} after ({change}"
    return f"{seen}; budget {part.budget:.0%}){_against_budget(part)}."


def _large(value: float) -> str:
    return f"{value:.1f}" if value < 10_000 else f"{value:.1e}"


def _against_budget(part: SuitePart) -> str:
    return {
        "kept": ", within the budget",
        "broken": ", more than the budget allows",
        "open": ", above the budget, but it may be chance",
    }.get(part.state, "")


def verdict(
    word: Literal["pass", "fail", "not_enough_evidence"],
    found: Difference,
    comparison: Comparison,
    checks: Sequence[tuple[str, State]],
    more: int | None,
) -> str:
    """The verdict in one or two sentences: the word, what was seen, and what decided."""
    mine, other = comparison.result(found.of).mean, comparison.result(found.against).mean
    seen = f"{VERDICT_WORDS[word]}: on {found.examples} examples that it had not seen, "
    if comparison.metric == "judge":
        seen += f"the judge gave {found.of} {points(1 - other)} of 100 against the base at its best, where 50 is even"
    else:
        seen += f"{found.of} scored {points(mine)} of 100, the base at its best {points(other)}"
    if word == "pass":
        return f"{seen}: {difference_in_words(found)}, and it forgot no more than is allowed."
    if word == "fail":
        return f"{seen}. {_why_failed([name for name, state in checks if state == 'broken'])}"
    return f"{seen}. {_what_would_do(found, [name for name, state in checks if state == 'open'], more)}"


def uncounted_verdict(why: str) -> str:
    """The verdict in words where the scores do not count."""
    return f"{VERDICT_WORDS['not_enough_evidence']}: what decides does not count yet. {why}"


def without_word(sentence: str) -> str:
    """A verdict's sentence without the word that it begins with."""
    rest = sentence.partition(": ")[2]
    return rest[:1].upper() + rest[1:]


def _why_failed(broken: Sequence[str]) -> str:
    said = {
        "base": "That is not the improvement that would be worth having.",
        "live": "It is worse than the version that serves now by more than the margin.",
        "form": "That is no more than one gets without the question.",
        "second_measure": "The author's answers have not become likelier: it has words in common with them, no more.",
        "forgetting": "It forgot more of what the base could do than is allowed.",
        "suites": "It lost more in a suite than is allowed.",
        "judge": "The judge prefers the base.",
    }
    return " ".join(text for name, text in said.items() if name in broken)


def _what_would_do(found: Difference, undecided: Sequence[str], more: int | None) -> str:
    parts = []
    if "examples" in undecided:
        parts.append("That is too few to judge by.")
    if "base" in undecided:
        parts.append(f"The difference may be anything from {interval_in_points(found)} points.")
    if {"examples", "base"} & set(undecided):
        parts.append(
            "No difference at all could have been shown with so few."
            if found.detectable is None
            else f"So many could have shown a difference of {points(found.detectable)} points."
        )
    elif "form" in undecided:
        parts.append("Whether its answers are more than one gets without the question is not shown.")
    if "live" in undecided:
        parts.append("Whether it is worse than the version that serves now is not shown.")
    if "second_measure" in undecided:
        parts.append("No second measure agrees yet.")
    if {"forgetting", "suites"} & set(undecided):
        parts.append("What it forgot is not settled.")
    if "judge" in undecided:
        parts.append("What the judge prefers is not settled.")
    if more:
        towards = "" if found.estimate > found.bound else ", though what was seen points to no improvement"
        parts.append(f"About {more} examples more would do{towards}.")
    elif more is None and "base" in undecided:
        parts.append("What was seen is so close to the bound that no practical number of examples would settle it.")
    elif more is None:
        parts.append("No practical number of examples would settle that.")
    return " ".join(parts)
