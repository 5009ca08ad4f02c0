"""Revalidation: whether an earlier verdict holds, from its scores and today's on the same questions.

A version's scores of two evaluations are paired question by question, so that only what has changed counts: the model
is the same, and greedy answers are mostly the same, so that the interval of the difference is narrow. The rule and its
error rates are in REVALIDATION.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from adapters.protocol.reports import ArmDifference
from adapters.protocol.runs import EarlierVerdict
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Question
from trainer.evaluate.compare import ArmResult
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.metrics.choose import JUDGE
from trainer.evaluate.paired_difference import IntervalMethod, noise_of, paired_difference
from trainer.evaluate.revalidation_suite import SuiteScores
from trainer.evaluate.spec import MetricOptions, Outcome
from trainer.evaluate.statistics.noise import RunNoise, combined_noise
from trainer.evaluate.statistics.paired import Units, as_array
from trainer.evaluate.verdict import Rules, State, Verdict, VerdictWord
from trainer.runs.protocol import Frozen

T = TypeVar("T")
LOOKS: Final = 4
"""Revalidations in a year, one every 90 days; the level of a failure is divided by it."""
SAME: Final = 1e-4
"""Scores that lie within this of each other are the same: an embedding's last digits depend on its batch."""
DIGEST_CHARS: Final = 16
EARLIER: Final = "then"
NOW: Final = "now"


class RecordedArm(Frozen):
    """One arm's scores of the first run, and digests of its answers, one per question; its noise between runs."""

    label: str
    scores: tuple[float, ...]
    answers: tuple[str, ...]
    noise: float = 0.0
    """A variance, as ``RunNoise.variance``; ``degrees``: on so many degrees of freedom."""
    degrees: float = 0.0


class VerdictScores(Frozen):
    """What a verdict stores so that a later evaluation of the version can be compared with it.

    Attributes:
        questions: One key per question, of its id, text and reference.
        candidate, base: The version, and the base's strongest arm.
        counted: Whether the scores count; false for those of a judge that does not.
        suite: The general suite, if it ran.
        units: The number of each question's independent unit; None if every question is its own, or in records of
            before they were stored.
    """

    format: int = 1
    metric: MetricOptions
    binary: bool
    questions: tuple[str, ...]
    candidate: RecordedArm
    base: RecordedArm
    counted: bool = True
    suite: SuiteScores | None = None
    units: tuple[int, ...] | None = None


class RevalidationCheck(Frozen):
    """One condition under which the earlier verdict holds, with a state as in `Check`."""

    name: Literal["score", "advantage", "forgetting"]
    state: State
    sentence: str


class RevalidationResult(Frozen):
    """Whether an earlier verdict holds.

    Attributes:
        word: As recorded: the earlier verdict's word if it holds, `fail` if it does not, else `not_enough_evidence`.
        holds: None if neither is shown.
        compared_with: The earlier verdict's id.
        rule: The version of the rule of the verdict that stands: the earlier one's if it holds.
        examples: How many independent questions both evaluations asked.
        changed: On how many of these the version's answer has changed.
        then_now: Today's scores minus the earlier ones. With a judge's votes, of the preference over the base.
        strict: The same with the confidence that a failure needs (see `strict_method`).
        advantage: Today's lead over the strongest base minus the earlier one, with that confidence.
    """

    word: VerdictWord
    sentence: str
    holds: bool | None
    compared_with: str
    rule: int
    checks: tuple[RevalidationCheck, ...]
    examples: int
    changed: int
    then_now: ArmDifference
    strict: ArmDifference
    advantage: ArmDifference


class Incomparable(Exception):
    """Two evaluations' scores cannot be compared; the message says why, as a part of a sentence."""


def scores_of(outcome: Outcome, metric: MetricOptions) -> VerdictScores | None:
    """The scores to store with an evaluation's verdict; None if it has none."""
    verdict = outcome.verdict
    if verdict is None:
        return None
    comparison, judged = outcome.comparison, outcome.judged
    return VerdictScores(
        metric=metric,
        binary=comparison.binary,
        questions=tuple(question_key(question) for question in comparison.questions),
        candidate=_arm_scores(comparison.result(verdict.candidate), comparison.units),
        base=_arm_scores(comparison.result(verdict.base), comparison.units),
        counted=metric.name != JUDGE or (judged is not None and judged.counted),
        suite=None if verdict.forgetting is None else SuiteScores.of(verdict.forgetting),
        units=comparison.units,
    )


def read_scores(content: bytes) -> VerdictScores:
    """Parse a verdict's stored scores. Raises Incomparable if they are not valid."""
    try:
        return VerdictScores.model_validate_json(content)
    except ValidationError as error:
        raise Incomparable("the earlier verdict's scores cannot be read") from error


