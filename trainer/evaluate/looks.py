"""Repeated looks at held-out examples: how many versions were judged on them before, and what the next one may claim.

Whoever retrains until a version passes finds one by luck: of 20 versions that are no better than the base, judged at
97.5% each on one held-out set, 10% to 20% of such series have a pass. So a look costs something. It is counted per
held-out example, within a project, over versions, jobs and evaluations by hand: leaving out a few examples, or
changing all a little, resets nothing, as near-duplicates are the same example here (`trainer.evaluate.sketches`). One
that is new counts as new.

The first version to be judged on the examples has the whole level alpha (one-sided). All later ones share another
alpha: the k-th has alpha / (k (k - 1)), which sums to alpha over all k from 2 on. So a series of versions that are no
better passes with a probability of at most 2 alpha, however long it is (a union bound; compare the alpha spending of
D. L. DeMets and K. K. G. Lan, Statistics in Medicine 13 (1994), 1341-1352).

The bound needs numbers that no two looks share, and that do not depend on what an evaluation shows: a version has its
number from the moment when its scores are first seen, as a candidate or as any other arm. Only the exact repetition of
a look is free. The same version on other examples, under another metric or with another limit is another look: whoever
may choose among those finds one that passes, too, and so does whoever edits the documents that a grounded version is
shown until they suit the questions. And no number pays for leaving out what a version lost: if some of
the examples of an earlier look at its weights are missing, its scores do not count (`missing_examples`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from pydantic import Field

from trainer.data.folding import fold, key
from trainer.evaluate.arms import Question
from trainer.runs.protocol import Frozen

if TYPE_CHECKING:  # loads the statistics, which the trainer's own process does without
    from trainer.evaluate.compare import ArmResult, Comparison, StoppedArm

KEY_BYTES: Final = 8
PROMPT_CHARS: Final = 16
NO_WEIGHTS: Final = "none"
"""Stands for the digest of a version without weights."""
MAX_COINCIDENCES: Final = 0.02
"""Share of examples that may be near-duplicates of those of another file: in questions of one domain some are by
chance. Chosen ones move a mean by no more than the smallest difference that matters."""


class Look(Frozen):
    """One version's evaluation.

    ``version``: `version_looked_at`. ``examples``: the keys of the held-out examples (`example_key`). ``setup``:
    `arm_setup`; empty in looks that an earlier release recorded. ``sketches``: by an example's key, its sketch
    (`trainer.evaluate.sketches`); of examples that only an earlier release recorded, there is none.
    """

    version: str
    examples: tuple[str, ...]
    setup: str = ""
    sketches: dict[str, bytes] = Field(default_factory=dict)


def example_key(question: Question) -> str:
    """A held-out example's key: the hash of its folded question (`trainer.data.folding`), in hexadecimal.

    What does not make another question there makes none here, nor does another answer.
    """
    text = question.text
    return hashlib.blake2b(key(fold(text)).encode(), digest_size=KEY_BYTES).hexdigest()


def version_looked_at(result: ArmResult | StoppedArm) -> str:
    """What distinguishes one version from another: the digest of its weights, its name and number, and the arm's prompt
    and grounding if a client chose them.

    The digest alone would take all system prompts on the same weights for one version: who tries prompts until one
    passes finds one by luck as well.
    """
    arm = result.arm
    parts = [result.digest or NO_WEIGHTS, result.version or "/".join(filter(None, (arm.endpoint, arm.model)))]
    if arm.prompt.model_dump(exclude_defaults=True) or arm.grounding is not None:
        chosen = json.dumps([arm.prompt.model_dump(), arm.grounding], sort_keys=True)
        parts.append(hashlib.blake2b(chosen.encode()).hexdigest()[:PROMPT_CHARS])
    return " ".join(parts)


def look_setup(questions: Sequence[Question], *options: object) -> str:
    """What distinguishes two looks of one version: a hash of the questions with their references, in any order, and of
    the options that scores depend on, as plain JSON."""
    asked = sorted(hashlib.blake2b(f"{example_key(each)} {each.reference}".encode()).hexdigest() for each in questions)
    return hashlib.blake2b(json.dumps([asked, options], sort_keys=True).encode(), digest_size=KEY_BYTES).hexdigest()


def arm_setup(result: ArmResult, questions: Sequence[Question], setup: str) -> str:
    """``setup`` (see `look_setup`) for one arm: if it was shown passages, hashed with those of each question.

    Other passages make other answers. An edit of a store that changes none of those that were shown makes no other
    look.
    """
    if not any(result.passages):
        return setup
    passages = zip(questions, result.passages, strict=True)
    shown = sorted((example_key(question), passage or "") for question, passage in passages)
    return hashlib.blake2b(json.dumps([setup, shown]).encode(), digest_size=KEY_BYTES).hexdigest()


def looks_of(
    comparison: Comparison,
    candidate: str | None,
    live: str | None,
    setup: str = "",
    prompted: Collection[str] = (),
) -> list[Look]:
    """The looks of a comparison: the candidate's first, then those of the other versions that it shows scores of.

    The live version is not counted again: it was when it was judged. Neither are outside endpoints, unless one is the
    candidate, nor the base, unless its arm's label is one of ``prompted`` (`EvaluationSpec.prompted`): the best of many
    prompts that were tried on the base may become a version.
    """
    questions = comparison.questions
    sketch_of = _sketches(questions)
    examples = tuple(example_key(question) for question in questions)
    first = [] if candidate is None else [comparison.result(candidate)]
    setups: dict[str, str] = {}
    for result in (*first, *(result for result in comparison.results if _is_shown(result, live, prompted))):
        setups.setdefault(version_looked_at(result), arm_setup(result, questions, setup))
    for stopped in (stopped for stopped in comparison.stopped if _is_shown(stopped, live, prompted)):
        setups.setdefault(version_looked_at(stopped), setup)  # it was asked, and shown passages for, some of them only
    return [Look(version=version, examples=examples, setup=own, sketches=sketch_of) for version, own in setups.items()]


def _sketches(questions: Sequence[Question]) -> dict[str, bytes]:
    """Each question's sketch, by its key."""
    from trainer.evaluate.sketches import sketches  # numpy, which the trainer's own process does without

    made = sketches(tuple(question.text for question in questions))
    return {example_key(question): sketch for question, sketch in zip(questions, made, strict=True)}


