"""Running one evaluation: ask the arms, run the suites, ask the judge, decide.

The end of a fine-tuning job, `POST /v1/evaluations` and a revalidation all use this. The answerer and the scorer store
their results, so that a repeated run only asks what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.protocol.reports import ArmDifference, ReportJudge
from trainer.errors import EvaluationInvalid
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import Answerer
from trainer.evaluate.compare import Comparison, OnStage, compare
from trainer.evaluate.control_arms import (
    ControlArm,
    constant_and_permuted,
    copied_question,
    reassigned_answers,
    reassigned_beyond_question,
)
from trainer.evaluate.forgetting import Forgetting, SuitePart, compare_measurements
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.looks import Look, position
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.metrics.choose import FREE_TEXT, JUDGE, OVERLAP
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.paired_difference import NO_LEAN, Lean, allow_for_lean, paired_difference, strongest
from trainer.evaluate.preference import score_by_preference
from trainer.evaluate.spec import GENERAL, EvaluationSpec, Judge, Outcome, Suite, SuiteResult
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import as_array
from trainer.evaluate.suites.general import SuiteMeasurement, general_suite, measure
from trainer.evaluate.verdict import Check, Rules, State, Verdict, decide


class GeneralSuite:
    """The general suite of this package, as a `Suite`.

    Args:
        scorer: Measures the log-probabilities.
        rules: With the budget, and the number of items.
    """

    name = GENERAL

    def __init__(self, scorer: Scorer, rules: Rules) -> None:
        self._scorer = scorer
        self._rules = rules

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        """See `Suite`."""
        items, budget = general_suite().limited(self._rules.forget_items), self._rules.budget

        async def measure_arm(arm: Arm, *, shuffled: bool) -> SuiteMeasurement:
            def on_progress(done: int, total: int) -> None:
                if on_stage is not None:
                    on_stage(f"general suite, {arm.label}", done, total)

            return await measure(arm, items, self._scorer, on_progress, shuffled=shuffled)

        base = await measure_arm(before, shuffled=budget.perplexity is None)
        candidate = await measure_arm(after, shuffled=False)
        forgetting = compare_measurements(items, base, candidate, budget, self._rules.method)
        return SuiteResult(
            name=self.name,
            kind="budget",
            state=forgetting.state,
            silent=all(part.state == "silent" for part in _accuracies(forgetting)),
            sentence=verdict_text.forgetting(forgetting),
            numbers={
                name: {"before": part.base, "after": part.candidate}
                for name, part in (
                    ("accuracy", forgetting.accuracy),
                    ("chat", forgetting.chat),
                    ("perplexity", forgetting.perplexity),
                )
                if part is not None
            },
            forgetting=forgetting,
        )


def _accuracies(forgetting: Forgetting) -> list[SuitePart]:
    return [part for part in (forgetting.accuracy, forgetting.chat) if part is not None]


async def run(
    spec: EvaluationSpec,
    held_out: Sequence[Question],
    *,
    answerer: Answerer,
    scorer: Scorer | None = None,
    suites: Mapping[str, Suite] | None = None,
    judge: Judge | None = None,
    looks: Sequence[Look] = (),
    on_stage: OnStage | None = None,
) -> Outcome:
    """Run an evaluation.

    Args:
        spec: The specification.
        held_out: The questions, with unique ids.
        answerer: Asks the arms.
        scorer: Measures likelihoods; without one there are none, and no general suite.
        suites: The available suites, by name; `general` is added if there is a scorer.
        judge: The judge that `spec.judge` names.
        looks: The project's earlier looks at held-out examples, oldest first.
        on_stage: Called with the progress; may raise to stop.

    Raises:
        EvaluationInvalid: A suite, a metric or the judge is unavailable, or there are no examples.
        ArmVersionChanged: The gateway served two versions under one arm.
        EvaluationError, GatewayUnreachable: As the answerer and the scorer.
    """
    primary = spec.metric.primary()
    requested = _requested_suites(spec, suites or {}, scorer)
    if spec.judge is not None and judge is None:
        raise EvaluationInvalid(f"no judge named {spec.judge!r} is available")
    if spec.candidate is not None:
        suite_arms(spec, suites=bool(requested))  # before anything is asked
    comparison = await compare(
        spec.arms,
        held_out,
        primary,
        answerer=answerer,
        secondary=[spec.metric.named(name) for name in spec.beside or spec.metric.usually_beside()],
        scorer=scorer,
        scored=spec.scored,
        elsewhere=spec.candidate if primary.name in FREE_TEXT else None,
        seed=spec.rules.method.seed,
        repeats=spec.repeats,
        repeated=spec.repeated,
        on_stage=on_stage,
    )
    if spec.candidate is None:
        return Outcome(comparison=comparison)
    before, after = suite_arms(spec, suites=bool(requested))
    results = [await suite.run(before, after, on_stage) for suite in requested]
    comparison, form, judged = await _scored(comparison, spec, primary, judge, on_stage)
    look = position(looks, comparison.result(spec.candidate).looked_at, comparison.questions)
    verdict = _decide(spec, comparison, form, results, judged, look)
    return Outcome(comparison=comparison, verdict=verdict, suites=tuple(results), judged=judged)


async def _scored(
    comparison: Comparison, spec: EvaluationSpec, primary: Metric, judge: Judge | None, on_stage: OnStage | None
) -> tuple[Comparison, Sequence[ControlArm], ReportJudge | None]:
    """The scores that decide, the controls under the same metric, and the judge's result, if there is a judge."""
    if primary.name == JUDGE and judge is not None:
        preferred = await score_by_preference(comparison, spec, judge, on_stage)
        return preferred.comparison, preferred.form, preferred.judged
    references = [question.reference for question in comparison.questions]
    seed, answers = spec.rules.method.seed, comparison.result(spec.candidate or "").answers
    form: tuple[ControlArm, ...] = (
        *constant_and_permuted(references, primary, trained_answers=spec.taught, seed=seed, units=comparison.units),
        reassigned_answers(answers, references, primary, seed=seed, units=comparison.units),
        copied_question(comparison.questions, primary),
    )
    if primary.name in FREE_TEXT:
        overlap = primary if primary.name in OVERLAP else RougeL()
        beyond_question = reassigned_beyond_question(answers, comparison.questions, overlap, seed=seed)
        form = form if beyond_question is None else (*form, beyond_question)
    if judge is None or spec.candidate is None:
        return comparison, form, None
    best = strongest(comparison, spec.bases)
    return comparison, form, await judge.judge(comparison, spec.candidate, best, on_stage)


