"""One evaluation from the first question to the verdict: ask, put the suites, let a judge look, decide.

A fine-tuning job's end, `POST /v1/evaluations` and a revalidation all come through here. Whatever was answered is kept
by the answerer and the scorer, so that an evaluation that is run again asks only for what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.errors import EvaluationInvalid
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import Answerer
from trainer.evaluate.compare import Comparison, OnStage, compare
from trainer.evaluate.control_arms import (
    Control,
    constant_and_permuted,
    copied_question,
    reassigned_answers,
    reassigned_beyond_question,
)
from trainer.evaluate.forgetting import SuiteMeasurement, compare_measurements, general_suite, measure
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.metrics.choose import JUDGE, OVERLAP
from trainer.evaluate.paired_difference import Difference, paired_difference, strongest
from trainer.evaluate.preference import score_by_preference
from trainer.evaluate.spec import GENERAL, EvaluationSpec, Judge, JudgeResult, Outcome, Suite, SuiteResult
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import as_array
from trainer.evaluate.verdict import Check, Rules, State, Verdict, decide


class GeneralSuite:
    """The suite of this package, as one of the suites.

    Args:
        scorer: Whose log-probabilities decide.
        rules: With the budget.
    """

    name = GENERAL

    def __init__(self, scorer: Scorer, rules: Rules) -> None:
        self._scorer = scorer
        self._rules = rules

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """See `Suite`."""
        items = general_suite()

        async def measured(arm: Arm) -> SuiteMeasurement:
            def told(done: int, total: int) -> None:
                if on_stage is not None:
                    on_stage(f"general suite, {arm.label}", done, total)

            return await measure(arm, items, self._scorer, told)

        one, other = await measured(before), await measured(after)
        found = compare_measurements(items, one, other, self._rules.budget, self._rules.method)
        return SuiteResult(
            name=self.name,
            kind="budget",
            state=found.state,
            silent=found.accuracy.state == "silent",
            sentence=verdict_text.forgetting(found),
            numbers={
                "accuracy": {"before": found.accuracy.base, "after": found.accuracy.candidate},
                "perplexity": {"before": found.perplexity.base, "after": found.perplexity.candidate},
            },
            forgetting=found,
        )


async def run(
    spec: EvaluationSpec,
    held_out: Sequence[Question],
    *,
    answerer: Answerer,
    scorer: Scorer | None = None,
    suites: Mapping[str, Suite] | None = None,
    judge: Judge | None = None,
    on_stage: OnStage | None = None,
) -> Outcome:
    """Do an evaluation.

    Args:
        spec: What is wanted.
        held_out: The questions, with ids of their own.
        answerer: Who asks.
        scorer: Who measures likelihoods; without one there are none, and no general suite.
        suites: The suites that can be had, by name; `general` is there by itself where there is a scorer.
        judge: The one that `spec.judge` names.
        on_stage: Hears of the progress; may raise to end it.

    Raises:
        EvaluationInvalid: A suite, a metric or the judge is not to be had, or there are no examples.
        ArmMoved: The gateway served two versions under one arm.
        EvaluationError, GatewayUnreachable: As the answerer and the scorer.
    """
    primary = spec.metric.primary()
    wanted = _requested_suites(spec, suites or {}, scorer)
    if spec.judge is not None and judge is None:
        raise EvaluationInvalid(f"there is no judge {spec.judge!r}")
    if spec.candidate is not None:
        suite_arms(spec, suites=bool(wanted))  # before anything is asked
    comparison = await compare(
        spec.arms,
        held_out,
        primary,
        answerer=answerer,
        beside=[spec.metric.named(name) for name in spec.beside or spec.metric.usually_beside()],
        scorer=scorer,
        scored=spec.scored,
        elsewhere=spec.candidate if primary.name in OVERLAP else None,
        seed=spec.rules.method.seed,
        repeats=spec.repeats,
        repeated=spec.repeated,
        on_stage=on_stage,
    )
    if spec.candidate is None:
        return Outcome(comparison=comparison)
    before, after = suite_arms(spec, suites=bool(wanted))
    results = [await suite.run(before, after, on_stage) for suite in wanted]
    comparison, form, judged = await _scored(comparison, spec, primary, judge, on_stage)
    verdict = _decide(spec, comparison, form, results, judged)
    return Outcome(comparison=comparison, verdict=verdict, suites=tuple(results), judged=judged)


async def _scored(
    comparison: Comparison, spec: EvaluationSpec, primary: Metric, judge: Judge | None, on_stage: OnStage | None
) -> tuple[Comparison, Sequence[Control], JudgeResult | None]:
    """The scores that decide, the controls under the same metric, and what the judge says, if there is one."""
    if primary.name == JUDGE and judge is not None:
        preferred = await score_by_preference(comparison, spec, judge, on_stage)
        return preferred.comparison, preferred.form, preferred.judged
    references = [question.reference for question in comparison.questions]
    seed, mine = spec.rules.method.seed, comparison.result(spec.candidate or "").answers
    form: tuple[Control, ...] = (
        *constant_and_permuted(references, primary, taught=spec.taught, seed=seed),
        reassigned_answers(mine, references, primary, seed=seed),
        copied_question(comparison.questions, primary),
    )
    if primary.name in OVERLAP:
        beyond_question = reassigned_beyond_question(mine, comparison.questions, primary, seed=seed)
        form = form if beyond_question is None else (*form, beyond_question)
    if judge is None or spec.candidate is None:
        return comparison, form, None
    best = strongest(comparison, spec.bases)
    return comparison, form, await judge.judge(comparison, spec.candidate, best, on_stage)


def _requested_suites(spec: EvaluationSpec, suites: Mapping[str, Suite], scorer: Scorer | None) -> list[Suite]:
    there: dict[str, Suite] = dict(suites)
    if scorer is not None:
        there.setdefault(GENERAL, GeneralSuite(scorer, spec.rules))
    names = list(dict.fromkeys(spec.suites))
    unknown = [name for name in names if name not in there]
    if unknown:
        raise EvaluationInvalid(f"there is no suite {unknown[0]!r} here; there are: {', '.join(sorted(there))}")
    return [there[name] for name in names]


def suite_arms(spec: EvaluationSpec, *, suites: bool) -> tuple[Arm, Arm]:
    """The first of the bases at the gateway, and the candidate, of a `spec` that has one: what suites are put to.

    Raises:
        EvaluationInvalid: There are ``suites``, and one of the two is at an outside endpoint.
    """
    bases, after = [spec.arm(label) for label in spec.bases], spec.arm(spec.candidate or "")
    here = [arm for arm in bases if arm.endpoint is None]
    if suites and (not here or after.endpoint is not None):
        raise EvaluationInvalid(
            "suites are put to the candidate and to the base before it, through the gateway: neither may be at an "
            "outside endpoint where `suites` names any"
        )
    return (here or bases)[0], after


def _decide(
    spec: EvaluationSpec,
    comparison: Comparison,
    form: Sequence[Control],
    results: Sequence[SuiteResult],
    judged: JudgeResult | None,
) -> Verdict:
    """The verdict on the candidate; `spec` has one."""
    checks, decides = [*_suite_checks(results)], comparison.metric == JUDGE
    uncounted = judged.sentence if decides and judged is not None and not judged.counted else None
    if judged is not None and (judged.missed or uncounted is not None):
        # its veto may not be lost with it: somebody who takes the endpoint away would make a pass of a failure
        checks.append(Check(name="judge", state="open", sentence=judged.sentence))
    preferred = None
    if judged is not None and judged.counted and not judged.missed and not decides:
        preferred = _preference_over_base(judged, spec)
        checks.append(_judge_check(judged, preferred, spec.rules))
    return decide(
        comparison,
        candidate=spec.candidate or "",
        bases=spec.bases,
        live=spec.live,
        form=form,
        forgetting=next((result.forgetting for result in results if result.forgetting is not None), None),
        more_checks=checks,
        preferred=preferred,
        rules=spec.rules,
        uncounted=uncounted,
    )


def _suite_checks(results: Sequence[SuiteResult]) -> list[Check]:
    """One check for all suites with a budget but the general one, which has a check of its own.

    Where all that was measured is silent nothing was shown to be kept.
    """
    measured = [each for each in results if each.kind == "budget"]
    counted = [each for each in measured if each.forgetting is None]
    if not counted:
        return []
    states = {each.state for each in counted}
    state: State = "broken" if "broken" in states else "open" if "open" in states else "kept"
    if state == "kept" and len(counted) == len(measured) and all(each.silent for each in counted):
        state = "open"
    sentence = " ".join(f"{each.name}: {each.sentence}" for each in counted)
    return [Check(name="suites", state=state, sentence=sentence)]


def _preference_over_base(judged: JudgeResult, spec: EvaluationSpec) -> Difference:
    """How much a judge prefers the candidate to the strongest base, over even."""
    scores = as_array(judged.scores)
    return paired_difference(
        (spec.candidate or "", scores, NO_RUNS),
        ("even", as_array([0.5] * len(scores)), NO_RUNS),
        binary=False,
        method=spec.rules.method,
    )


def _judge_check(judged: JudgeResult, found: Difference, rules: Rules) -> Check:
    """A judge that agrees with people has a veto: broken where it is shown to prefer the base."""
    enough = found.examples >= rules.min_examples
    state: State = "kept" if found.high >= 0 else "broken" if enough else "open"
    return Check(name="judge", state=state, sentence=judged.sentence)
