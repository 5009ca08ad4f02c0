"""Versions judged again: the evaluation that their latest verdict came from, asked for once more."""

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
MARK: Final = "revalidates"
"""Key of an evaluation's metadata; its value is the version that the evaluation judges again."""
MAX_AT_ONCE: Final = 100
"""Evaluations that one request makes."""
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
PAGE: Final = 100
MAX_PAGES: Final = 20
FIRST_S: Final = 60.0
AGAIN_S: Final = 300.0
POLL_S: Final = 10.0
KEPT_HEADERS: Final = ("x-hatrack-project", "x-hatrack-key-id", "x-request-id")
AWAY: Final = (TrainerUnavailable, BadGateway, Timeout)
"""What says nothing of a version: it would be the same for the next one."""
_LOG = logging.getLogger("hatrack.training")


class Evaluations(Protocol):
    """Who makes evaluations."""

    async def create(
        self, caller: Caller, body: dict[str, Any], headers: dict[str, str], *, actor: Actor, version: str | None = None
    ) -> Answer:
        """Make one. ``version`` is the ``name@number`` that is judged again, which makes it a revalidation."""


class Revalidations:
    """Asks for evaluations of versions again, one of each at a time.

    Args:
        verdicts: What is known of the versions.
        evaluations: Makes evaluations.
        client: The trainer, for those that there are.
    """

    def __init__(self, verdicts: Verdicts, evaluations: Evaluations, client: TrainerClient) -> None:
        self._verdicts = verdicts
        self._evaluations = evaluations
        self._client = client

    async def one(self, caller: Caller, name: str, number: str, headers: Mapping[str, str], *, actor: Actor) -> Answer:
        """Judge a version again; the evaluation, which may be one that is under way.

        Raises:
            NotFound: There is no such version, or no file any more to judge it on.
            Conflict: It cannot serve now, was never judged, or nobody said how to judge it again.
            TrainerUnavailable, BadGateway, Timeout: There is no answer.
        """
        found, body = await self._verdicts.evaluation(caller.project, name, number)
        running = await self._running(_own(headers))
        return await self._start(caller, f"{name}@{found}", body, running, headers, actor)

    async def due(self, caller: Caller, headers: Mapping[str, str], *, every: bool, actor: Actor) -> dict[str, Any]:
        """Judge again what is due of the caller's project; at most ``MAX_AT_ONCE`` evaluations are made.

        What cannot be judged again now is told and passed over: it takes nobody's place.

        Args:
            every: All that were ever judged.

        Returns:
            A list of ``{version, reasons, evaluation, error}``: where a version cannot be judged again, ``evaluation``
            is null and ``error`` says why; ``left`` counts what a next call would begin.

        Raises:
            TrainerUnavailable, BadGateway, Timeout: There is no answer.
        """
        wanted = [
            version
            for version in await self._verdicts.revalidation_candidates(caller.project, every=every)
            if caller.may_use(version.name)
        ]
        running = await self._running(_own(headers))
        data, made = [], 0
        for version in sorted(wanted, key=lambda one: one.version not in running):
            if made == MAX_AT_ONCE:
                break
            begun = await self._begin(caller, version, running, headers, actor)
            data.append(begun)
            made += begun["evaluation"] is not None and version.version not in running
        return {"object": "list", "data": data, "left": len(wanted) - len(data)}

    async def wanted(self) -> list[RevalidationCandidate]:
        """What is due in all projects and can be judged on this base: what serves first, then the oldest verdict."""
        return [one for one in await self._verdicts.revalidation_candidates(None) if one.is_same_base]

    async def look(self, project: str, evaluation_id: str) -> dict[str, Any] | None:
        """One evaluation as it is now; None where there is none. Raises TrainerUnavailable, BadGateway, Timeout."""
        status, found = await self._get(f"{EVALUATIONS}/{evaluation_id}", _headers(project))
        return None if status == 404 else found

    async def _begin(
        self,
        caller: Caller,
        wanted: RevalidationCandidate,
        running: dict[str, dict[str, Any]],
        headers: Mapping[str, str],
        actor: Actor,
    ) -> dict[str, Any]:
        shown = {"object": "revalidation", "version": wanted.version, "reasons": list(wanted.reasons)}
        try:
            _, body = await self._verdicts.evaluation(caller.project, wanted.name, wanted.number)
            answer = await self._start(caller, wanted.version, body, running, headers, actor)
        except AWAY:
            raise
        except HatrackError as error:
            return shown | {"evaluation": None, **error.payload()}
        found = parsed(answer)
        if answer.status >= 400:
            return shown | {"evaluation": None, "error": found.get("error")}
        return shown | {"evaluation": found, "error": None}

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
        again = again_of(body, version)
        return await self._evaluations.create(caller, again, _own(headers), actor=actor, version=version)

    async def _running(self, headers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The project's revalidations that have not ended, by version."""
        found: dict[str, dict[str, Any]] = {}
        after = ""
        for _ in range(MAX_PAGES):
            _, page = await self._get(f"{EVALUATIONS}?limit={PAGE}{after}", headers)
            data = page.get("data") or []
            for evaluation in data:
                version = (evaluation.get("metadata") or {}).get(MARK)
                if version is not None and evaluation.get("status") not in ENDED:
                    found[str(version)] = evaluation
            if not page.get("has_more") or not data:
                break
            after = f"&after={data[-1]['id']}"
        return found

    async def _get(self, target: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        async with self._client.open("GET", target, headers) as response:
            answer = Answer(response.status, {}, await read_bounded(response))
        if answer.status >= 500 or (answer.status >= 400 and answer.status != 404):
            raise BadGateway(f"the trainer refused to say what it evaluates: {answer.status}", code="trainer_answer")
        return answer.status, parsed(answer)


class RevalidationTimer:
    """Judges what is due again by itself, in all projects, one version at a time.

    Args:
        revalidations: Asks for evaluations.
        every_s: Between two rounds, s.
        first_s: Until the first round, s.
        again_s: Until the next try of a round that the trainer did not let end, s.
        poll_s: Between two looks at an evaluation that is under way, s.
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
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="revalidation")

    async def stop(self) -> None:
        """Begin nothing more; an evaluation that is under way goes on without us."""
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
                _LOG.warning("versions could not be judged again for now", extra={"reason": error.message})
                pause = self._again_s
            except Exception:  # whatever it was, the next round may be luckier
                _LOG.exception("judging versions again failed")

    async def round(self) -> None:
        """Judge what is due again, one after another, and wait for each.

        Raises:
            TrainerUnavailable, BadGateway, Timeout: The trainer went away before one began.
        """
        tried: set[tuple[str, str]] = set()
        while True:
            # looked at anew each time: an evaluation takes minutes, and others judge versions, too
            open_ones = [one for one in await self._revalidations.wanted() if (one.project, one.version) not in tried]
            if not open_ones:
                return
            wanted = open_ones[0]
            tried.add((wanted.project, wanted.version))
            await self._judge(wanted)

    async def _judge(self, wanted: RevalidationCandidate) -> None:
        said = {"project": wanted.project, "version": wanted.version}
        caller, actor = system_caller(wanted.project), system_actor(wanted.project)
        headers = _headers(wanted.project)
        try:
            answer = await self._revalidations.one(caller, wanted.name, str(wanted.number), headers, actor=actor)
        except AWAY:
            raise
        except HatrackError as error:
            _LOG.warning("a version cannot be judged again", extra={**said, "reason": error.message})
            return
        evaluation = parsed(answer)
        if answer.status >= 400:
            reason = (evaluation.get("error") or {}).get("message")
            _LOG.warning("a version cannot be judged again", extra={**said, "reason": reason})
            return
        _LOG.info("a version is judged again", extra={**said, "evaluation": evaluation.get("id")})
        await self._until_ended(wanted.project, str(evaluation.get("id")))

    async def _until_ended(self, project: str, evaluation_id: str) -> None:
        """Return when the evaluation has ended; a trainer that is away meanwhile takes it up where it was."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                found = await self._revalidations.look(project, evaluation_id)
            except HatrackError as error:
                _LOG.debug("an evaluation could not be looked at", extra={"reason": error.message})
                continue
            if found is None or found.get("status") in ENDED:
                return


def again_of(body: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The body that judges ``version`` again: what was asked then, which promotes nothing and says of what it is."""
    again = {name: value for name, value in body.items() if name != "kind"}  # that is said for whom it is made
    if "model" in again:
        again["model"] = version  # a name or an alias may have moved since
    metadata = [(key, value) for key, value in (again.get("metadata") or {}).items() if key != MARK]
    kept = dict(metadata[: MAX_METADATA - 1])
    return again | {"promote": "never", "metadata": {**kept, MARK: version}}


def system_caller(project: str) -> Caller:
    """The gateway itself, as far as it may go to judge a project's versions."""
    return Caller(SYSTEM_ID, project, frozenset({Scope.INFER, Scope.ADAPTERS, Scope.TRAIN}))


def parsed(answer: Answer) -> dict[str, Any]:
    """The trainer's answer. Raises BadGateway where it is no JSON object."""
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise BadGateway("the trainer's answer is no JSON object", code="trainer_answer")
    return found


def _headers(project: str) -> dict[str, str]:
    return {"x-hatrack-project": project, "x-hatrack-key-id": SYSTEM_ID}


def _own(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that say who asks: a client's Idempotency-Key is about its one request, not about each evaluation."""
    return {name: headers[name] for name in KEPT_HEADERS if name in headers}
