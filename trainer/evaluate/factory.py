"""Builds an evaluation's suites and judge from the operator's settings, for a worker to pass to `run`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from trainer.config import Settings
from trainer.errors import SuiteUnavailable
from trainer.evaluate import endpoints
from trainer.evaluate.asking import CONCURRENCY, HttpAnswerer, OnCharge
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.judge import JUDGEMENTS, ModelJudge
from trainer.evaluate.likelihood import Scorer
from trainer.evaluate.pairs import AGREEMENT, JudgeAgreement
from trainer.evaluate.sandbox.sandbox import prove_sandbox
from trainer.evaluate.spec import EvaluationSpec, Suite
from trainer.evaluate.suites import data, harness, humaneval, measured

SUITE_ANSWERS: Final = "suite_answers.jsonl"
"""In an evaluation's folder: answers to the suites' questions."""
MAX_ANSWER_TOKENS: Final = 512
"""Limit for answers to GSM8K and HumanEval, in tokens: room for a few steps, or a function."""
CACHE_DIRECTORY: Final = "suites"


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker has: the gateway with the job's key, a scorer, the evaluation's folder and the settings.

    ``on_charge`` hears what a judge outside charges.
    """

    gateway: Endpoint
    scorer: Scorer
    folder: Path
    settings: Settings
    concurrency: int = CONCURRENCY
    on_charge: OnCharge | None = None


def suites_of(spec: EvaluationSpec, context: WorkerContext) -> dict[str, Suite]:
    """The suites that an evaluation names, except `general`, which `run` adds."""
    suite_context = measured.SuiteContext(
        scorer=context.scorer,
        answerer=HttpAnswerer(
            context.gateway,
            context.folder / SUITE_ANSWERS,
            max_tokens=MAX_ANSWER_TOKENS,
            required_filters=spec.required_filters,
            template_switches=spec.template_switches,
            concurrency=context.concurrency,
        ),
        sources=_data_sources(context.settings, context.folder),
        limit=context.settings.suites_limit,
        rules=spec.rules,
    )
    available: tuple[Suite, ...] = (
        measured.mmlu(suite_context),
        measured.gsm8k(suite_context),
        humaneval.HumanEval(suite_context, allowed=context.settings.sandbox == "on"),
    )
    return {suite.name: suite for suite in available if suite.name in spec.suites}


def judge_of(spec: EvaluationSpec, context: WorkerContext) -> ModelJudge | None:
    """The judge that an evaluation names, with its agreement with people from the folder; None if it names none.

    Raises:
        EndpointUnknown: The judge is no longer in the settings.
        SettingsError: The endpoint's key is missing.
    """
    if spec.judge is None:
        return None
    operator_endpoints = endpoints.read_endpoints(context.settings.endpoints)
    settings = operator_endpoints.judge(spec.judge)
    answerer = HttpAnswerer(
        context.gateway,
        context.folder / JUDGEMENTS,
        endpoints=operator_endpoints.reachable(),
        max_tokens=settings.max_tokens,
        concurrency=context.concurrency,
        on_charge=context.on_charge,
    )
    return ModelJudge(
        *(spec.judge, settings, answerer, context.folder),
        standing=_agreement(context.folder / AGREEMENT),
        method=spec.rules.method,
    )


def check_available(names: Sequence[str], settings: Settings) -> None:
    """Check that suites are available, before an evaluation is created. Blocks: run it in a thread.

    Raises:
        SuiteUnavailable: Data or a library is missing, or running code that models write is disabled.
        SandboxUnavailable: The sandbox does not work on this machine.
    """
    sources = _data_sources(settings, None)
    if {"mmlu", "gsm8k"} & set(names):
        harness.check_installed()
    if "gsm8k" in names and sources.hub is None:
        data.gsm8k(sources)
    if "humaneval" in names:
        if settings.sandbox != "on":
            raise SuiteUnavailable(humaneval.DISABLED)
        humaneval.problems()
        asyncio.run(prove_sandbox())


def _data_sources(settings: Settings, folder: Path | None) -> data.DataSources:
    # outside of the directories of jobs and evaluations, where unknown entries are deleted
    cache = None if folder is None else folder.parent.parent / CACHE_DIRECTORY
    return data.DataSources(settings.suites_dir, settings.suites_hub, cache)


def _agreement(path: Path) -> JudgeAgreement | None:
    try:
        return JudgeAgreement.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
