"""Pass, fail, or not enough evidence: the rule of EVALUATION.md over a comparison, and nothing that is not in it.

A pass needs every check kept. That is an intersection-union test: each check at its own level holds the whole at that
level, without a correction for there being several (R. L. Berger, Technometrics 24 (1982), 295-300).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from trainer.errors import EvaluationInvalid
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Frozen
from trainer.evaluate.compare import Comparison
from trainer.evaluate.control_arms import Control
from trainer.evaluate.forgetting import Budget, Forgetting
from trainer.evaluate.metrics.choose import OVERLAP
from trainer.evaluate.paired_difference import (
    Difference,
    Mean,
    Method,
    arm_difference,
    mean_of,
    noise_of,
    paired_difference,
    strongest,
)
from trainer.evaluate.second_measure import Likelihood, likelihood
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import as_array

VerdictWord = Literal["pass", "fail", "not_enough_evidence"]
State = Literal["kept", "broken", "open"]
RULE: Final = 2
"""The version of this rule; higher where a candidate may get another verdict than before. 1 is what had no number: no
margin against `live`, no controls but the constant and the permuted one, no second measure."""
LIVE_MARGIN: Final = 0.05
OVERLAP_LIVE_MARGIN: Final = 0.02
"""Where words in common count scores lie closer together: 5 points may be half of what a voice is ahead of its base."""
OPEN: Final[Mapping[str, str]] = {"state": "open"}
CheckName = Literal["examples", "base", "live", "form", "second_measure", "forgetting", "suites", "judge"]


class Rules(Frozen):
    """The operator's settings of a verdict.

    ``smallest_difference``: the whole interval against the base has to lie above it. ``live_margin``: the whole
    interval against `live` has to lie above minus this: how much worse than `live` a pass may truly be; None:
    LIVE_MARGIN, or OVERLAP_LIVE_MARGIN (see `margin`).
    """

    min_examples: int = Field(30, ge=2)
    smallest_difference: float = Field(0.02, ge=0, lt=1)
    live_margin: float | None = Field(None, ge=0, lt=1)
    method: Method = Method()
    budget: Budget = Budget()

    def margin(self, metric: str) -> float:
        """How much worse than `live` a pass may truly be under this metric."""
        if self.live_margin is not None:
            return self.live_margin
        return OVERLAP_LIVE_MARGIN if metric in OVERLAP else LIVE_MARGIN


class Check(Frozen):
    """One of the things that a pass needs: kept, broken (shown not to be so), or open (neither is shown)."""

    name: CheckName
    state: State
    sentence: str


class Verdict(Frozen):
    """The word, the sentence, and every number behind them.

    ``base`` is the strongest of the base's arms; ``against_base``, ``against_live`` and ``against_form`` are the
    candidate's differences. ``likelihood``: the second measure of free text, where it was taken. ``detectable``: the
    smallest true difference from the base that this held-out would have shown; ``more``: examples more after which the
    open checks would be settled if what was seen is the truth, None where no number would do, 0 where none is open.
    ``rule``: the version of the rule that it was reached by.
    """

    word: VerdictWord
    sentence: str
    checks: tuple[Check, ...]
    metric: str
    candidate: str
    base: str
    live: str | None
    examples: int
    means: tuple[Mean, ...]
    against_base: Difference
    against_live: Difference | None
    against_form: tuple[Difference, ...]
    form: tuple[Control, ...]
    likelihood: Likelihood | None = None
    forgetting: Forgetting | None
    detectable: float | None
    more: int | None
    rules: Rules
    rule: int = 1

    @property
    def passed(self) -> bool:
        """Whether the candidate may go live."""
        return self.word == "pass"

    def check(self, name: CheckName) -> Check | None:
        """A check by its name; None where it does not apply."""
        return next((check for check in self.checks if check.name == name), None)


def decide(
    comparison: Comparison,
    *,
    candidate: str,
    bases: Sequence[str],
    live: str | None = None,
    form: Sequence[Control],
    forgetting: Forgetting | None = None,
    more_checks: Sequence[Check] = (),
    preferred: Difference | None = None,
    rules: Rules | None = None,
    uncounted: str | None = None,
) -> Verdict:
    """Judge a candidate.

    Args:
        comparison: With an arm for the candidate, each of the bases, and live where it is given.
        candidate: The label of the arm that may go live.
        bases: Labels of the base's arms; the strongest one counts.
        live: Label of the arm that serves now, if one does.
        form: The controls over the comparison's questions; every one has to be beaten.
        forgetting: The general suite's result; without it or another suite's check no pass is possible.
        more_checks: What other suites and a judge that counts have found.
        preferred: How much a judge that counts prefers the candidate to the strongest base, over even.
        rules: The operator's settings.
        uncounted: Why the scores count for nothing and their checks stay open, whatever they show. None: they count.

    Raises:
        EvaluationInvalid: There is no base or no control, a label names no arm, or a control is of other examples.
    """
    rules = rules or Rules()
    _require_complete(bases, form, len(comparison.questions))
    seen = _differences(comparison, candidate, bases, live, form, rules)
    scored = _scored_checks(comparison, candidate, seen, preferred, rules)
    scored = scored if uncounted is None else _all_open(scored)
    checks = (*scored, *_retention_checks(forgetting, more_checks))
    word = _word(checks)
    # more examples do not make scores count
    more = _more(checks if uncounted is None else scored[:1], seen, rules)
    labels = dict.fromkeys([candidate, *bases, *([] if live is None else [live])])
    return Verdict(
        word=word,
        sentence=_sentence(word, seen.base, comparison, checks, more, None if word == "fail" else uncounted),
        checks=checks,
        metric=comparison.metric,
        candidate=candidate,
        base=seen.base.against,
        live=live,
        examples=seen.base.examples,
        means=tuple(mean_of(comparison.result(it), binary=comparison.binary, method=rules.method) for it in labels),
        against_base=seen.base,
        against_live=seen.live,
        against_form=seen.form,
        form=tuple(form),
        likelihood=seen.likelihood,
        forgetting=forgetting,
        detectable=seen.base.detectable,
        more=more,
        rules=rules,
        rule=RULE,
    )


@dataclass(frozen=True, slots=True)
class _Differences:
    """The candidate against the strongest base, `live` and the controls, and the second measure."""

    base: Difference
    live: Difference | None
    form: tuple[Difference, ...]
    likelihood: Likelihood | None


def _differences(
    comparison: Comparison,
    candidate: str,
    bases: Sequence[str],
    live: str | None,
    form: Sequence[Control],
    rules: Rules,
) -> _Differences:
    method, margin = rules.method, rules.margin(comparison.metric)
    base = strongest(comparison, bases)
    return _Differences(
        base=arm_difference(comparison, candidate, base, method, bound=rules.smallest_difference),
        live=None if live is None else arm_difference(comparison, candidate, live, method, bound=-margin),
        form=tuple(_against(control, comparison, candidate, method) for control in form),
        likelihood=likelihood(comparison, candidate, bases, method),
    )


def _scored_checks(
    comparison: Comparison, candidate: str, seen: _Differences, preferred: Difference | None, rules: Rules
) -> tuple[Check, ...]:
    """The checks that are made of scores and likelihoods."""
    scored = _checks(seen.base, seen.live, seen.form, rules, same=_always_same(comparison, candidate))
    if comparison.metric not in OVERLAP:
        return scored
    return *scored, _second_measure(seen.likelihood, preferred, rules)


def not_worse(found: Difference, *, enough: bool) -> Check:
    """The check against `live`, a test of non-inferiority; ``found.bound`` is minus the margin.

    That nothing was shown to be worse would not do: on few examples nothing ever is.
    """
    state: State = "kept" if found.low > found.bound else "broken" if found.high <= found.bound and enough else "open"
    return Check(name="live", state=state, sentence=verdict_text.against_live(found, state))


def _sentence(
    word: VerdictWord,
    against_base: Difference,
    comparison: Comparison,
    checks: Sequence[Check],
    more: int | None,
    uncounted: str | None,
) -> str:
    if uncounted is not None:
        return verdict_text.uncounted_verdict(uncounted)
    return verdict_text.verdict(word, against_base, comparison, [(check.name, check.state) for check in checks], more)


def _all_open(scored: Sequence[Check]) -> tuple[Check, ...]:
    """The checks as scores leave them that count for nothing: how many examples there are stands all the same."""
    return tuple(check if check.name == "examples" else check.model_copy(update=OPEN) for check in scored)


def _require_complete(bases: Sequence[str], form: Sequence[Control], count: int) -> None:
    if not bases or not form:
        raise EvaluationInvalid("a verdict needs the base and a control to compare with")
    if any(len(control.scores) != count for control in form):
        raise EvaluationInvalid(f"a control is not of the comparison's {count} examples")


def _checks(
    base: Difference, live: Difference | None, form: Sequence[Difference], rules: Rules, *, same: bool
) -> tuple[Check, ...]:
    enough = base.examples >= rules.min_examples
    return (
        _examples(base.examples, rules),
        _base(base, enough),
        *(() if live is None else (not_worse(live, enough=enough),)),
        _form(form, enough, same=same),
    )


def _retention_checks(forgetting: Forgetting | None, more: Sequence[Check]) -> tuple[Check, ...]:
    """What was forgotten, by the general suite and by others, and what a judge says."""
    if forgetting is None and any(check.name == "suites" for check in more):
        return tuple(more)
    return (_forgetting(forgetting), *more)


def _against(control: Control, comparison: Comparison, candidate: str, method: Method) -> Difference:
    result = comparison.result(candidate)
    scores = result.scores if control.candidate is None else as_array(control.candidate)
    return paired_difference(
        (candidate, scores, noise_of(result)),
        (control.kind, control.array, NO_RUNS),
        binary=comparison.binary and control.kind in ("constant", "question"),
        method=method,
    )


def _word(checks: Sequence[Check]) -> VerdictWord:
    states = {check.state for check in checks}
    return "fail" if "broken" in states else "not_enough_evidence" if "open" in states else "pass"


def _examples(count: int, rules: Rules) -> Check:
    enough = count >= rules.min_examples
    return Check(
        name="examples", state="kept" if enough else "open", sentence=verdict_text.examples(count, rules.min_examples)
    )


def _base(found: Difference, enough: bool) -> Check:
    state: State = "kept" if found.low > found.bound else "broken" if found.high <= found.bound and enough else "open"
    return Check(name="base", state=state, sentence=verdict_text.against_base(found, state))


def _always_same(comparison: Comparison, candidate: str) -> bool:
    """Whether the candidate gave the same answer to questions whose authors gave different ones."""
    references = {question.reference for question in comparison.questions}
    return len(references) > 1 and len(set(comparison.result(candidate).answers)) == 1


def _form(found: Sequence[Difference], enough: bool, *, same: bool) -> Check:
    """``same``: see `_always_same`. That ignores the question, and needs no statistics."""
    if same:
        return Check(name="form", state="broken" if enough else "open", sentence=verdict_text.ALWAYS_SAME)
    hardest = min(found, key=lambda one: one.low)
    broken = enough and any(one.high <= 0 for one in found)
    state: State = "kept" if hardest.low > 0 else "broken" if broken else "open"
    return Check(name="form", state=state, sentence=verdict_text.against_form(hardest, state))


def _second_measure(found: Likelihood | None, preferred: Difference | None, rules: Rules) -> Check:
    """What free text needs besides words in common. A judge that counts and prefers the candidate is enough."""
    name: CheckName = "second_measure"
    if preferred is not None and preferred.examples >= rules.min_examples and preferred.low > 0:
        return Check(name=name, state="kept", sentence=verdict_text.judge_preference(preferred))
    if found is None:
        return Check(name=name, state="open", sentence=verdict_text.NO_SECOND_MEASURE)
    enough, both = found.examples >= rules.min_examples, (found.over_base, found.own_question)
    kept, broken = all(each.low > 0 for each in both), any(each.high <= 0 for each in both)
    state: State = "open" if not enough else "kept" if kept else "broken" if broken else "open"
    return Check(name=name, state=state, sentence=verdict_text.likelihood(*both, found.left_out, state))


def _forgetting(found: Forgetting | None) -> Check:
    state: State = "open" if found is None else found.state
    return Check(name="forgetting", state=state, sentence=verdict_text.forgetting(found))


def _more(checks: Sequence[Check], seen: _Differences, rules: Rules) -> int | None:
    """Held-out examples more that would settle what held-out examples can settle.

    None where they would not settle it, or nothing that is open; 0 where nothing is open.
    """
    needed: list[int | None] = []
    for check in checks:
        if check.state == "open":
            needed += _needed(check.name, seen, rules)
    if not needed:
        return None if any(check.state == "open" for check in checks) else 0
    known = [need for need in needed if need is not None]
    return None if len(known) < len(needed) else max(1, max(known) - seen.base.examples)


def _needed(name: CheckName, seen: _Differences, rules: Rules) -> list[int | None]:
    """Held-out examples in all after which each part of an open check is settled; none where they do not settle it."""
    if name == "examples":
        return [rules.min_examples]
    if name == "base":
        return [seen.base.needed]
    if name == "live" and seen.live is not None:
        return [seen.live.needed]
    if name == "form":
        return [control.needed for control in seen.form]
    if name == "second_measure" and seen.likelihood is not None:
        # where not all references were scored more of them would not be, either
        whole = seen.likelihood.over_base.examples == seen.base.examples
        return [each.needed if whole else None for each in (seen.likelihood.over_base, seen.likelihood.own_question)]
    return []
