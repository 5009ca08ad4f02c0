"""lm-evaluation-harness over the gateway: its tasks and filters, with our requests.

The harness's own HTTP models do not support the job's key, background priority or stored answers. So a model with its
interface asks through the evaluation's `Scorer` and `Answerer`. The harness is synchronous and runs on a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, TypeVar

from trainer.errors import SuiteUnavailable
from trainer.evaluate.arms import Arm, ChatMessage, Question
from trainer.evaluate.asking import Answerer, ArmRequest
from trainer.evaluate.likelihood import ContinuationBatch, Scorer

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

T = TypeVar("T")
OnProgress = Callable[[int, int], None]
MMLU: Final = "mmlu/default/_default_template_yaml"
GSM8K: Final = "gsm8k/gsm8k-cot.yaml"


def check_installed() -> None:
    """Raises SuiteUnavailable: the harness is not installed."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise SuiteUnavailable("lm-evaluation-harness is not installed; install the extra `suites`")


def task(name: str, template: str, rows: Mapping[str, Sequence[dict[str, Any]]], **config: Any) -> ConfigurableTask:
    """A task of the harness, from one of its own files, over local rows: nothing is downloaded.

    Args:
        name: The task's name in the results.
        template: The file in the harness's `tasks`, loaded without YAML tags, so that it cannot run code.
        rows: By split.
        config: Overrides of the file's settings.
    """
    import datasets
    import yaml
    from lm_eval.api.task import ConfigurableTask

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every data set that is not from a hub
    settings_of_task = yaml.safe_load((files("lm_eval") / "tasks" / template).read_text("utf-8"))
    splits = {split: datasets.Dataset.from_list(list(split_rows)) for split, split_rows in rows.items()}
    for unwanted in ("tag", "dataset_name", "group"):
        settings_of_task.pop(unwanted, None)
    overrides = {"task": name, "dataset_path": "local", "custom_dataset": lambda **_: splits}
    return ConfigurableTask(config={**settings_of_task, **overrides, **config})


class LoopBridge:
    """Runs coroutines of the harness's thread on the event loop, and cancels them when the evaluation is cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[Future[Any]] = set()
        self._over = False

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Called on the thread. Raises what the coroutine raises, and CancelledError after `end`."""
        if self._over:
            coroutine.close()
            raise asyncio.CancelledError
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._open.add(future)
        try:
            return future.result()
        finally:
            self._open.discard(future)

    def end(self) -> None:
        """Called on the loop: cancel what is running and refuse further calls."""
        self._over = True
        for future in list(self._open):
            future.cancel()


class ArmModel:
    """Answers the harness's requests with one arm. Stop words are applied here, to the whole answer."""

    def __init__(self, arm: Arm, suite: str, scorer: Scorer, answerer: Answerer, on_progress: OnProgress) -> None:
        self._arm, self._suite = arm, suite
        self._scorer, self._answerer, self._on_progress = scorer, answerer, on_progress

    async def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability, and False for "is greedy" (unknown)."""
        by_context: dict[str, list[str]] = {}
        for context, continuation in pairs:
            by_context.setdefault(context, []).append(continuation)
        batches = [
            ContinuationBatch(self._id(context), context, tuple(continuations))
            for context, continuations in by_context.items()
        ]
        rows = await self._scorer.continuations(self._arm, batches, self._on_progress)
        logprob_of: dict[tuple[str, str], float] = {}
        for (context, continuations), scored in zip(by_context.items(), rows, strict=True):
            for continuation, row in zip(continuations, scored, strict=True):
                logprob_of[context, continuation] = sum(row.logprobs)
        return [(logprob_of[pair], False) for pair in pairs]

    async def texts(self, prompts: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        """For each (prompt, stop words): the answer up to the first stop word."""
        requests = [
            ArmRequest(
                self._arm,
                Question(id=self._id(prompt), turns=(ChatMessage(role="user", content=prompt),), reference=""),
            )
            for prompt, _ in prompts
        ]
        answers = await self._answerer.answer(requests, self._on_progress)
        return [_up_to(answer.text, until) for answer, (_, until) in zip(answers, prompts, strict=True)]

    def _id(self, text: str) -> str:
        return f"{self._suite}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _up_to(text: str, until: Sequence[str]) -> str:
    positions = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(positions)] if positions else text


def _evaluate(
    arm_model: ArmModel, bridge: LoopBridge, tasks: Mapping[str, ConfigurableTask], metric: str, filter_name: str
) -> Scores:
    """Run the harness, on the thread. Returns each task's scores in the order of its documents."""
    from lm_eval import evaluator
    from lm_eval.api.model import LM

    class Model(LM):  # type: ignore[misc,unused-ignore] # the harness has no types
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return bridge.wait_for(arm_model.likelihoods([request.args for request in requests]))

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise TypeError("rolling log-likelihoods are not supported")

        def generate_until(self, requests: list[Any]) -> list[str]:
            return bridge.wait_for(
                arm_model.texts([(sample.args[0], sample.args[1].get("until", ())) for sample in requests])
            )

    results = evaluator.evaluate(lm=Model(), task_dict=dict(tasks), bootstrap_iters=0, log_samples=True)
    return {
        name: [
            float(sample[metric])
            for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))
            if sample["filter"] == filter_name
        ]
        for name, samples in results["samples"].items()
    }


Scores = dict[str, list[float]]


async def evaluate(
    arm_model: ArmModel, tasks: Mapping[str, ConfigurableTask], *, metric: str, filter_name: str
) -> Scores:
    """Run tasks on an arm. Returns each task's scores by name, in the order of its rows.

    Args:
        arm_model: The arm as the harness's model.
        tasks: By name.
        metric: The tasks' metric to return.
        filter_name: The tasks' filter that extracts the answer.

    Raises:
        EvaluationError, GatewayUnreachable: As the scorer and the answerer.
    """
    bridge = LoopBridge(asyncio.get_running_loop())
    thread = asyncio.ensure_future(asyncio.to_thread(_evaluate, arm_model, bridge, tasks, metric, filter_name))
    try:
        return await asyncio.shield(thread)
    finally:
        bridge.end()
        await asyncio.gather(thread, return_exceptions=True)  # wait for the thread to end
