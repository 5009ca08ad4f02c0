"""Repeated looks at held-out examples: how many versions were judged on them before, and what the next one may claim.

Whoever retrains until a version passes finds one by luck: of 20 versions that are no better than the base, judged at
97.5% each on one held-out set, 10% to 20% of such series have a pass. So a look costs something. It is counted per
held-out example, within a project, over versions, jobs and evaluations by hand: leaving out or rewording a few examples
resets nothing, and an example that is new counts as new.

The first version to be judged on the examples has the whole level alpha (one-sided). All later ones share another
alpha: the k-th has alpha / (k (k - 1)), which sums to alpha over all k from 2 on. So a series of versions that are no
better passes with a probability of at most 2 alpha, however long it is (a union bound; compare the alpha spending of
D. L. DeMets and K. K. G. Lan, Statistics in Medicine 13 (1994), 1341-1352).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from trainer.data.folding import fold, key
from trainer.evaluate.arms import Frozen, Question

KEY_BYTES: Final = 8


class Look(Frozen):
    """One version's evaluation.

    ``digest``: of the version's weights; of a version without any its name, `support@1`. ``examples``: the keys of the
    held-out examples (`example_key`).
    """

    digest: str
    examples: tuple[str, ...]


def example_key(question: Question) -> str:
    """A held-out example's key: the hash of its folded question (`trainer.data.folding`), in hexadecimal.

    What does not make another question there makes none here, nor does another answer.
    """
    text = "\n".join(turn.content for turn in question.turns if turn.role != "system")
    return hashlib.blake2b(key(fold(text)).encode(), digest_size=KEY_BYTES).hexdigest()


def position(looks: Iterable[Look], digest: str | None, questions: Sequence[Question]) -> int:
    """The number of a version among those that were judged on these examples, from 1.

    It is one more than the mean number of other versions that each example was used for, rounded. What came after the
    version's own first look does not count: evaluating it again costs nothing.

    Args:
        looks: The project's earlier looks, oldest first.
        digest: The version's; None if it is unknown: then it is a new one.
        questions: The held-out examples; at least one.
    """
    before: dict[str, dict[str, None]] = {example_key(question): {} for question in questions}
    for look in looks:
        for example in look.examples:
            if example in before and (digest is None or digest not in before[example]):
                before[example][look.digest] = None
    others = sum(len(digests) - (digest in digests) for digests in before.values())
    return 1 + int(others / len(before) + 0.5)


def look_confidence(confidence: float, number: int) -> float:
    """The two-sided confidence of the intervals of the ``number``-th version (from 1) judged on the same examples.

    Args:
        confidence: That of the first, such as 0.95.
        number: From `position`.
    """
    alpha = (1 - confidence) / 2
    return confidence if number == 1 else 1 - 2 * alpha / (number * (number - 1))
