"""lm-evaluation-harness over the gateway: its tasks and filters, our requests.

Its own HTTP models know nothing of the job's key, the background class or the file of answers; here a model of its
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
from trainer.evaluate.likelihood import Scorer, TextBatch, common_prefix

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
        raise SuiteUnavailable("lm-evaluation-harness is not installed here: it comes with the extra `suites`")


def task(name: str, template: str, rows: Mapping[str, Sequence[dict[str, Any]]], **config: Any) -> ConfigurableTask:
    """A task of the harness, by one of its own files, over rows that are already here: nothing is fetched.

    Args:
        name: As results name it.
        template: The file under its `tasks`. It is read without tags, so that it cannot run code.
        rows: Of each split.
        config: What is said otherwise than in the file.
    """
    import datasets
    import yaml
    from lm_eval.api.task import ConfigurableTask

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every data set that is not a hub's
    found = yaml.safe_load((files("lm_eval") / "tasks" / template).read_text("utf-8"))
    splits = {split: datasets.Dataset.from_list(list(each)) for split, each in rows.items()}
    for unwanted in ("tag", "dataset_name", "group"):
        found.pop(unwanted, None)
    given = {"task": name, "dataset_path": "local", "custom_dataset": lambda **_: splits}
    return ConfigurableTask(config={**found, **given, **config})


class LoopBridge:
    """Lets the harness's thread have coroutines done on the event loop, and ends it where they are called off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[Future[Any]] = set()
        self._over = False

    def wait_for(self, doing: Coroutine[Any, Any, T]) -> T:
        """Called on the thread; raises what `doing` raises, and CancelledError once it is over."""
        if self._over:
            doing.close()
            raise asyncio.CancelledError
        future = asyncio.run_coroutine_threadsafe(doing, self._loop)
        self._open.add(future)
        try:
            return future.result()
        finally:
            self._open.discard(future)

    def end(self) -> None:
        """Called on the loop."""
        self._over = True
        for future in list(self._open):
            future.cancel()


class ArmModel:
    """Answers the harness's requests as one arm does. Stop words are looked for here, in the whole answer."""

    def __init__(self, arm: Arm, suite: str, scorer: Scorer, answerer: Answerer, on_progress: OnProgress) -> None:
        self._arm, self._suite = arm, suite
        self._scorer, self._answerer, self._on_progress = scorer, answerer, on_progress

    async def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of (context, continuation): the continuation's log-probability; whether it is the greedy one is not known.

        All continuations of a context go into one request, with the context alone, which shows where they begin.
        """
        by_context: dict[str, list[str]] = {}
        for context, continuation in pairs:
            by_context.setdefault(context, []).append(continuation)
        passages = [
            TextBatch(self._id(context), (context, *(context + each for each in continuations)))
            for context, continuations in by_context.items()
        ]
        rows = await self._scorer.texts(self._arm, passages, self._on_progress)
        found: dict[tuple[str, str], float] = {}
        for (context, continuations), (stem, *wholes) in zip(by_context.items(), rows, strict=True):
            for continuation, whole in zip(continuations, wholes, strict=True):
                shared = common_prefix(stem.tokens, whole.tokens)
                found[context, continuation] = sum(whole.logprobs[shared:])
        return [(found[pair], False) for pair in pairs]

    async def texts(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        """Of (prompt, stop words): the answer up to the first stop word."""
        asks = [
            ArmRequest(
                self._arm,
                Question(id=self._id(prompt), turns=(ChatMessage(role="user", content=prompt),), reference=""),
            )
            for prompt, _ in wanted
        ]
        answers = await self._answerer.answer(asks, self._on_progress)
        return [_up_to(answer.text, until) for answer, (_, until) in zip(answers, wanted, strict=True)]

    def _id(self, text: str) -> str:
        return f"{self._suite}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _up_to(text: str, until: Sequence[str]) -> str:
    places = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(places)] if places else text


def _evaluate(
    asked: ArmModel, bridge: LoopBridge, tasks: Mapping[str, ConfigurableTask], metric: str, wanted: str
) -> Scores:
    """On the thread: run the harness; each task's scores in the order of its documents."""
    from lm_eval import evaluator
    from lm_eval.api.model import LM

    class Model(LM):  # type: ignore[misc,unused-ignore] # the harness has no types
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return bridge.wait_for(asked.likelihoods([request.args for request in requests]))

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise TypeError("no suite asks for rolling likelihoods")

        def generate_until(self, requests: list[Any]) -> list[str]:
            return bridge.wait_for(asked.texts([(each.args[0], each.args[1].get("until", ())) for each in requests]))

    found = evaluator.evaluate(lm=Model(), task_dict=dict(tasks), bootstrap_iters=0, log_samples=True)
    return {
        name: [
            float(each[metric])
            for each in sorted(samples, key=lambda each: int(each["doc_id"]))
            if each["filter"] == wanted
        ]
        for name, samples in found["samples"].items()
    }


Scores = dict[str, list[float]]


async def evaluate(asked: ArmModel, tasks: Mapping[str, ConfigurableTask], *, metric: str, filtered: str) -> Scores:
    """Put tasks to an arm; each task's scores, by its name, in the order of its rows.

    Args:
        asked: Whom.
        tasks: By name.
        metric: Which of their metrics.
        filtered: By which of their filters an answer is read.

    Raises:
        EvaluationError, GatewayUnreachable: As what asks.
    """
    bridge = LoopBridge(asyncio.get_running_loop())
    thread = asyncio.ensure_future(asyncio.to_thread(_evaluate, asked, bridge, tasks, metric, filtered))
    try:
        return await asyncio.shield(thread)
    finally:
        bridge.end()
        await asyncio.gather(thread, return_exceptions=True)  # nothing of it is left behind
