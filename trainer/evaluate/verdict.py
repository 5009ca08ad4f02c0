"""Pass, fail, or not enough evidence: the rule of EVALUATION.md, applied to a comparison.

A pass needs every check to be kept. That is an intersection-union test: with each check at its own level the whole has
that level, without a correction for multiple tests (R. L. Berger, Technometrics 24 (1982), 295-300).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import Field

from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.errors import EvaluationInvalid
from trainer.evaluate import verdict_text
from trainer.evaluate.answer_length import AnswerLength, answer_length
from trainer.evaluate.compare import Comparison
from trainer.evaluate.control_arms import ControlArm, always_same
from trainer.evaluate.forgetting import Budget, Forgetting
from trainer.evaluate.looks import look_confidence
from trainer.evaluate.metrics.choose import FREE_TEXT, OVERLAP
from trainer.evaluate.more_examples import Differences, more_examples
from trainer.evaluate.paired_difference import (
    NO_LEAN,
    IntervalMethod,
    Lean,
    arm_difference,
    mean_of,
    noise_of,
    paired_difference,
    scale_of,
    strongest,
)
from trainer.evaluate.second_measure import Likelihood, likelihood
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import as_array
from trainer.evaluate.suites.general import MIN_ITEMS
from trainer.runs.protocol import Frozen

VerdictWord = Literal["pass", "fail", "not_enough_evidence"]
State = Literal["kept", "broken", "open"]
RULE: Final = 6
"""The version of this rule, raised whenever a candidate may get a different verdict. Version 1 was recorded without a
number: no margin against `live`, only the constant and the permuted control, no second measure. Version 2 took all
examples for independent, and every look for the first. Version 3 did not see the looks of evaluations that ran at the
same time, nor those at other prompts on the same weights or at other arms. Version 4 counted filler as words of an
answer, and let a base lose whose answers were cut. Version 5 held the question's own similarity against answers that do
not repeat it, let pass what repeats it in other persons, or a training answer looked up by its question, and left open
whether a base lost of which many answers were cut, however far the candidate was ahead."""
LIVE_MARGIN: Final = 0.05
OVERLAP_LIVE_MARGIN: Final = 0.02
"""For overlap metrics, whose scores lie closer together: 5 points may be half of an adapter's lead over the base."""
SIMILARITY_LIVE_MARGIN: Final = 0.03
"""For `similarity`: the sample voices lead their base by 12 and 22 points."""
OPEN: Final[Mapping[str, str]] = {"state": "open"}
CheckName = Literal["examples", "base", "live", "form", "length", "second_measure", "forgetting", "suites", "judge"]


class Rules(Frozen):
    """The operator's settings for verdicts.

    ``smallest_difference``: the whole interval against the base must lie above it. ``live_margin``: how much worse than
    `live` a passing version may be: the whole interval against `live` must lie above minus this; None for the metric's
    own (see `margin`). ``most_examples``: as many are asked at most; None for no limit.
    ``forget_items``: how many multiple-choice items of the general suite are asked; None for all.
    """

    min_examples: int = Field(30, ge=2)
    smallest_difference: float = Field(0.02, ge=0, lt=1)
    live_margin: float | None = Field(None, ge=0, lt=1)
    most_examples: int | None = Field(None, ge=1)
    method: IntervalMethod = IntervalMethod()
    budget: Budget = Budget()
    forget_items: int | None = Field(None, ge=MIN_ITEMS)

    def margin(self, metric: str) -> float:
        """How much worse than `live` a passing version may be under this metric."""
        if self.live_margin is not None:
            return self.live_margin
        if metric in OVERLAP:
            return OVERLAP_LIVE_MARGIN
        return SIMILARITY_LIVE_MARGIN if metric in FREE_TEXT else LIVE_MARGIN

    def at_look(self, number: int) -> Rules:
        """These rules for the ``number``-th version judged on the same examples (`trainer.evaluate.looks`)."""
        confidence = look_confidence(self.method.confidence, number)
        return self.model_copy(update={"method": self.method.model_copy(update={"confidence": confidence})})