def question_key(question: Question) -> str:
    """The id of a question with a digest of its text and reference."""
    content = question.model_dump_json(include={"turns", "reference"})
    return f"{question.id}:{_digest(content)}"


def revalidate(
    earlier: EarlierVerdict, then: VerdictScores, now: VerdictScores, verdict: Verdict, rules: Rules
) -> RevalidationResult:
    """Whether the earlier verdict holds.

    Args:
        earlier: The earlier verdict.
        then: Its scores.
        now: The scores of the new evaluation.
        verdict: The verdict that the new evaluation would reach by itself.
        rules: The operator's settings. Their confidence holds here, whatever number the version's look has: what is
            compared with its own past is not one of several versions.

    Raises:
        Incomparable: Another metric or other questions, or the metric now scores the same answer differently.
    """
    pairs, judge = _Pairs.of(then, now), now.metric.name == JUDGE
    method, bound = rules.method, -rules.margin(now.metric.name)
    strict_confidence = strict_method(method)
    then_now = pairs.difference(method, bound, over_base=judge)
    strict = pairs.difference(strict_confidence, bound, over_base=judge)
    advantage = pairs.difference(strict_confidence, 0.0, over_base=True)
    judged = [
        _score_check(then_now, strict, pairs.changed_pairs if judge else pairs.changed),
        _advantage_check(advantage, verdict),
        *_forgetting_check(then.suite, now.suite, verdict.forgetting, strict_confidence),
    ]
    states = {check.state for check in judged}
    holds = False if "broken" in states else None if "open" in states else True
    recorded: VerdictWord = earlier.verdict if holds else "not_enough_evidence" if holds is None else "fail"
    return RevalidationResult(
        word=recorded,
        sentence=_sentence(recorded, holds, judged, pairs),
        holds=holds,
        compared_with=earlier.id,
        rule=earlier.rule if holds else verdict.rule,
        checks=tuple(judged),
        examples=then_now.examples,
        changed=pairs.changed,
        then_now=then_now,
        strict=strict,
        advantage=advantage,
    )


def strict_method(method: IntervalMethod) -> IntervalMethod:
    """The method whose intervals a failure needs: the level is divided by the looks of a year (Bonferroni)."""
    return method.model_copy(update={"confidence": 1 - (1 - method.confidence) / LOOKS})


def score_state(difference: ArmDifference, strict: ArmDifference, *, unchanged: bool) -> State:
    """The state of the check of then against now; ``difference.bound`` is minus the margin.

    Args:
        difference: Today's scores minus the earlier ones.
        strict: The same by `strict_method`.
        unchanged: All answers are the same as then, so that every number of the earlier verdict is what it was.
    """
    if unchanged or difference.low > difference.bound:
        return "kept"
    return "broken" if strict.high < 0 and difference.estimate < difference.bound else "open"


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The questions that both evaluations asked, as indices into each; and the answers that have changed."""

    old: VerdictScores
    new: VerdictScores
    then: tuple[int, ...]
    now: tuple[int, ...]

    @classmethod
    def of(cls, old: VerdictScores, new: VerdictScores) -> _Pairs:
        if old.metric != new.metric:
            raise Incomparable(f"the earlier verdict's metric is {old.metric.name} with other options or another one")
        if not (old.counted and new.counted):
            raise Incomparable("the judge did not count then, or does not count now")
        positions = {key: index for index, key in enumerate(old.questions)}
        shared = [(positions[key], index) for index, key in enumerate(new.questions) if key in positions]
        if len(shared) < 2:
            raise Incomparable("the earlier verdict was on other questions")
        pairs = cls(old, new, tuple(then for then, _ in shared), tuple(now for _, now in shared))
        if new.metric.name != JUDGE and pairs.rescored():
            raise Incomparable(f"the metric {new.metric.name} scores the same answer differently than then")
        return pairs

    @property
    def changed(self) -> int:
        """On how many questions the version's answer has changed."""
        return sum(then != now for then, now in self._answers("candidate"))

    @property
    def changed_pairs(self) -> int:
        """On how many questions the version's answer or the base's has changed."""
        both = zip(self._answers("candidate"), self._answers("base"), strict=True)
        return sum(version[0] != version[1] or base[0] != base[1] for version, base in both)

    def rescored(self) -> bool:
        """Whether an answer that is the same has another score: then the metric has changed, not the version."""
        then, now = _taken(self.old.candidate.scores, self.then), _taken(self.new.candidate.scores, self.now)
        return any(
            before == after and abs(earlier - today) > SAME
            for (before, after), earlier, today in zip(self._answers("candidate"), then, now, strict=True)
        )

    def difference(self, method: IntervalMethod, bound: float, *, over_base: bool) -> ArmDifference:
        """Today's scores minus the earlier ones; with ``over_base`` of the lead over the strongest base."""
        rows = []
        for label, scores, indices in ((NOW, self.new, self.now), (EARLIER, self.old, self.then)):
            values, noise = as_array(_taken(scores.candidate.scores, indices)), _noise(scores.candidate)
            if over_base:
                values = values - as_array(_taken(scores.base.scores, indices))
                noise = combined_noise([noise, _noise(scores.base)])
            rows.append((label, values, noise))
        units = None if self.new.units is None else _taken(self.new.units, self.now)
        binary = self.new.binary and not over_base
        return paired_difference(rows[0], rows[1], binary=binary, method=method, bound=bound, units=units)

    def _answers(self, arm: Literal["candidate", "base"]) -> list[tuple[str, str]]:
        old, new = (self.old.candidate, self.new.candidate) if arm == "candidate" else (self.old.base, self.new.base)
        return list(zip(_taken(old.answers, self.then), _taken(new.answers, self.now), strict=True))