def _is_shown(arm: ArmResult | StoppedArm, live: str | None, prompted: Collection[str]) -> bool:
    """Whether it is a version, as the base and outside endpoints are not, or ``prompted``; and not the live one."""
    # a version without weights has no digest
    is_version = (arm.digest or arm.version) is not None
    return (is_version or arm.arm.label in prompted) and arm.arm.label != live


def position(looks: Iterable[Look], version: str, questions: Sequence[Question], setup: str = "") -> int:
    """The number of a look among those at these examples, from 1.

    It is one more than the mean number of other looks that each example was used for, rounded, and at least one more
    than the number of the version's own. What came after the first look of the same version and setup does not count:
    repeating an evaluation costs nothing.

    Args:
        looks: The project's looks, oldest first; this one may be among them.
        version: See `version_looked_at`.
        questions: The held-out examples; at least one.
        setup: See `arm_setup`.
    """
    earlier = _before(looks, version, questions, setup)
    overlap = _Overlap(earlier, questions)
    before: dict[str, set[tuple[str, str]]] = {example: set() for example in overlap.keys}
    own: set[str] = set()
    for look in earlier:
        used = overlap.used(look)
        for example in used:
            before[example].add((look.version, look.setup))
        if used and is_same_version(look.version, version):
            own.add(look.setup)
    return 1 + max(len(own), int(sum(map(len, before.values())) / len(before) + 0.5))


