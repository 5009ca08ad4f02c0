"""Checks a request's structured outputs before it may go to the engine; see STRUCTURED.md."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final, Literal

from service.config import Settings
from service.errors import BadRequest, Unavailable
from service.structured import bounds
from service.structured.limits import CODE, TRIED, UNTRIED, TooComplex
from service.structured.parts import GrammarPart
from service.structured.process import MEMORY_MIB, Trial, TrialProcess, TrialUnavailable
from service.structured.projects import BUSY_RETRY_S, CPU_SHARE, Project, Projects
from service.structured.spec import Spec, specs_of

MAX_RESULTS: Final = 4096
MAX_COMPILED_BYTES: Final = 256 * 1024 * 1024
"""Bound on the cached grammars that passed: half of the engine's own cache (VLLM_XGRAMMAR_CACHE_MB), so that a grammar
cached here need not be compiled there again."""
REFUSAL_TTL_S: Final = 600.0
"""How long a refusal is cached, s; what was too slow on a busy machine may pass later."""
MAX_PEAK_FACTOR: Final = 12
"""How many times the allowed mean a single mask may take."""
MAX_CONCURRENT_TRIALS: Final = 8
TRIALS_WAITING_PER_PROJECT: Final = 32
REQUESTS_WAITING_PER_PROJECT: Final = 128
"""Maximum number of a project's requests that wait for a trial or a turn, including those that share a trial."""
REQUEST_FACTOR: Final = 4
"""How many times a project's mask budget per token one request's answers may take together; it then runs alone. So
`n` of 8 passes with a specification that takes half of the bound, which is assumed of untried ones."""
UNTRIED_COST_FRACTION: Final = 0.5
"""The fraction of the bound that an untried specification is assumed to take."""
MIN_TOKEN_MS: Final = 0.01
_PATH: Final = "\0path\0"
"""Placeholder for the field's name in a cached message."""
_LOG: Final = logging.getLogger("hatrack.structured")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of checking one specification; ``error`` is (message, code), None: it passes.

    ``token_ms`` is the CPU time of a token's mask, ``size`` the compiled grammar's bytes, ``until`` the end of a
    refusal on `time.monotonic`.
    """

    error: tuple[str, str] | None = None
    token_ms: float = MIN_TOKEN_MS
    size: int = 0
    until: float = math.inf


@dataclass(slots=True)
class CheckCounts:
    """For the metrics: outcomes of checks, and the CPU time of trials, s."""

    outcomes: dict[str, int] = field(default_factory=lambda: {"passed": 0, "refused": 0, "untried": 0})
    cpu_s: float = 0.0

    def note(self, outcome: str) -> None:
        self.outcomes[outcome] += 1


class StructuredOutputs:
    """Rejects specifications that would cost the engine too much.

    Args:
        compile_s: CPU time limit of a trial, s.
        token_ms: CPU time limit of the masks of one project's requests together, per token, ms.
        wait_s: How long a request may wait for its trial, or for its turn, s.
        trials: The trial process; None: only the static bounds apply.
        max_seqs: Sequences that the engine decodes at once.
    """

    def __init__(
        self,
        *,
        compile_s: float,
        token_ms: float,
        wait_s: float,
        trials: TrialProcess | None = None,
        max_seqs: int = 64,
    ) -> None:
        self._max_seqs = max_seqs
        self._compile_s = compile_s
        self._token_ms = token_ms
        self._wait_s = wait_s
        self._trials = trials
        self._at_once = asyncio.Semaphore(MAX_CONCURRENT_TRIALS)
        self._results: OrderedDict[bytes, CheckResult] = OrderedDict()
        self._compiled_bytes = 0
        self._shared: dict[tuple[str, bytes], _Shared] = {}
        self._projects = Projects()
        self.counts = CheckCounts()

    @classmethod
    def from_settings(cls, settings: Settings) -> StructuredOutputs:
        """From settings: with trials if the engine is known to use xgrammar and it is installed here."""
        configured = any("structured-outputs" in flag for flag in settings.engine_args)
        same_backend = not configured or any("xgrammar" in flag for flag in settings.engine_args)
        trials = None
        if find_spec("xgrammar") is not None and same_backend:
            trials = TrialProcess(settings.base_dir, settings.structured_compile_s)
        return cls(
            compile_s=settings.structured_compile_s,
            token_ms=settings.structured_token_ms,
            wait_s=settings.queue_timeout_s,
            trials=trials,
            max_seqs=settings.engine_max_seqs,
        )

    @property
    def trial_state(self) -> Literal["off", "ready", "down"]:
        """``off``: there is no trial process; ``ready``; ``down``: there should be one, but it cannot run now."""
        if self._trials is None:
            return "off"
        return "ready" if self._trials.ready else "down"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the trial process without waiting for it; end it on leaving."""
        first = None if self._trials is None else asyncio.create_task(self._warm(self._trials))
        try:
            yield
        finally:
            if first is not None and self._trials is not None:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                await self._trials.close()

    async def _warm(self, trials: TrialProcess) -> None:
        try:
            await trials.start()
        except TrialUnavailable:
            return  # already logged; the stricter static bounds apply

    def admitted(self, body: Mapping[str, Any], project: str) -> AbstractAsyncContextManager[None, bool | None]:
        """Admit a request if all its specifications pass. It counts as in the engine until this is left.

        Args:
            body: The request as the engine gets it.
            project: The project of the request.

        Raises:
            BadRequest: A specification is too complex, or not valid.
            RateLimited: Too many of the project's requests wait for a trial or for their turn.
            Unavailable: Its turn did not come in time.
        """
        specs = specs_of(body)
        return self._turn(specs, body, project) if specs else nullcontext()

    @asynccontextmanager
    async def _turn(self, specs: Sequence[Spec], body: Mapping[str, Any], project: str) -> AsyncIterator[None]:
        with self._projects.using(project) as state:
            try:
                async with asyncio.timeout(self._wait_s):
                    results = [await self._judge(spec, project, state) for spec in specs]
                    # a request decodes by one grammar, whatever its tools are; `n` answers have `n` masks
                    cost = self._cost(max(result.token_ms for result in results), body)
                    with state.waiting(REQUESTS_WAITING_PER_PROJECT):
                        await state.take_turn(cost, self._token_ms)
            except TimeoutError:
                raise Unavailable(
                    f"the structured output waited {self._wait_s:g} s for its turn (HATRACK_QUEUE_TIMEOUT_S)",
                    retry_after=BUSY_RETRY_S,
                    code="queue_timeout",
                ) from None
            try:
                yield
            finally:
                state.leave(cost)

    def _cost(self, token_ms: float, body: Mapping[str, Any]) -> float:
        """CPU time of a request's masks per engine step, ms.

        Raises:
            TooComplex: The request alone would take REQUEST_FACTOR times the project's budget.
        """
        prompts, answers = _sequences(body)
        cost = token_ms * min(prompts * answers, self._max_seqs)
        allowed = self._token_ms * REQUEST_FACTOR
        if cost <= allowed * (1 + 1e-9):
            return cost
        field = "n" if answers > 1 else "prompt"
        given = f"`n` is {answers}" + (f" for each of {prompts} prompts" if prompts > 1 else "")
        if answers == 1:
            given = f"`prompt` has {prompts} prompts"
        raise TooComplex(
            f"{given}, and the structured output takes {token_ms:.2g} ms of CPU time for each token of each answer: "
            f"{cost:.3g} ms in total; at most {allowed:g} ms are allowed "
            f"(HATRACK_STRUCTURED_TOKEN_MS × {REQUEST_FACTOR}). "
            f"Request at most {max(int(allowed / token_ms), 1)} answers at a time",
            field,
        )

    async def _judge(self, spec: Spec, project: str, state: Project) -> CheckResult:
        """Check one specification and return its result.

        Raises:
            HatrackError: It is rejected, or it cannot be tried now.
        """
        key = spec.key
        result = self._known(key)
        if result is None:
            with state.waiting(REQUESTS_WAITING_PER_PROJECT):
                result = await self._share(spec, (project, key))
        self.counts.note("passed" if result.error is None else "refused")
        if result.error is not None:
            message, code = result.error
            raise BadRequest(message.replace(_PATH, spec.path), param=spec.path[:200], code=code)
        return result

    def _known(self, key: bytes) -> CheckResult | None:
        result = self._results.get(key)
        if result is not None and result.until < time.monotonic():
            self._forget(key)
            return None
        if result is not None:
            self._results.move_to_end(key)
        return result

    async def _share(self, spec: Spec, key: tuple[str, bytes]) -> CheckResult:
        """Share one examination among a project's requests with the same specification; it is cancelled when the last
        of them has left."""
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(asyncio.create_task(self._examine_and_remember(spec, *key)))
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiters -= 1
            if not shared.waiters:
                del self._shared[key]
                shared.task.cancel()

    async def _examine_and_remember(self, spec: Spec, project: str, key: bytes) -> CheckResult:
        """Examine a specification and cache the result. The project's state is kept until the end, so that the trial's
        CPU time is charged even if the request has left."""
        anonymous = Spec(spec.kind, spec.value, _PATH)  # the next request may have it in another field
        cacheable = True
        with self._projects.using(project) as state:
            try:
                try:
                    result = await self._examine(anonymous, state)
                except TrialUnavailable as error:
                    self.counts.note("untried")
                    _LOG.warning(
                        "a structured output specification could not be tried; the stricter static bounds apply",
                        extra={"reason": str(error)},
                    )
                    cacheable = False
                    result = self._untried(anonymous)
            except BadRequest as error:
                result = CheckResult((error.message, error.code or CODE), until=time.monotonic() + REFUSAL_TTL_S)
        if cacheable:
            self._remember(key, result)
        return result

    def _untried(self, spec: Spec) -> CheckResult:
        bounds.check(spec, UNTRIED)
        return CheckResult(token_ms=self._token_ms * UNTRIED_COST_FRACTION)

    def _remember(self, key: bytes, result: CheckResult) -> None:
        self._forget(key)
        self._results[key] = result
        self._compiled_bytes += result.size
        while len(self._results) > MAX_RESULTS or self._compiled_bytes > MAX_COMPILED_BYTES:
            self._forget(next(iter(self._results)))

    def _forget(self, key: bytes) -> None:
        old = self._results.pop(key, None)
        if old is not None:
            self._compiled_bytes -= old.size

    async def _examine(self, spec: Spec, state: Project) -> CheckResult:
        """The static bound, then the trial.

        Raises:
            HatrackError: It is too much for the engine, or it cannot be tried now.
            TrialUnavailable: Nothing can be tried.
        """
        if self._trials is None:
            return self._untried(spec)
        parts = bounds.check(spec, TRIED)
        return self._read(await self._try(self._trials, spec, parts, state), spec.path)

    async def _try(self, trials: TrialProcess, spec: Spec, parts: list[GrammarPart], state: Project) -> Trial:
        cpu_s = 0.0
        with state.waiting_for_trial(TRIALS_WAITING_PER_PROJECT):
            async with state.trials:
                await asyncio.sleep(max(0.0, state.owed_s() - self._compile_s) / CPU_SHARE)
                async with self._at_once:
                    began = time.monotonic()
                    try:
                        trial = await trials.run(spec, parts)
                        cpu_s = trial.cpu_s
                    except asyncio.CancelledError:  # a cancelled trial is charged for the time it took
                        cpu_s = min(time.monotonic() - began, self._compile_s)
                        raise
                    finally:
                        state.charge(cpu_s)
                        self.counts.cpu_s += cpu_s
        return trial

    def _read(self, trial: Trial, path: str) -> CheckResult:
        if trial.outcome == "invalid":
            raise BadRequest(f"`{path}` cannot be compiled: {trial.reason}", param=path, code="invalid_grammar")
        if trial.outcome == "slow":
            raise TooComplex(
                f"`{path}` takes more than {self._compile_s:g} s of CPU time to compile or to decode a few tokens "
                "(HATRACK_STRUCTURED_COMPILE_S); shorten its repeats and lengths, or make its alternatives differ in "
                "their first characters",
                path,
            )
        if trial.outcome == "memory":
            raise TooComplex(
                f"`{path}` takes more memory to compile than the allowed {MEMORY_MIB} MiB; make it smaller", path
            )
        if trial.outcome != "ok":
            raise TooComplex(f"`{path}` makes the grammar compiler crash; nest it less deeply", path)
        if trial.token_ms > self._token_ms or trial.worst_ms > self._token_ms * MAX_PEAK_FACTOR:
            raise TooComplex(
                f"`{path}` takes {max(trial.token_ms, trial.worst_ms / MAX_PEAK_FACTOR):.1f} ms of CPU time for each "
                f"token; at most {self._token_ms:g} ms are allowed (HATRACK_STRUCTURED_TOKEN_MS). Make its bounded "
                "repeats and alternatives differ from what follows them, or use `maxLength` instead of a pattern",
                path,
            )
        return CheckResult(token_ms=max(trial.token_ms, MIN_TOKEN_MS), size=trial.size)


@dataclass(slots=True)
class _Shared:
    """An examination shared by several requests."""

    task: asyncio.Task[CheckResult]
    waiters: int = 0


def _sequences(body: Mapping[str, Any]) -> tuple[int, int]:
    """The number of prompts in a request, and of answers to each; every answer has its own mask."""
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts, max(int(body.get("n") or 1), int(body.get("best_of") or 1))