class Check(Frozen):
    """One condition of a pass: kept, broken (shown to be violated), or open (neither is shown)."""

    name: CheckName
    state: State
    sentence: str


class Verdict(Frozen):
    """The verdict, its sentence, and all numbers behind them.

    Attributes:
        base: The strongest base arm.
        against_base, against_live, against_form: The candidate's differences.
        likelihood: The second measure of free text, if it was taken.
        detectable: The smallest true difference from the base that this many examples would have shown.
        more: Additional examples that would settle the open checks if the estimates are true; None if no number would,
            0 if none is open.
        rules: With the confidence that this look has.
        rule: The version of the rule.
        look: The number of this version among those judged on the same examples.
    """

    word: VerdictWord
    sentence: str
    checks: tuple[Check, ...]
    metric: str
    candidate: str
    base: str
    live: str | None
    examples: int
    means: tuple[ArmMean, ...]
    against_base: ArmDifference
    against_live: ArmDifference | None
    against_form: tuple[ArmDifference, ...]
    form: tuple[ControlArm, ...]
    likelihood: Likelihood | None = None
    forgetting: Forgetting | None
    detectable: float | None
    more: int | None
    rules: Rules
    rule: int = 1
    look: int = 1

    @property
    def passed(self) -> bool:
        """Whether the candidate may go live."""
        return self.word == "pass"

    def check(self, name: CheckName) -> Check | None:
        """The check with this name; None if it does not apply."""
        return next((check for check in self.checks if check.name == name), None)


def decide(
    comparison: Comparison,
    *,
    candidate: str,
    bases: Sequence[str],
    live: str | None = None,
    form: Sequence[ControlArm],
    forgetting: Forgetting | None = None,
    more_checks: Sequence[Check] = (),
    preferred: ArmDifference | None = None,
    rules: Rules | None = None,
    look: int = 1,
    uncounted: str | None = None,
    lean: Lean = NO_LEAN,
) -> Verdict:
    """Judge a candidate.

    Args:
        comparison: Of the arms labelled ``candidate``, the one to judge, ``bases``, of which the strongest one counts,
            and ``live``, if a version is live now.
        form: The controls over the comparison's questions; the candidate must beat every one.
        forgetting, more_checks: The general suite's result; other suites' and a judge's checks. A pass needs a suite's.
        preferred: A counted judge's preference for the candidate over the strongest base, minus one half.
        rules, look: The operator's settings, with the confidence of this look: the number of this version among those
            judged on the same examples.
        uncounted: Why the scores do not count, so that their checks stay open; None if they count.
        lean: Of the judge whose votes are the scores, if they are: all intervals of scores allow for it.

    Raises:
        EvaluationInvalid: There is no base or no control, a label is unknown, or a control has other examples.
    """
    rules = rules or Rules()
    differences = _differences(comparison, candidate, bases, live, form, rules, lean)
    scored = _scored_checks(comparison, candidate, differences, preferred, rules, look)
    scored = scored if uncounted is None else _all_open(scored)
    checks = (*scored, *_retention_checks(forgetting, more_checks))
    # more examples would not make the scores count
    word, more = _word(checks), _more(checks, differences, rules) if uncounted is None else verdict_text.More(None)
    return Verdict(
        word=word,
        sentence=_sentence(word, differences.base, comparison, checks, more, None if word == "fail" else uncounted),
        checks=checks,
        metric=comparison.metric,
        candidate=candidate,
        base=differences.base.against,
        live=live,
        examples=differences.base.examples,
        means=_means(comparison, [candidate, *bases, *([] if live is None else [live])], rules.method),
        against_base=differences.base,
        against_live=differences.live,
        against_form=differences.form,
        form=tuple(form),
        likelihood=differences.likelihood,
        forgetting=forgetting,
        detectable=differences.base.detectable,
        more=more.count,
        rules=rules,
        rule=RULE,
        look=look,
    )


def _more(checks: Sequence[Check], differences: Differences, rules: Rules) -> verdict_text.More:
    """How many more examples would settle the open ones of these checks."""
    undecided = [name for name, state in _outcomes(checks, differences.base) if state == "open"]
    return verdict_text.More(*more_examples(undecided, differences, rules.min_examples), rules.most_examples)