def missing_examples(
    looks: Iterable[Look], version: str, questions: Sequence[Question], setup: str, undrawn: Sequence[Question] = ()
) -> int:
    """How many examples of an earlier look of the same weights at some of these examples are no longer in the held-out
    file; of several such looks, the most.

    Those that are in the file, but not in its sample (``undrawn``), are not missing: nobody chose them by what the
    version answered (see `planning.draw`), and a file above the limit may grow. Nor are those that the gateway leaves
    out because a version was trained on them, as the live one that a candidate is to be rolled back from.

    An example that was edited is missing: whoever may edit those that a version lost has it asked until it wins. A look
    is at these examples, too, if more than MAX_COINCIDENCES of them are edited ones of earlier looks of the weights.

    Of looks that an earlier release recorded, none is missing: it drew other samples of a large file.
    """
    keys = {example_key(question) for question in questions}
    earlier = [
        look
        for look in _before(looks, version, questions, setup)
        if look.setup and has_same_weights(look.version, version)
    ]
    overlap = _Overlap(earlier, questions)
    edited = {example for look in earlier for example in overlap.used(look).difference(look.examples)}
    are_edited = len(edited) > MAX_COINCIDENCES * len(keys)
    shared = [look for look in earlier if keys.intersection(look.examples) or (are_edited and overlap.used(look))]
    missing = [set(look.examples) - keys for look in shared]
    in_file = {example_key(question) for question in undrawn} if any(missing) else set()
    return max((len(examples - in_file) for examples in missing), default=0)


def _before(looks: Iterable[Look], version: str, questions: Sequence[Question], setup: str) -> list[Look]:
    """The looks before the first of this version and setup. One without a setup has the same if its examples are."""
    keys = {example_key(question) for question in questions}

    def is_other(look: Look) -> bool:
        same_setup = look.setup == setup if look.setup else set(look.examples) == keys
        return not (same_setup and is_same_version(look.version, version))

    return list(takewhile(is_other, looks))


class _Overlap:
    """Which of the questions the examples of looks are: the same ones, or near-duplicates of them.

    ``keys``: of the questions.
    """

    def __init__(self, looks: Sequence[Look], questions: Sequence[Question]) -> None:
        from trainer.evaluate.sketches import near_duplicates

        own = _sketches(questions)
        self.keys = frozenset(own)
        known = {example: sketch for look in looks for example, sketch in look.sketches.items()}
        examples, self._near = list(known), dict[str, set[str]]()
        matches = near_duplicates(list(known.values()), list(own.values()))
        for question, positions in zip(own, matches, strict=True):
            for at in positions:
                self._near.setdefault(examples[at], set()).add(question)

    def used(self, look: Look) -> frozenset[str]:
        """The keys of the questions that the look used, or near-duplicates of them."""
        near = (self._near.get(example, ()) for example in look.examples)
        return self.keys.intersection(look.examples).union(*near)


def is_same_version(recorded: str, version: str) -> bool:
    """Whether a recorded look is at this version. Earlier releases recorded the digest alone."""
    return version == recorded or (" " not in recorded and version.partition(" ")[0] == recorded)


def has_same_weights(recorded: str, version: str) -> bool:
    """Whether a recorded look is at a version with the same weights, whatever its name, prompt and grounding; without
    weights, whether it is at this version."""
    digest = version.partition(" ")[0]
    return is_same_version(recorded, version) or (digest != NO_WEIGHTS and recorded.partition(" ")[0] == digest)


def look_confidence(confidence: float, number: int) -> float:
    """The two-sided confidence of the intervals of the ``number``-th version (from 1) judged on the same examples.

    Args:
        confidence: That of the first, such as 0.95.
        number: From `position`.
    """
    alpha = (1 - confidence) / 2
    return confidence if number == 1 else 1 - 2 * alpha / (number * (number - 1))
