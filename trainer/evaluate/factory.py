"""An evaluation's suites and its judge, from the operator's settings: what a worker plugs into `run`."""

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
from trainer.evaluate.asking import CONCURRENCY, HttpAnswerer
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
"""Of GSM8K and HumanEval, tokens: room for a few steps, or a function."""
CACHE_DIRECTORY: Final = "suites"


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Where a worker works: the gateway with the job's key, who measures likelihoods, and the evaluation's folder."""

    gateway: Endpoint
    scorer: Scorer
    folder: Path
    settings: Settings
    concurrency: int = CONCURRENCY


def suites_of(wanted: EvaluationSpec, bench: WorkerContext) -> dict[str, Suite]:
    """The suites on demand that an evaluation names; `general` is not among them."""
    inner = measured.SuiteContext(
        scorer=bench.scorer,
        answerer=HttpAnswerer(
            bench.gateway, bench.folder / SUITE_ANSWERS, max_tokens=MAX_ANSWER_TOKENS, concurrency=bench.concurrency
        ),
        places=_data_sources(bench.settings, bench.folder),
        limit=bench.settings.suites_limit,
        rules=wanted.rules,
    )
    there: tuple[Suite, ...] = (
        measured.mmlu(inner),
        measured.gsm8k(inner),
        humaneval.HumanEval(inner, allowed=bench.settings.sandbox == "on"),
    )
    return {suite.name: suite for suite in there if suite.name in wanted.suites}


def judge_of(wanted: EvaluationSpec, bench: WorkerContext) -> ModelJudge | None:
    """The judge that an evaluation names, with the standing that the trainer has left in the folder.

    Raises:
        EndpointUnknown: The settings do not name it any more.
        SettingsError: Its key cannot be found any more.
    """
    if wanted.judge is None:
        return None
    outside = endpoints.read_endpoints(bench.settings.endpoints)
    settings = outside.judge(wanted.judge)
    answerer = HttpAnswerer(
        bench.gateway,
        bench.folder / JUDGEMENTS,
        endpoints=outside.reachable(),
        max_tokens=settings.max_tokens,
        concurrency=bench.concurrency,
    )
    return ModelJudge(
        *(wanted.judge, settings, answerer, bench.folder),
        standing=_agreement(bench.folder / AGREEMENT),
        method=wanted.rules.method,
    )


def check_available(names: Sequence[str], settings: Settings) -> None:
    """Look, before an evaluation is taken on, whether its suites can be had. Blocks; not for an event loop's thread.

    Raises:
        SuiteUnavailable: Data or a library is missing, or running what models write is off.
        SandboxUnavailable: No sandbox holds here.
    """
    places = _data_sources(settings, None)
    if {"mmlu", "gsm8k"} & set(names):
        harness.check_installed()
    if "gsm8k" in names and places.hub is None:
        data.gsm8k(places)
    if "humaneval" in names:
        if settings.sandbox != "on":
            raise SuiteUnavailable(humaneval.DISABLED)
        humaneval.problems()
        asyncio.run(prove_sandbox())


def _data_sources(settings: Settings, folder: Path | None) -> data.DataSources:
    # beside the folders of jobs or evaluations, where whatever is nobody's is deleted
    cache = None if folder is None else folder.parent.parent / CACHE_DIRECTORY
    return data.DataSources(settings.suites_dir, settings.suites_hub, cache)


def _agreement(path: Path) -> JudgeAgreement | None:
    try:
        return JudgeAgreement.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
