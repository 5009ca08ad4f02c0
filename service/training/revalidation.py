"""Revalidation of versions: repeats the evaluation that produced a version's latest verdict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson

from adapters.protocol.requests import MAX_METADATA
from service.access.audit import SYSTEM_ID, Actor
from service.access.caller import Caller, Scope
from service.errors import BadGateway, HatrackError, Timeout, TrainerUnavailable
from service.registry.audit_notes import system_actor
from service.registry.verdicts import RevalidationCandidate, Verdicts
from service.training.client import TrainerClient
from service.training.forward import read_bounded
from service.training.service import Answer

EVALUATIONS: Final = "/v1/evaluations"
METADATA_KEY: Final = "revalidates"
"""Key in an evaluation's metadata whose value is the version that it revalidates."""
MAX_AT_ONCE: Final = 100
"""Maximum number of evaluations created by one request."""
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
PAGE: Final = 100
MAX_PAGES: Final = 20
FIRST_S: Final = 60.0
AGAIN_S: Final = 300.0
POLL_S: Final = 10.0
IDENTITY_HEADERS: Final = ("x-hatrack-project", "x-hatrack-key-id", "x-request-id")
UNAVAILABLE: Final = (TrainerUnavailable, BadGateway, Timeout)
"""Errors of the trainer, not of one version: the next version would fail in the same way."""
_LOG = logging.getLogger("hatrack.training")


class EvaluationCreator(Protocol):
    """Creates evaluations."""

    async def create(
        self, caller: Caller, body: dict[str, Any], headers: dict[str, str], *, actor: Actor, version: str | None = None
    ) -> Answer:
        """Create an evaluation; a revalidation of the ``name@number`` in ``version`` if that is given."""