def _outcomes(checks: Sequence[Check], base: ArmDifference) -> list[tuple[str, State]]:
    """The name and the state of each check; `base_cut` is a check on the base that its cut answers alone leave open."""
    shown = base.low > base.bound
    names = ("base_cut" if shown and (check.name, check.state) == ("base", "open") else check.name for check in checks)
    return [(name, check.state) for name, check in zip(names, checks, strict=True)]


def _means(comparison: Comparison, labels: Sequence[str], method: IntervalMethod) -> tuple[ArmMean, ...]:
    return tuple(
        mean_of(comparison.result(label), binary=comparison.binary, method=method, units=comparison.units)
        for label in dict.fromkeys(labels)
    )


def _differences(
    comparison: Comparison,
    candidate: str,
    bases: Sequence[str],
    live: str | None,
    form: Sequence[ControlArm],
    rules: Rules,
    lean: Lean,
) -> Differences:
    """The candidate's differences to all that it must beat. Raises EvaluationInvalid as `decide`."""
    _require_complete(bases, form, len(comparison.questions))
    method, margin = rules.method, rules.margin(comparison.metric)
    base = strongest(comparison, bases)
    return Differences(
        base=arm_difference(comparison, candidate, base, method, bound=rules.smallest_difference, lean=lean),
        live=None if live is None else arm_difference(comparison, candidate, live, method, bound=-margin, lean=lean),
        form=tuple(_against(control, comparison, candidate, method, lean) for control in form),
        likelihood=likelihood(comparison, candidate, bases, method),
    )


def _scored_checks(
    comparison: Comparison,
    candidate: str,
    differences: Differences,
    preferred: ArmDifference | None,
    rules: Rules,
    look: int,
) -> tuple[Check, ...]:
    """The checks that depend on scores and likelihoods."""
    base, live = differences.base, differences.live
    enough = base.examples >= rules.min_examples
    scored = (
        _examples(base.examples, len(comparison.questions), rules, look),
        _base(base, enough, comparison, rules.method),
        *(() if live is None else (not_worse(live, enough=enough),)),
        _form(differences.form, enough, same=always_same(comparison.questions, comparison.result(candidate).answers)),
    )
    if comparison.metric not in FREE_TEXT:
        return scored
    length = answer_length(comparison, candidate, rules.method)
    lengths = () if length is None else (_length(length, enough),)
    return *scored, *lengths, _second_measure(differences.likelihood, preferred, rules)


def not_worse(difference: ArmDifference, *, enough: bool) -> Check:
    """The check against `live`: a non-inferiority test; ``difference.bound`` is minus the margin.

    Not having been shown to be worse is not enough: with few examples nothing is.
    """
    state = above_bound(difference, enough)
    return Check(name="live", state=state, sentence=verdict_text.against_live(difference, state))


def _sentence(
    word: VerdictWord,
    against_base: ArmDifference,
    comparison: Comparison,
    checks: Sequence[Check],
    more: verdict_text.More,
    uncounted: str | None,
) -> str:
    if uncounted is not None:
        return verdict_text.uncounted_verdict(uncounted)
    return verdict_text.verdict(word, against_base, comparison, _outcomes(checks, against_base), more)


def _all_open(scored: Sequence[Check]) -> tuple[Check, ...]:
    """The checks if the scores do not count: all open except the number of examples."""
    return tuple(check if check.name == "examples" else check.model_copy(update=OPEN) for check in scored)


def _require_complete(bases: Sequence[str], form: Sequence[ControlArm], count: int) -> None:
    if not bases or not form:
        raise EvaluationInvalid("a verdict needs at least one base arm and one control")
    if any(len(control.scores) != count for control in form):
        raise EvaluationInvalid(f"a control does not have the comparison's {count} examples")