def _score_check(difference: ArmDifference, strict: ArmDifference, changed: int) -> RevalidationCheck:
    state = score_state(difference, strict, unchanged=changed == 0)
    if changed == 0:
        return RevalidationCheck(
            name="score", state=state, sentence=f"All {difference.examples} answers are the same as then."
        )
    shown = strict if state == "broken" else difference
    points = verdict_text.points(abs(difference.estimate))
    direction = "better" if difference.estimate > 0 else "worse"
    than = "as good as" if points == "0" else f"{points} points {direction} than"
    interval = f"{100 * shown.confidence:.4g}% interval {verdict_text.interval_in_points(shown)}"
    sentence = (
        f"On the {difference.examples} questions that were asked then, it is {than} then ({interval}; answers changed: "
        f"{changed}). It may be at most {verdict_text.points(-difference.bound)} points worse."
    )
    return RevalidationCheck(name="score", state=state, sentence=sentence)


def _advantage_check(difference: ArmDifference, verdict: Verdict) -> RevalidationCheck:
    """The base may have changed with the engine, and the version's lead over it be gone though its answers are not.

    Broken only if the lead is both shown to have shrunk and shown to be gone: either alone happens by chance.
    """
    base = verdict.check("base")
    shrunk = difference.high < 0 and base is not None
    state: State = base.state if shrunk and base is not None else "kept"
    lead = (
        f"Its lead over the strongest base is {verdict_text.points(verdict.against_base.estimate)} points, and was "
        f"{verdict_text.points(verdict.against_base.estimate - difference.estimate)} then"
    )
    ends = {
        "kept": "; it still has one." if shrunk else "; it is not shown to have shrunk.",
        "open": "; it has shrunk, and it is not shown that any is left.",
        "broken": "; it has shrunk, and it is shown that none is left.",
    }
    return RevalidationCheck(name="advantage", state=state, sentence=lead + ends[state])


def _forgetting_check(
    then: SuiteScores | None, now: SuiteScores | None, forgetting: Forgetting | None, method: IntervalMethod
) -> list[RevalidationCheck]:
    """The general suite, if it ran then and now on the same items."""
    if then is None or now is None or forgetting is None or not now.comparable(then):
        return []
    state = now.state_since(then, method)
    if state == "kept":
        sentence = "It has not lost more of the general suite than it had then, or no more than allowed."
    else:
        sentence = f"{verdict_text.forgetting(forgetting)} Then it had not lost that much."
    return [RevalidationCheck(name="forgetting", state=state, sentence=sentence)]


def _sentence(word: VerdictWord, holds: bool | None, checks: Sequence[RevalidationCheck], pairs: _Pairs) -> str:
    """The result in words: its reasons are the checks that are not kept, or the first one if all are."""
    meaning = {
        True: "the earlier verdict holds",
        False: "the earlier verdict does not hold any more",
        None: "it is not shown whether the earlier verdict holds, which stays as it was",
    }[holds]
    state: State = "kept" if holds else "broken" if holds is False else "open"
    reasons = [check.sentence for check in checks if check.state == state]
    missing = len(pairs.new.questions) - len(pairs.then)
    note = f" {missing} questions were not asked then and are left out." if missing else ""
    text = " ".join(reasons[:1] if holds else reasons)
    return f"{verdict_text.VERDICT_WORDS[word]}: {meaning}. {text}{note}"


def _arm_scores(result: ArmResult, units: Units | None) -> RecordedArm:
    noise = noise_of(result, units)
    return RecordedArm(
        label=result.arm.label,
        scores=result.runs[0],
        answers=tuple(_digest(answer) for answer in result.answers),
        noise=noise.variance,
        degrees=noise.degrees,
    )


def _noise(arm: RecordedArm) -> RunNoise:
    return RunNoise(arm.noise, arm.degrees, 0.0)


def _taken(values: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [values[index] for index in indices]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS]
