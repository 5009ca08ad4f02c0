"""``/v1/teachers``: the operator's endpoints that answer prompts to train on.

A request names a teacher and never a URL. Nothing is retried here: who asks hears when to come back. What each answer
cost is recorded before it is passed on (`trainer.runs.outside`).
"""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request

from adapters.labelling.asking import PromptRefused, Reply, TeacherBusy
from adapters.labelling.completion import raise_if_for_later_or_for_the_prompt, read_completion
from adapters.protocol.requests import TeacherBody
from trainer.database import Database
from trainer.errors import (
    AnswerRefused,
    AnswerUnreadable,
    GatewayUnreachable,
    NotFound,
    RequestError,
    TeacherBusyNow,
    TeacherFailed,
    TeacherRefused,
    UnsupportedValue,
)
from trainer.evaluate.asking import CHAT_PATH
from trainer.evaluate.endpoint_client import EndpointClient, charge_of
from trainer.evaluate.endpoints import EndpointSettings, OperatorEndpoints
from trainer.http import Caller, CurrentCaller, list_object
from trainer.runs import outside
from trainer.runs.outside import Payer
from trainer.runs.protocol import OutsideCharge

MAX_IN_FLIGHT: Final = 64
"""Requests to one teacher at a time, over all callers."""
RETRY_S: Final = 2
_LOG = logging.getLogger("hatrack.trainer.teachers")


class Teachers:
    """Asks the operator's teachers.

    Args:
        endpoints: The operator's; those with `teacher = true` are teachers.
        database: Where what they charge is recorded.
    """

    def __init__(self, endpoints: OperatorEndpoints, database: Database) -> None:
        self._endpoints = endpoints
        self._database = database
        self._clients: dict[str, EndpointClient] = {}
        self._in_flight: dict[str, int] = {}

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()

    def list(self) -> dict[str, Any]:
        """The teachers, by name."""
        teachers = sorted((name, each) for name, each in self._endpoints.endpoints.items() if each.teacher)
        return list_object([_teacher(name, settings) for name, settings in teachers], has_more=False)

    async def answer(self, caller: CurrentCaller, name: str, body: TeacherBody) -> dict[str, Any]:
        """A teacher's answer, as a chat completion.

        Raises:
            NotFound: There is no teacher of this name.
            UnsupportedValue: The endpoint takes no temperature.
            TeacherBusyNow: It can be asked later.
            TeacherRefused: It refuses this prompt.
            TeacherFailed: It refuses the operator's key or model, or does not answer with a chat completion.
        """
        settings = self._endpoints.endpoints.get(name)
        if settings is None or not settings.teacher:
            known = sorted(each for each, given in self._endpoints.endpoints.items() if given.teacher)
            teachers = f"the operator has set up {', '.join(known)}" if known else "the operator has set up none"
            raise NotFound(f"no teacher named {name[:64]!r}; {teachers}", code="teacher_not_found")
        if body.temperature is not None and not settings.send_temperature:
            raise UnsupportedValue(
                f"`temperature` cannot be sent to the teacher {name}, which takes none; leave it out",
                param="temperature",
            )
        if self._in_flight.get(name, 0) >= MAX_IN_FLIGHT:
            raise TeacherBusyNow(
                f"{MAX_IN_FLIGHT} requests to {name} are in flight; retry later", retry_after_s=RETRY_S
            )
        self._in_flight[name] = self._in_flight.get(name, 0) + 1
        try:
            # before it is asked: a run that ends meanwhile has no key any more
            payer = await self._database.run(lambda db: outside.payer_of(db, caller.project, caller.key_id))
            return await self._ask(name, settings, body, payer)
        finally:
            self._in_flight[name] -= 1

    async def _ask(self, name: str, settings: EndpointSettings, body: TeacherBody, payer: Payer) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": [message.model_dump() for message in body.messages],
            settings.max_tokens_field: body.max_tokens,
        }
        if body.temperature is not None:
            request["temperature"] = body.temperature
        try:
            value, _ = await self._client(name).post(CHAT_PATH, {**request, **settings.fields})
            await self._record(payer, charge_of(name, settings.prices, value.get("usage")))
            reply = read_completion(value, served_by=None, seconds=0, max_tokens=body.max_tokens)
        except GatewayUnreachable as error:
            _LOG.warning("teacher %s cannot be reached", name)
            raise TeacherBusyNow(f"the teacher {name} cannot be reached; retry later", retry_after_s=RETRY_S) from error
        except AnswerRefused as error:
            raise _refused(name, error) from error
        except (AnswerUnreadable, ValueError) as error:
            raise TeacherFailed(f"the teacher {name} did not answer with a chat completion") from error
        message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
        return {
            "object": "chat.completion",
            "model": str(settings.model),
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
            "usage": _usage(reply),
        }

    async def _record(self, payer: Payer, charge: OutsideCharge) -> None:
        try:
            await self._database.run(lambda db: outside.add(db, payer, charge, time.time()))
        except RequestError:  # the answer has been paid for, and is passed on
            _LOG.exception("what the teacher %s charged could not be recorded: %s", charge.endpoint, charge)

    def _client(self, name: str) -> EndpointClient:
        """Raises SettingsError if the endpoint's key is gone since the trainer started."""
        if name not in self._clients:
            endpoint = self._endpoints.reachable()[name]
            self._clients[name] = EndpointClient(endpoint, connections=MAX_IN_FLIGHT, patience_s=0)
        return self._clients[name]


def _refused(name: str, error: AnswerRefused) -> TeacherBusyNow | TeacherRefused | TeacherFailed:
    """What an endpoint's refusal is to the caller. Of one about the operator's key nothing is repeated."""
    details = {"code": error.answer_code, "message": error.message}
    headers = {} if error.retry_after_s is None else {"retry-after": str(int(error.retry_after_s))}
    try:
        raise_if_for_later_or_for_the_prompt(error.status, details, headers)
    except TeacherBusy as busy:
        wait_s = RETRY_S if busy.retry_after_s is None else int(busy.retry_after_s)
        return TeacherBusyNow(f"the teacher {name} is busy ({error.status}); retry later", retry_after_s=wait_s)
    except PromptRefused as refused:
        return TeacherRefused(f"the teacher {name} refuses the prompt: {refused.code}: {refused.message}")
    _LOG.error("teacher %s refuses its requests: %s %s", name, error.status, error.answer_code)
    return TeacherFailed(
        f"the teacher {name} refuses the operator's requests ({error.status}); its key, model or quota is at fault"
    )


def _usage(reply: Reply) -> dict[str, int] | None:
    if reply.prompt_tokens is None or reply.completion_tokens is None:
        return None
    total = reply.prompt_tokens + reply.completion_tokens
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": total,
    }


def _teacher(name: str, settings: EndpointSettings) -> dict[str, Any]:
    return {
        "object": "teacher",
        "id": name,
        "model": str(settings.model),
        "price_input": settings.price_input,
        "price_output": settings.price_output,
    }


async def teachers(request: Request) -> Teachers:
    """The service."""
    service: Teachers = request.app.state.trainer.teachers
    return service


router = APIRouter(prefix="/v1/teachers", tags=["teachers"])
Service = Annotated[Teachers, Depends(teachers)]


@router.get("")
async def list_teachers(_caller: Caller, service: Service) -> dict[str, Any]:
    """The teachers that the operator offers."""
    return service.list()


@router.post("/{name}")
async def ask_teacher(name: str, body: TeacherBody, caller: Caller, service: Service) -> dict[str, Any]:
    """One answer of a teacher."""
    return await service.answer(caller, name, body)
