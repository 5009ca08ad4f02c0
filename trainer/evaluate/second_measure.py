"""What has to agree with a metric of words in common before free text passes: a likelihood, or a judge that counts.

Words in common can be had without an answer: one sentence made of the author's most frequent words scores higher than
an honest adapter. A model that was trained on that sentence gives the author's answers little likelihood.

The likelihood alone proves nothing either. It is a mean over tokens: a model that begins the sentence with
probability p and is honest otherwise loses -ln(1 - p) nats on one token of each answer, and says the sentence to every
question where p is above a half. So this measure comes on top of the controls (`controls`), never in their place.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluate.arms import Frozen
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.paired_difference import Difference, Method, paired_difference
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import Array, as_array


class Likelihood(Frozen):
    """How likely the author's answers are under the candidate, by differences in nats a token.

    ``over_base``: how much likelier than under the strongest of the base's arms. ``own_question``: how much likelier
    after their own question than after another example's. ``left_out``: pairs of two examples that are not in the
    latter, because they do not fit into the context together.
    """

    over_base: Difference
    own_question: Difference
    left_out: int = 0

    @property
    def examples(self) -> int:
        """Over how many; at least so many in both differences."""
        return min(self.over_base.examples, self.own_question.examples)


def likelihood(comparison: Comparison, candidate: str, bases: Sequence[str], method: Method) -> Likelihood | None:
    """Both differences; None where an arm's likelihoods were not measured, such as an outside endpoint's, or no two
    examples fit into the context."""
    mine = comparison.result(candidate)
    others = [(label, comparison.result(label)) for label in bases]
    measured = [(label, _logs(result)) for label, result in others if result.nats is not None]
    if mine.nats is None or mine.nats_elsewhere is None or not measured:
        return None
    base, strongest = max(measured, key=lambda each: float(each[1].mean()))
    own, pairs = _logs(mine), list(enumerate(mine.nats_elsewhere))
    fitting = [(at, nats) for at, nats in pairs if nats is not None]
    if not fitting:
        return None
    own_of_fitting = own[[at for at, _ in fitting]]
    elsewhere = -as_array([nats for _, nats in fitting])
    return Likelihood(
        over_base=_likelier(candidate, own, base, strongest, method),
        own_question=_likelier(candidate, own_of_fitting, "another's question", elsewhere, method),
        left_out=len(pairs) - len(fitting),
    )


def _logs(result: ArmResult) -> Array:
    """Mean log-probability a token of each reference."""
    return -as_array(result.nats or ())


def _likelier(of: str, logs: Array, against: str, others: Array, method: Method) -> Difference:
    return paired_difference((of, logs, NO_RUNS), (against, others, NO_RUNS), binary=False, method=method)