def _retention_checks(forgetting: Forgetting | None, more: Sequence[Check]) -> tuple[Check, ...]:
    """The checks for forgetting, of other suites and of a judge."""
    if forgetting is None and any(check.name == "suites" for check in more):
        return tuple(more)
    return (_forgetting(forgetting), *more)


def _against(
    control: ControlArm, comparison: Comparison, candidate: str, method: IntervalMethod, lean: Lean
) -> ArmDifference:
    result = comparison.result(candidate)
    scores = result.scores if control.candidate is None else as_array(control.candidate)
    return paired_difference(
        (candidate, scores, noise_of(result, comparison.units)),
        (control.kind, control.array, NO_RUNS),
        binary=comparison.binary and control.kind in ("constant", "question"),
        method=method,
        units=comparison.units,
        scale=scale_of(comparison.metric),
        lean=lean,
    )


def _word(checks: Sequence[Check]) -> VerdictWord:
    states = {check.state for check in checks}
    return "fail" if "broken" in states else "not_enough_evidence" if "open" in states else "pass"


def _examples(count: int, total: int, rules: Rules, look: int) -> Check:
    return Check(
        name="examples",
        state="kept" if count >= rules.min_examples else "open",
        sentence=" ".join(
            (
                verdict_text.examples(count, rules.min_examples, total),
                *verdict_text.earlier_looks(look, rules.method.confidence),
            )
        ),
    )


def above_bound(difference: ArmDifference, enough: bool) -> State:
    """Whether the whole interval lies above the bound, or none of it."""
    if difference.low > difference.bound:
        return "kept"
    return "broken" if difference.high <= difference.bound and enough else "open"


def _base(difference: ArmDifference, enough: bool, comparison: Comparison, method: IntervalMethod) -> Check:
    state, base = above_bound(difference, enough), comparison.result(difference.against)
    sentence = verdict_text.against_base(difference, state)
    if state == "kept" and comparison.binary and base.often_cut:  # what it was about to say may be right
        of, against, bound = difference.of, difference.against, difference.bound
        at_most = arm_difference(comparison, of, against, method, bound=bound, cut_is_right=True)
        state = "kept" if at_most.low > bound else "open"
        sentence = verdict_text.base_cut(difference, base.cut, len(base.answers), at_most, state)
    return Check(name="base", state=state, sentence=sentence)


def _form(differences: Sequence[ArmDifference], enough: bool, *, same: bool) -> Check:
    """``same``: see `always_same`; it proves that the questions are ignored without statistics."""
    if same:
        return Check(name="form", state="broken" if enough else "open", sentence=verdict_text.ALWAYS_SAME)
    hardest = min(differences, key=lambda difference: difference.low)
    broken = enough and any(difference.high <= 0 for difference in differences)
    state: State = "kept" if hardest.low > 0 else "broken" if broken else "open"
    return Check(name="form", state=state, sentence=verdict_text.against_form(hardest, state))


def _length(length: AnswerLength, enough: bool) -> Check:
    state = length.state(enough)
    return Check(name="length", state=state, sentence=length.sentence(state))


def _second_measure(likelihood: Likelihood | None, preferred: ArmDifference | None, rules: Rules) -> Check:
    """The second measure for free text. A counted judge that prefers the candidate is enough."""
    name: CheckName = "second_measure"
    if preferred is not None and preferred.examples >= rules.min_examples and preferred.low > 0:
        return Check(name=name, state="kept", sentence=verdict_text.judge_preference(preferred))
    if likelihood is None:
        return Check(name=name, state="open", sentence=verdict_text.NO_SECOND_MEASURE)
    enough, both = likelihood.examples >= rules.min_examples, (likelihood.over_base, likelihood.own_question)
    all_above = all(difference.low > 0 for difference in both)
    any_below = any(difference.high <= 0 for difference in both)
    state: State = "open" if not enough else "kept" if all_above else "broken" if any_below else "open"
    return Check(name=name, state=state, sentence=verdict_text.likelihood(*both, likelihood.left_out, state))


def _forgetting(result: Forgetting | None) -> Check:
    state: State = "open" if result is None else result.state
    return Check(name="forgetting", state=state, sentence=verdict_text.forgetting(result))
