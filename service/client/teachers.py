"""`client.teachers`: who can answer prompts to train on, and asking one of them. The asking itself is asynchronous."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self, TypedDict

import httpx

from adapters.labelling.asking import Reply, Teacher, TeacherBusy
from adapters.labelling.completion import (
    SERVED_BY,
    raise_if_for_later_or_for_the_prompt,
    read_completion,
    request_of,
)
from adapters.labelling.prompts import Prompt
from service.client.connection import CONNECT_S, Resource, path_of
from service.client.types.training import Teacher as TeacherObject
from service.client.wire import ClientError, json_body, refusal

ANSWERING: Final = httpx.Timeout(60, connect=CONNECT_S, read=600)


class _TeacherList(TypedDict):
    """All teachers; the list has no pages."""

    data: list[TeacherObject]


class Teachers(Resource):
    """`client.teachers`: the outside endpoints that the operator's settings offer as teachers. Needs the scope `train`.

    Raises ClientError: `trainer_unavailable` (503) while the trainer is down.
    """

    def list(self) -> Iterator[TeacherObject]:
        """All teachers; the list has no pages."""
        return iter(self._connection.request(_TeacherList, "GET", path_of("teachers"))["data"])


class TeacherClient:
    """Asks teachers through the gateway; an async context manager, and an `adapters.labelling.asking.Ask`.

    Args:
        http: Has the gateway's address and the key; closed with this.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def __call__(self, teacher: Teacher, prompt: Prompt) -> Reply:
        """The teacher's reply to a prompt.

        Raises:
            TeacherBusy: It can be asked later.
            PromptRefused: It refuses this prompt.
            ClientError: It refuses the caller or the model.
        """
        began = time.monotonic()
        path, body = request_of(teacher, prompt)
        try:
            response = await self._http.post(path, json=body, timeout=ANSWERING)
        except httpx.TransportError as error:
            raise TeacherBusy(f"no answer: {str(error) or type(error).__name__}") from error
        value = json_body(response)
        if not response.is_success:
            error_object = value.get("error") if isinstance(value, dict) else None
            details = error_object if isinstance(error_object, dict) else {}
            raise_if_for_later_or_for_the_prompt(response.status_code, details, response.headers)
            raise refusal(response)
        try:
            return read_completion(
                value,
                served_by=response.headers.get(SERVED_BY),
                seconds=time.monotonic() - began,
                max_tokens=teacher.max_tokens,
            )
        except ValueError as error:
            raise ClientError(200, "not_hatrack", f"The teacher {teacher.name} did not answer: {error}.") from error