class Revalidations:
    """Revalidates versions, with at most one evaluation of each at a time.

    Args:
        verdicts: The versions' verdicts.
        evaluations: Creates evaluations.
        client: The trainer's client, to look up running evaluations.
    """

    def __init__(self, verdicts: Verdicts, evaluations: EvaluationCreator, client: TrainerClient) -> None:
        self._verdicts = verdicts
        self._evaluations = evaluations
        self._client = client

    async def revalidate(
        self, caller: Caller, name: str, number: str, headers: Mapping[str, str], *, actor: Actor
    ) -> Answer:
        """Revalidate a version; returns the new evaluation, or the one in progress.

        Raises:
            NotFound: The version or its held-out file does not exist.
            Conflict: The version cannot serve now, has no verdict, or its verdict has no evaluation to repeat.
            TrainerUnavailable, BadGateway, Timeout: No response.
        """
        resolved, body = await self._verdicts.evaluation(caller.project, name, number)
        running = await self._running(_identity(headers))
        return await self._start(caller, f"{name}@{resolved}", body, running, headers, actor)

    async def revalidate_due(
        self, caller: Caller, headers: Mapping[str, str], *, every: bool, actor: Actor
    ) -> dict[str, Any]:
        """Revalidate the due versions of the caller's project; creates at most ``MAX_AT_ONCE`` evaluations.

        Versions that cannot be revalidated now do not count towards that limit.

        Args:
            every: Revalidate every version that has a verdict, due or not.

        Returns:
            A list of ``{version, reasons, evaluation, error}``. If a version cannot be revalidated, ``evaluation`` is
            null and ``error`` says why. ``left`` is the number of versions left for the next call.

        Raises:
            TrainerUnavailable, BadGateway, Timeout: No response.
        """
        candidates = [
            version
            for version in await self._verdicts.revalidation_candidates(caller.project, every=every)
            if caller.may_use(version.name)
        ]
        running = await self._running(_identity(headers))
        data, created = [], 0
        for candidate in sorted(candidates, key=lambda candidate: candidate.version not in running):
            if created == MAX_AT_ONCE:
                break
            item = await self._revalidate_candidate(caller, candidate, running, headers, actor)
            data.append(item)
            created += item["evaluation"] is not None and candidate.version not in running
        return {"object": "list", "data": data, "left": len(candidates) - len(data)}

    async def due_candidates(self) -> list[RevalidationCandidate]:
        """Due versions of all projects that fit this base: live versions first, then by the age of the verdict."""
        candidates = await self._verdicts.revalidation_candidates(None)
        return [candidate for candidate in candidates if candidate.is_same_base]

    async def aged_per_round(self, every_s: float) -> int:
        """See `Verdicts.aged_per_round`."""
        return await self._verdicts.aged_per_round(every_s)

    async def get(self, project: str, evaluation_id: str) -> dict[str, Any] | None:
        """An evaluation's current state; None if it does not exist. Raises TrainerUnavailable, BadGateway, Timeout."""
        status, evaluation = await self._get(f"{EVALUATIONS}/{evaluation_id}", _headers(project))
        return None if status == 404 else evaluation

    async def _revalidate_candidate(
        self,
        caller: Caller,
        candidate: RevalidationCandidate,
        running: dict[str, dict[str, Any]],
        headers: Mapping[str, str],
        actor: Actor,
    ) -> dict[str, Any]:
        item = {"object": "revalidation", "version": candidate.version, "reasons": list(candidate.reasons)}
        try:
            _, body = await self._verdicts.evaluation(caller.project, candidate.name, candidate.number)
            answer = await self._start(caller, candidate.version, body, running, headers, actor)
        except UNAVAILABLE:
            raise
        except HatrackError as error:
            return item | {"evaluation": None, **error.payload()}
        content = parsed(answer)
        if answer.status >= 400:
            return item | {"evaluation": None, "error": content.get("error")}
        return item | {"evaluation": content, "error": None}

    async def _start(
        self,
        caller: Caller,
        version: str,
        body: Mapping[str, Any],
        running: Mapping[str, dict[str, Any]],
        headers: Mapping[str, str],
        actor: Actor,
    ) -> Answer:
        if version in running:
            return Answer(200, {"content-type": "application/json"}, orjson.dumps(running[version]))
        request = revalidation_body(body, version)
        return await self._evaluations.create(caller, request, _identity(headers), actor=actor, version=version)

    async def _running(self, headers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The project's unfinished revalidations, by version."""
        running: dict[str, dict[str, Any]] = {}
        after = ""
        for _ in range(MAX_PAGES):
            _, page = await self._get(f"{EVALUATIONS}?limit={PAGE}{after}", headers)
            data = page.get("data") or []
            for evaluation in data:
                version = (evaluation.get("metadata") or {}).get(METADATA_KEY)
                if version is not None and evaluation.get("status") not in ENDED:
                    running[str(version)] = evaluation
            if not page.get("has_more") or not data:
                break
            after = f"&after={data[-1]['id']}"
        return running

    async def _get(self, target: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        async with self._client.open("GET", target, headers) as response:
            answer = Answer(response.status, {}, await read_bounded(response))
        if answer.status >= 500 or (answer.status >= 400 and answer.status != 404):
            raise BadGateway(
                f"the trainer refused to list its evaluations: status {answer.status}", code="trainer_answer"
            )
        return answer.status, parsed(answer)


class RevalidationTimer:
    """Revalidates due versions of all projects periodically, one version at a time.

    Versions for which the engine has changed are all revalidated in the next round. Those that are due for their age
    alone are spread over the age limit (`Verdicts.aged_per_round`).

    Args:
        revalidations: Revalidates versions.
        every_s: Interval between rounds, s.
        first_s: Delay before the first round, s.
        again_s: Delay before a round is retried that failed because the trainer was unavailable, s.
        poll_s: Polling interval for a running evaluation, s.
    """

    def __init__(
        self,
        revalidations: Revalidations,
        *,
        every_s: float,
        first_s: float = FIRST_S,
        again_s: float = AGAIN_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._revalidations = revalidations
        self._every_s = every_s
        self._first_s = min(first_s, every_s)
        self._again_s = min(again_s, every_s)
        self._poll_s = poll_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the timer."""
        self._task = asyncio.create_task(self._run(), name="revalidation")

    async def stop(self) -> None:
        """Stop the timer; a running evaluation continues in the trainer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        pause = self._first_s
        while True:
            await asyncio.sleep(pause)
            pause = self._every_s
            try:
                await self.round()
            except HatrackError as error:
                _LOG.warning("revalidation is postponed", extra={"reason": error.message})
                pause = self._again_s
            except Exception:  # keep the timer alive; the next round may succeed
                _LOG.exception("a revalidation round failed")

    async def round(self) -> None:
        """Revalidate the due versions one after another, waiting for each evaluation to end.

        Raises:
            TrainerUnavailable, BadGateway, Timeout: The trainer became unavailable before an evaluation started.
        """
        tried: set[tuple[str, str]] = set()
        left = await self._revalidations.aged_per_round(self._every_s)
        while True:
            # queried anew each time: an evaluation takes minutes, and clients revalidate versions too
            candidates = await self._revalidations.due_candidates()
            untried = (due for due in candidates if (due.project, due.version) not in tried)
            candidate = next((due for due in untried if left > 0 or not due.only_aged), None)
            if candidate is None:
                return
            tried.add((candidate.project, candidate.version))
            # one that cannot be evaluated takes nobody's turn: it would be the first of the next round, too
            left -= await self._revalidate(candidate) and candidate.only_aged

    async def _revalidate(self, candidate: RevalidationCandidate) -> bool:
        """Revalidate a version and wait for the end; returns whether the evaluation succeeded."""
        project, version = candidate.project, {"project": candidate.project, "version": candidate.version}
        caller, actor, headers = system_caller(project), system_actor(project), _headers(project)
        number = str(candidate.number)
        try:
            answer = await self._revalidations.revalidate(caller, candidate.name, number, headers, actor=actor)
        except UNAVAILABLE:
            raise
        except HatrackError as error:
            _LOG.warning("a version cannot be revalidated", extra={**version, "reason": error.message})
            return False
        evaluation = parsed(answer)
        if answer.status >= 400:
            reason = (evaluation.get("error") or {}).get("message")
            _LOG.warning("a version cannot be revalidated", extra={**version, "reason": reason})
            return False
        _LOG.info("revalidating a version", extra={**version, "evaluation": evaluation.get("id")})
        return await self._wait(project, str(evaluation.get("id")))

    async def _wait(self, project: str, evaluation_id: str) -> bool:
        """Wait until the evaluation has ended, also while the trainer is away; returns whether it succeeded."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                evaluation = await self._revalidations.get(project, evaluation_id)
            except HatrackError as error:
                _LOG.debug("cannot poll an evaluation", extra={"reason": error.message})
                continue
            if evaluation is None or evaluation.get("status") in ENDED:
                return evaluation is not None and evaluation.get("status") == "succeeded"


def revalidation_body(body: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The request that revalidates ``version``: the earlier one with no promotion and the version in its metadata."""
    request = {name: value for name, value in body.items() if name != "kind"}  # `kind` is set by the gateway alone
    if "model" in request:
        request["model"] = version  # the original name or alias may have moved
    metadata = [(key, value) for key, value in (request.get("metadata") or {}).items() if key != METADATA_KEY]
    retained = dict(metadata[: MAX_METADATA - 1])
    return request | {"promote": "never", "metadata": {**retained, METADATA_KEY: version}}


def system_caller(project: str) -> Caller:
    """The gateway itself as a caller, with the scopes that a revalidation needs."""
    return Caller(SYSTEM_ID, project, frozenset({Scope.INFER, Scope.ADAPTERS, Scope.TRAIN}))


def parsed(answer: Answer) -> dict[str, Any]:
    """The trainer's response as a dict. Raises BadGateway if it is not a JSON object."""
    try:
        content = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise BadGateway("the trainer's response is not a JSON object", code="trainer_answer")
    return content


def _headers(project: str) -> dict[str, str]:
    return {"x-hatrack-project": project, "x-hatrack-key-id": SYSTEM_ID}


def _identity(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that identify the caller; an Idempotency-Key is left out, since it is not about each evaluation."""
    return {name: headers[name] for name in IDENTITY_HEADERS if name in headers}