def _requested_suites(spec: EvaluationSpec, suites: Mapping[str, Suite], scorer: Scorer | None) -> list[Suite]:
    available: dict[str, Suite] = dict(suites)
    if scorer is not None:
        available.setdefault(GENERAL, GeneralSuite(scorer, spec.rules))
    names = list(dict.fromkeys(spec.suites))
    unknown = [name for name in names if name not in available]
    if unknown:
        raise EvaluationInvalid(f"no suite named {unknown[0]!r} is available; known: {', '.join(sorted(available))}")
    return [available[name] for name in names]


def suite_arms(spec: EvaluationSpec, *, suites: bool) -> tuple[Arm, Arm]:
    """The arms that suites run on: the first base at the gateway, and the candidate, which `spec` must have.

    Raises:
        EvaluationInvalid: ``suites`` is true and one of the two is at an outside endpoint.
    """
    bases, candidate = [spec.arm(label) for label in spec.bases], spec.arm(spec.candidate or "")
    at_gateway = [arm for arm in bases if arm.endpoint is None]
    if suites and (not at_gateway or candidate.endpoint is not None):
        raise EvaluationInvalid(
            "`suites` run on the candidate and a base through the gateway: with `suites`, neither may be at an outside "
            "endpoint"
        )
    return (at_gateway or bases)[0], candidate


