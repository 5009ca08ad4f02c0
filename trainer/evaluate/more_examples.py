"""How many more held-out examples would settle a verdict's open checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters.protocol.reports import ArmDifference
from trainer.evaluate.second_measure import Likelihood


@dataclass(frozen=True, slots=True)
class Differences:
    """The candidate's differences from the strongest base, `live` and the controls, and the second measure."""

    base: ArmDifference
    live: ArmDifference | None
    form: tuple[ArmDifference, ...]
    likelihood: Likelihood | None


def more_examples(
    undecided: Sequence[str], differences: Differences, min_examples: int
) -> tuple[int | None, ArmDifference | None]:
    """The number of additional held-out examples that would settle the open checks, and the difference that needs most.

    Args:
        undecided: The names of the open checks; `base_cut` for one on the base that is open as its answers were cut,
            which examples cannot settle.
        differences: With the numbers that they need.
        min_examples: The rule's minimum.

    Returns:
        None as the number if none would do, or if no open check depends on held-out examples; 0 if no check is open.
    """
    needed: list[tuple[int | None, ArmDifference | None]] = []
    for name in undecided:
        needed += _needed(name, differences, min_examples)
    if not needed:
        return (None if undecided else 0), None
    finite = [(count, decisive) for count, decisive in needed if count is not None]
    if len(finite) < len(needed):
        return None, None
    count, decisive = max(finite, key=lambda entry: entry[0])
    return max(1, count - differences.base.examples), decisive


def _needed(name: str, differences: Differences, min_examples: int) -> list[tuple[int | None, ArmDifference | None]]:
    """The total number of examples that would settle each part of an open check, with the difference that it is
    computed for; empty if examples cannot settle it."""
    if name == "examples":
        return [(min_examples, None)]
    if name == "base":
        return [(differences.base.needed, differences.base)]
    if name == "live" and differences.live is not None:
        return [(differences.live.needed, differences.live)]
    if name == "form":
        return [(control.needed, control) for control in differences.form]
    if name == "length":
        return [(None, None)]
    if name == "second_measure" and differences.likelihood is not None:
        # if only some references were scored, more examples would not be scored either
        all_scored = differences.likelihood.over_base.examples == differences.base.examples
        both = (differences.likelihood.over_base, differences.likelihood.own_question)
        return [(difference.needed if all_scored else None, difference) for difference in both]
    return []
