"""Running one evaluation: ask the arms, run the suites, ask the judge, decide.

The end of a fine-tuning job, `POST /v1/evaluations` and a revalidation all use this. The answerer and the scorer store
their results, so that a repeated run only asks what is missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from adapters.protocol.reports import ArmDifference, ReportJudge
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import Answerer
from trainer.evaluate.compare import Comparison, OnStage, compare
from trainer.evaluate.control_arms import (
    ControlArm,
    constant_and_permuted,
    copied_question,
    copied_where_repeated,
    nearest_answers,
    reassigned_answers,
    reassigned_beyond_question,
)
from trainer.evaluate.general_suite import BaseMeasurements, GeneralSuite
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.looks import Look, look_setup, looks_of, missing_examples, position
from trainer.evaluate.metrics.base import Metric
from trainer.evaluate.metrics.choose import FREE_TEXT, JUDGE, OVERLAP
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.metrics.similarity import Similarity
from trainer.evaluate.paired_difference import NO_LEAN, Lean, allow_for_lean, paired_difference, strongest
from trainer.evaluate.preference import score_by_preference
from trainer.evaluate.spec import GENERAL, EvaluationSpec, Judge, Outcome, Suite, SuiteResult
from trainer.evaluate.statistics.noise import NO_RUNS
from trainer.evaluate.statistics.paired import as_array
from trainer.evaluate.verdict import Check, Rules, State, Verdict, decide
from trainer.evaluate.verdict_text import missing_examples as missing_sentence
from trainer.evaluate.voice_scores import VoiceScores, voice_scores

_LOG = logging.getLogger("hatrack.trainer.evaluate")

RecordLooks = Callable[[Sequence[Look]], Awaitable[Sequence[Look]]]


async def run(
    spec: EvaluationSpec,
    held_out: Sequence[Question],
    *,
    answerer: Answerer,
    undrawn: Sequence[Question] = (),
    scorer: Scorer | None = None,
    suites: Mapping[str, Suite] | None = None,
    judge: Judge | None = None,
    record_looks: RecordLooks | None = None,
    base_measurements: BaseMeasurements | None = None,
    trained_on: Sequence[Question] = (),
    on_stage: OnStage | None = None,
) -> Outcome:
    """Run an evaluation.

    Args:
        spec: The specification.
        held_out: The questions, with unique ids.
        answerer: Asks the arms.
        undrawn: The held-out file's other questions, if ``held_out`` is a sample of it, or if the gateway leaves out
            what a version was trained on.
        scorer: Measures likelihoods; without one there are none, and no general suite.
        suites: The available suites, by name; `general` is added if there is a scorer.
        judge: The judge that `spec.judge` names.
        record_looks: Records the looks of this evaluation, and returns the project's up to them, oldest first; without
            it, every version is the first.
        base_measurements: The base's measurements of the general suite that are kept; None: it is measured.
        trained_on: The candidate's training examples, as far as they are known: for free text.
        on_stage: Called with the progress; may raise to stop.

    Raises:
        EvaluationInvalid: A suite, a metric or the judge is unavailable, or there are no examples.
        ArmVersionChanged: The gateway served two versions under one arm.
        EvaluationError, GatewayUnreachable: As the answerer and the scorer.
    """
    primary = spec.metric.primary()
    requested = _requested_suites(spec, suites or {}, scorer, base_measurements)
    if spec.judge is not None and judge is None:
        raise EvaluationInvalid(f"no judge named {spec.judge!r} is available")
    if spec.candidate is not None:
        suite_arms(spec, suites=bool(requested))  # before anything is asked
    comparison = await _compare(spec, held_out, primary, answerer, scorer, on_stage)
    taken = looks_of(comparison, spec.candidate, spec.live, _setup(spec, primary, comparison), spec.prompted)
    looks = taken if record_looks is None else await record_looks(taken)
    if spec.candidate is None:
        return Outcome(comparison=comparison)
    before, after = suite_arms(spec, suites=bool(requested))
    results = [await suite.run(before, after, on_stage) for suite in requested]
    authored = [example.reference for example in trained_on]
    voice = await _voice(comparison, before.label, authored, spec.rules.method.seed)
    comparison = comparison if voice is None else voice.added_to(comparison)
    comparison, form, judged = await _scored(comparison, spec, primary, trained_on, judge, on_stage)
    asked = taken[0].version, comparison.questions, taken[0].setup
    look, missing = position(looks, *asked), missing_examples(looks, *asked, undrawn)
    verdict = _decide(spec, comparison, form, results, judged, look, missing)
    heard = None if voice is None else voice.voice
    return Outcome(comparison=comparison, verdict=verdict, suites=tuple(results), judged=judged, voice=heard)


async def _voice(comparison: Comparison, base: str, authored: Sequence[str], seed: int) -> VoiceScores | None:
    """How much the arms' answers sound like their author; None where that cannot be said."""
    try:
        return await asyncio.to_thread(voice_scores, comparison, base, authored, seed=seed)
    except Exception:  # it describes and decides nothing: no fault in it may cost the verdict
        _LOG.exception("the voice of the answers could not be measured")
        return None