def _decide(
    spec: EvaluationSpec,
    comparison: Comparison,
    form: Sequence[ControlArm],
    results: Sequence[SuiteResult],
    judged: ReportJudge | None,
    look: int,
) -> Verdict:
    """The verdict on the candidate, which `spec` must have."""
    rules = spec.rules.at_look(look)
    checks, decides = [*_suite_checks(results)], comparison.metric == JUDGE
    uncounted = judged.sentence if decides and judged is not None and not judged.counted else None
    if judged is not None and (judged.missed or uncounted is not None):
        # the judge's veto stays open: otherwise taking its endpoint away would turn a failure into a pass
        checks.append(Check(name="judge", state="open", sentence=judged.sentence))
    preferred, lean = None, NO_LEAN if judged is None else _lean_of(judged)
    if judged is not None and judged.counted and not judged.missed and not decides:
        preference = _preference_over_base(judged, spec, comparison, rules)
        preferred = allow_for_lean(preference, lean)
        checks.append(_judge_check(judged, preference, preferred, rules))
    return decide(
        comparison,
        candidate=spec.candidate or "",
        bases=spec.bases,
        live=spec.live,
        form=form,
        forgetting=next((result.forgetting for result in results if result.forgetting is not None), None),
        more_checks=checks,
        preferred=preferred,
        rules=rules,
        look=look,
        uncounted=uncounted,
        lean=lean if decides else NO_LEAN,
    )


def _suite_checks(results: Sequence[SuiteResult]) -> list[Check]:
    """One check for all suites with a budget except the general one, which has its own check.

    The check stays open if every measured suite is silent.
    """
    measured = [result for result in results if result.kind == "budget"]
    counted = [result for result in measured if result.forgetting is None]
    if not counted:
        return []
    states = {result.state for result in counted}
    state: State = "broken" if "broken" in states else "open" if "open" in states else "kept"
    if state == "kept" and len(counted) == len(measured) and all(result.silent for result in counted):
        state = "open"
    sentence = " ".join(f"{result.name}: {result.sentence}" for result in counted)
    return [Check(name="suites", state=state, sentence=sentence)]


def _preference_over_base(
    judged: ReportJudge, spec: EvaluationSpec, comparison: Comparison, rules: Rules
) -> ArmDifference:
    """How much a judge prefers the candidate to the strongest base, minus one half."""
    scores = as_array(judged.scores)
    return paired_difference(
        (spec.candidate or "", scores, NO_RUNS),
        ("even", as_array([0.5] * len(scores)), NO_RUNS),
        binary=False,
        method=rules.method,
        units=comparison.units if len(scores) == len(comparison.questions) else None,
    )


def _lean_of(judged: ReportJudge) -> Lean:
    """The interval of the judge's lean; NO_LEAN if it is not recorded."""
    return NO_LEAN if judged.lean_low is None or judged.lean_high is None else (judged.lean_low, judged.lean_high)


def _judge_check(judged: ReportJudge, preference: ArmDifference, preferred: ArmDifference, rules: Rules) -> Check:
    """A judge that agrees with people has a veto: the check is broken if it is shown to prefer the base.

    It is open, neither a pass nor a fail, if the judge prefers the base by no more than its lean could explain.

    Args:
        judged: The judge's result.
        preference: How much it prefers the candidate.
        preferred: The same with its lean allowed for.
        rules: The operator's settings.
    """
    if preference.high >= 0:
        return Check(name="judge", state="kept", sentence=judged.sentence)
    if preferred.high >= 0:
        explained = " It prefers the base by no more than its possible lean towards the base explains."
        return Check(name="judge", state="open", sentence=judged.sentence + explained)
    enough = preference.examples >= rules.min_examples
    return Check(name="judge", state="broken" if enough else "open", sentence=judged.sentence)
