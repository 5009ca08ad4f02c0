"""Pass, fail, or not enough evidence: the rule of EVALUATION.md over a comparison, and nothing that is not in it.

A pass needs every check kept. That is an intersection-union test: each check at its own level holds the whole at that
level, without a correction for there being several (R. L. Berger, Technometrics 24 (1982), 295-300).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import Field

from trainer.errors import EvaluationInvalid
from trainer.evaluate import wording
from trainer.evaluate.arms import Frozen
from trainer.evaluate.compare import Comparison
from trainer.evaluate.contrast import Difference, Mean, Method, contrast, difference, mean_of, noise_of, strongest
from trainer.evaluate.controls import Control
from trainer.evaluate.forgetting import Budget, Forgetting
from trainer.evaluate.statistics.noise import NO_RUNS

Word = Literal["pass", "fail", "not_enough_evidence"]
State = Literal["kept", "broken", "open"]
OPEN: Final[Mapping[str, str]] = {"state": "open"}
Name = Literal["examples", "base", "live", "form", "forgetting", "suites", "judge"]


class Rules(Frozen):
    """The operator's settings of a verdict."""

    min_examples: int = Field(30, ge=2)
    smallest_difference: float = Field(0.02, ge=0, lt=1)
    method: Method = Method()
    budget: Budget = Budget()


class Check(Frozen):
    """One of the things that a pass needs: kept, broken (shown not to be so), or open (neither is shown)."""

    name: Name
    state: State
    sentence: str


class Verdict(Frozen):
    """The word, the sentence, and every number behind them.

    ``base`` is the strongest of the base's arms; ``against_base``, ``against_live`` and ``against_form`` are the
    candidate's differences. ``detectable``: the smallest true difference from the base that this held-out would have
    shown; ``more``: examples more after which the open checks would be settled if what was seen is the truth, None
    where no number would do, 0 where none is open.
    """

    word: Word
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
    forgetting: Forgetting | None
    detectable: float | None
    more: int | None
    rules: Rules

    @property
    def passed(self) -> bool:
        """Whether the candidate may go live."""
        return self.word == "pass"

    def check(self, name: Name) -> Check | None:
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
        rules: The operator's settings.
        uncounted: Why the scores count for nothing (of a judge that nobody agrees with yet): whatever they show, the
            checks that are made of them are open. None: they count.

    Raises:
        EvaluationInvalid: There is no base or no control, a label names no arm, or a control is of other examples.
    """
    rules = rules or Rules()
    _complete(bases, form, len(comparison.questions))
    base = strongest(comparison, bases)
    against_base = difference(comparison, candidate, base, rules.method, bound=rules.smallest_difference)
    against_live = difference(comparison, candidate, live, rules.method) if live is not None else None
    against_form = tuple(_against(control, comparison, candidate, rules.method) for control in form)
    scored = _checks(against_base, against_live, against_form, rules)
    scored = scored if uncounted is None else _opened(scored)
    checks = (*scored, *_kept_up(forgetting, more_checks))
    # more examples do not make scores count
    word, more = _word(checks), _more(checks if uncounted is None else scored[:1], against_base, against_form, rules)
    labels = dict.fromkeys([candidate, *bases, *([] if live is None else [live])])
    return Verdict(
        word=word,
        sentence=_sentence(word, against_base, comparison, checks, more, None if word == "fail" else uncounted),
        checks=checks,
        metric=comparison.metric,
        candidate=candidate,
        base=base,
        live=live,
        examples=against_base.examples,
        means=tuple(mean_of(comparison.result(it), binary=comparison.binary, method=rules.method) for it in labels),
        against_base=against_base,
        against_live=against_live,
        against_form=against_form,
        form=tuple(form),
        forgetting=forgetting,
        detectable=against_base.detectable,
        more=more,
        rules=rules,
    )


def _sentence(
    word: Word,
    against_base: Difference,
    comparison: Comparison,
    checks: Sequence[Check],
    more: int | None,
    uncounted: str | None,
) -> str:
    if uncounted is not None:
        return wording.uncounted(uncounted)
    return wording.verdict(word, against_base, comparison, [(check.name, check.state) for check in checks], more)


def _opened(scored: Sequence[Check]) -> tuple[Check, ...]:
    """The checks as scores leave them that count for nothing: how many examples there are stands all the same."""
    return tuple(check if check.name == "examples" else check.model_copy(update=OPEN) for check in scored)


def _complete(bases: Sequence[str], form: Sequence[Control], count: int) -> None:
    if not bases or not form:
        raise EvaluationInvalid("a verdict needs the base and a control to compare with")
    if any(len(control.scores) != count for control in form):
        raise EvaluationInvalid(f"a control is not of the comparison's {count} examples")


def _checks(base: Difference, live: Difference | None, form: Sequence[Difference], rules: Rules) -> tuple[Check, ...]:
    enough = base.examples >= rules.min_examples
    return (
        _examples(base.examples, rules),
        _base(base, enough),
        *(() if live is None else (_live(live, enough),)),
        _form(form, enough),
    )


def _kept_up(forgetting: Forgetting | None, more: Sequence[Check]) -> tuple[Check, ...]:
    """What was forgotten, by the general suite and by others, and what a judge says."""
    if forgetting is None and any(check.name == "suites" for check in more):
        return tuple(more)
    return (_forgetting(forgetting), *more)


def _against(control: Control, comparison: Comparison, candidate: str, method: Method) -> Difference:
    result = comparison.result(candidate)
    return contrast(
        (candidate, result.scores, noise_of(result)),
        (control.kind, control.array, NO_RUNS),
        binary=comparison.binary and control.kind == "constant",
        method=method,
    )


def _word(checks: Sequence[Check]) -> Word:
    states = {check.state for check in checks}
    return "fail" if "broken" in states else "not_enough_evidence" if "open" in states else "pass"


def _examples(count: int, rules: Rules) -> Check:
    enough = count >= rules.min_examples
    return Check(
        name="examples", state="kept" if enough else "open", sentence=wording.examples(count, rules.min_examples)
    )


def _base(found: Difference, enough: bool) -> Check:
    state: State = "kept" if found.low > found.bound else "broken" if found.high <= found.bound and enough else "open"
    return Check(name="base", state=state, sentence=wording.against_base(found, state))


def _live(found: Difference, enough: bool) -> Check:
    """Only what is shown to be worse than `live` is kept from taking its place: equal is good enough."""
    state: State = "kept" if found.high >= 0 else "broken" if enough else "open"
    return Check(name="live", state=state, sentence=wording.against_live(found, state))


def _form(found: Sequence[Difference], enough: bool) -> Check:
    hardest = min(found, key=lambda one: one.low)
    broken = enough and any(one.high <= 0 for one in found)
    state: State = "kept" if hardest.low > 0 else "broken" if broken else "open"
    return Check(name="form", state=state, sentence=wording.against_form(hardest, state))


def _forgetting(found: Forgetting | None) -> Check:
    state: State = "open" if found is None else found.state
    return Check(name="forgetting", state=state, sentence=wording.forgetting(found))


def _more(checks: Sequence[Check], base: Difference, form: Sequence[Difference], rules: Rules) -> int | None:
    """Held-out examples more that would settle what held-out examples can settle."""
    needed: list[int | None] = []
    for check in checks:
        if check.state == "open" and check.name == "examples":
            needed.append(rules.min_examples)
        elif check.state == "open" and check.name == "base":
            needed.append(base.needed)
        elif check.state == "open" and check.name == "form":
            needed += [one.needed for one in form]
    known = [need for need in needed if need is not None]
    return None if len(known) < len(needed) else max([need - base.examples for need in known] + [0])