async def _compare(
    spec: EvaluationSpec,
    held_out: Sequence[Question],
    primary: Metric,
    answerer: Answerer,
    scorer: Scorer | None,
    on_stage: OnStage | None,
) -> Comparison:
    """Ask the arms as the specification and its primary metric want it."""
    return await compare(
        spec.arms,
        held_out,
        primary,
        answerer=answerer,
        rivals=spec.bases if spec.candidate is not None and primary.name != JUDGE else (),
        secondary=[spec.metric.named(name) for name in spec.beside or spec.metric.usually_beside()],
        scorer=scorer if primary.name in (*FREE_TEXT, JUDGE) else None,  # elsewhere likelihoods decide nothing
        scored=spec.scored,
        elsewhere=spec.candidate if primary.name in FREE_TEXT else None,
        seed=spec.rules.method.seed,
        repeats=1 if primary.name == JUDGE else spec.repeats,  # a judge sees the first run alone
        repeated=spec.repeated,
        on_stage=on_stage,
    )


async def _scored(
    comparison: Comparison,
    spec: EvaluationSpec,
    primary: Metric,
    trained_on: Sequence[Question],
    judge: Judge | None,
    on_stage: OnStage | None,
) -> tuple[Comparison, Sequence[ControlArm], ReportJudge | None]:
    """The scores that decide, the controls under the same metric, and the judge's result, if there is a judge."""
    if primary.name == JUDGE and judge is not None:
        preferred = await score_by_preference(comparison, spec, judge, on_stage)
        return preferred.comparison, preferred.form, preferred.judged
    form = await asyncio.to_thread(_controls, comparison, spec, primary, trained_on)
    if judge is None or spec.candidate is None:
        return comparison, form, None
    best = strongest(comparison, comparison.finished(spec.bases))
    return comparison, form, await judge.judge(comparison, spec.candidate, best, on_stage)


def _controls(
    comparison: Comparison, spec: EvaluationSpec, primary: Metric, trained_on: Sequence[Question]
) -> tuple[ControlArm, ...]:
    """The controls under the primary metric."""
    references = [question.reference for question in comparison.questions]
    seed, units, answers = spec.rules.method.seed, comparison.units, comparison.result(spec.candidate or "").answers
    beyond_question = nearest = None
    if primary.name in FREE_TEXT:
        overlap = primary if primary.name in OVERLAP else RougeL()
        beyond_question = reassigned_beyond_question(answers, comparison.questions, overlap, seed=seed, units=units)
    if isinstance(primary, Similarity) and trained_on:
        nearest = nearest_answers(comparison.questions, trained_on, primary)
    # the other two guard against what only has the question's subject
    guarded = beyond_question is not None and nearest is not None
    copied = copied_where_repeated(answers, comparison.questions, primary) if guarded else None
    return (
        *constant_and_permuted(references, primary, trained_answers=spec.taught, seed=seed, units=units),
        reassigned_answers(answers, references, primary, seed=seed, units=units),
        copied or copied_question(comparison.questions, primary),
        *(control for control in (beyond_question, nearest) if control is not None),
    )


def _setup(spec: EvaluationSpec, primary: Metric, comparison: Comparison) -> str:
    """What identifies how the examples were asked and scored."""
    judge = spec.judge if primary.name == JUDGE else None
    return look_setup(comparison.questions, spec.metric.model_dump(), spec.max_tokens, judge)


def _requested_suites(
    spec: EvaluationSpec, suites: Mapping[str, Suite], scorer: Scorer | None, base: BaseMeasurements | None
) -> list[Suite]:
    available = dict(suites)
    if scorer is not None:
        available.setdefault(GENERAL, GeneralSuite(scorer, spec.rules, base))
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
    missing: int,
) -> Verdict:
    """The verdict on the candidate, which `spec` must have. ``missing``: see `missing_examples`."""
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
        bases=comparison.finished(spec.bases),
        live=spec.live,
        form=form,
        forgetting=next((result.forgetting for result in results if result.forgetting is not None), None),
        more_checks=checks,
        preferred=preferred,
        rules=rules,
        look=look,
        uncounted=missing_sentence(missing) if missing else uncounted,
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
        units=comparison.units_without(judged.refused),
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
