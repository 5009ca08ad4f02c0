"""What the trainer says about costs, and what else reports are made of."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError

from adapters.costs import Prices
from adapters.protocol.costs import (
    DEVICE_TIME_PATH,
    ESTIMATE_PATH,
    LAST_TRAINING_PATH,
    DeviceTimes,
    EstimatedJob,
    LastTraining,
)
from adapters.protocol.runs import CreateJob
from service.concurrency import in_thread
from service.database import Database
from service.errors import BadGateway
from service.training.client import CHECK_TIMEOUT_S, TrainerClient
from service.training.forward import kept_headers, read_bounded
from service.training.service import Answer
from service.usage.account import UsageAccount

ANSWER_TIMEOUT_S: Final = 5.0
CHUNK_BYTES: Final = 2**20
T = TypeVar("T")
_TIMES: Final[TypeAdapter[DeviceTimes]] = TypeAdapter(DeviceTimes)
_LAST: Final[TypeAdapter[LastTraining | None]] = TypeAdapter(LastTraining | None)


class TrainerCosts:
    """Asks the trainer for the time of its runs, and for what endpoints outside charged.

    Args:
        client: The trainer's client.
        has_trainer: Whether there is a trainer, or was one: without, there are no runs to ask for.
    """

    def __init__(self, client: TrainerClient, has_trainer: Callable[[], bool] = lambda: True) -> None:
        self._client = client
        self._has_trainer = has_trainer

    async def device_times(self, start: int, end: int) -> DeviceTimes:
        """Device time and charges of all projects in the hours from ``start`` to ``end``, Unix seconds.

        Raises:
            TrainerUnavailable, Timeout, BadGateway: It cannot be had.
        """
        if not self._has_trainer():
            return DeviceTimes(data=())
        return await self._get(f"{DEVICE_TIME_PATH}?{urlencode({'start': start, 'end': end})}", _TIMES)

    async def last_training(self, project: str, adapter: str) -> LastTraining | None:
        """The adapter's last job that made a version; None if there is none.

        Raises:
            TrainerUnavailable, Timeout, BadGateway: It cannot be had.
        """
        if not self._has_trainer():
            return None
        return await self._get(f"{LAST_TRAINING_PATH}?{urlencode({'project': project, 'adapter': adapter})}", _LAST)

    async def estimate(
        self, envelope: CreateJob, headers: Mapping[str, str], files: Mapping[str, Path]
    ) -> EstimatedJob | Answer:
        """What a job will take; or the trainer's refusal, for the client.

        Args:
            headers: Who asks.
            files: The content of the job's files, by the request's field.

        Raises:
            TrainerUnavailable, Timeout, BadGateway: There is no answer.
        """
        boundary = secrets.token_hex(16)
        sent = {**headers, "content-type": f"multipart/form-data; boundary={boundary}"}
        form = _form(boundary, envelope.model_dump_json().encode(), files)
        async with self._client.open("POST", ESTIMATE_PATH, sent, form, timeout_s=CHECK_TIMEOUT_S) as response:
            answer = Answer(response.status, kept_headers(response), await read_bounded(response))
        return EstimatedJob.model_validate_json(answer.body) if answer.status == 200 else answer

    async def _get(self, target: str, model: TypeAdapter[T]) -> T:
        async with self._client.open("GET", target, {}, timeout_s=ANSWER_TIMEOUT_S) as response:
            content = await read_bounded(response)
        try:
            if response.status == 200:
                return model.validate_json(content)
        except ValidationError:
            pass
        raise BadGateway(
            f"the trainer cannot tell the time of its runs (status {response.status}); is it of this release?",
            code="trainer_answer",
        )


async def _form(boundary: str, job: bytes, files: Mapping[str, Path]) -> AsyncIterator[bytes]:
    """A form of the job as JSON and its files, read from the disk as they are sent."""
    yield f'--{boundary}\r\ncontent-disposition: form-data; name="job"\r\n\r\n'.encode() + job
    for param, path in files.items():
        head = f'content-disposition: form-data; name="{param}"; filename="{param}"'
        yield f"\r\n--{boundary}\r\n{head}\r\n\r\n".encode()
        with path.open("rb") as file:
            while chunk := await in_thread(file.read, CHUNK_BYTES):
                yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()


@dataclass(frozen=True, slots=True)
class Measured:
    """What reports of costs are made of: counted requests, the trainer's times, and the operator's prices.

    ``account`` is written to the database before it is read, so that no report is stale. ``wall`` gives Unix seconds.
    """

    database: Database
    account: UsageAccount
    trainer: TrainerCosts
    prices: Prices
    wall: Callable[[], float] = time.time
