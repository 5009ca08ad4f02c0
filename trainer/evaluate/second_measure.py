"""The second measure that must confirm an overlap metric before free text passes: a likelihood, or a judge that counts.

Overlap can be high without answering: one sentence made of the author's most frequent words scores higher than an
honest adapter. A model trained on that sentence gives the author's answers a low likelihood.

The likelihood alone proves nothing either. It is a mean over tokens: a model that begins the sentence with
probability p and is honest otherwise loses -ln(1 - p) nats on one token of each answer, yet answers every question with
the sentence if p is above one half. So this measure complements the controls (`control_arms`) and never replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.protocol.reports import ArmDifference
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.paired_difference import IntervalMethod, paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array, Units, as_array
from trainer.runs.protocol import Frozen


class Likelihood(Frozen):
    """How likely the author's answers are under the candidate, as differences in nats per token.

    ``over_base``: compared with the strongest base arm. ``own_question``: after their own question compared with
    another example's. ``left_out``: pairs of examples missing from the latter because they do not fit into the context
    together.
    """

    over_base: ArmDifference
    own_question: ArmDifference
    left_out: int = 0

    @property
    def examples(self) -> int:
        """The number of examples in the smaller of the two differences."""
        return min(self.over_base.examples, self.own_question.examples)


def likelihood(
    comparison: Comparison, candidate: str, bases: Sequence[str], method: IntervalMethod
) -> Likelihood | None:
    """Both differences. None if an arm's likelihoods were not measured (as at an outside endpoint), or no two examples
    fit into the context."""
    result = comparison.result(candidate)
    others = [(label, comparison.result(label)) for label in bases]
    measured = [(label, _logs(result)) for label, result in others if result.nats is not None]
    if result.nats is None or result.nats_elsewhere is None or not measured:
        return None
    base, strongest = max(measured, key=lambda entry: float(entry[1].mean()))
    own, pairs = _logs(result), list(enumerate(result.nats_elsewhere))
    fitting = [(index, nats) for index, nats in pairs if nats is not None]
    if not fitting:
        return None
    own_of_fitting = own[[index for index, _ in fitting]]
    elsewhere = -as_array([nats for _, nats in fitting])
    units = comparison.units
    scored_units = None if units is None else units[: len(own)]
    fitting_units = None if units is None else [units[index] for index, _ in fitting]
    return Likelihood(
        over_base=_likelier((candidate, own), (base, strongest), method, scored_units),
        own_question=_likelier((candidate, own_of_fitting), ("another's question", elsewhere), method, fitting_units),
        left_out=len(pairs) - len(fitting),
    )


def _logs(result: ArmResult) -> Array:
    """Mean log-probability per token of each reference."""
    return -as_array(result.nats or ())


def _likelier(
    of: tuple[str, Array], against: tuple[str, Array], method: IntervalMethod, units: Units | None
) -> ArmDifference:
    return paired_difference(
        (*of, NO_RUNS), (*against, NO_RUNS), binary=False, method=method, units=units, scale="log_probability"
    )
