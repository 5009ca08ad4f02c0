"""What the trainer says about costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError

from adapters.protocol.costs import DEVICE_TIME_PATH, LAST_TRAINING_PATH, DeviceTimes, LastTraining
from service.errors import BadGateway
from service.training.client import TrainerClient
from service.training.forward import read_bounded

ANSWER_TIMEOUT_S: Final = 5.0
T = TypeVar("T")
_TIMES: Final[TypeAdapter[DeviceTimes]] = TypeAdapter(DeviceTimes)
_LAST: Final[TypeAdapter[LastTraining | None]] = TypeAdapter(LastTraining | None)


class TrainerCosts:
    """Asks the trainer for the time of its runs.

    Args:
        client: The trainer's client.
        has_trainer: Whether there is a trainer, or was one: without, there are no runs to ask for.
    """

    def __init__(self, client: TrainerClient, has_trainer: Callable[[], bool] = lambda: True) -> None:
        self._client = client
        self._has_trainer = has_trainer

    async def device_times(self, start: int, end: int) -> DeviceTimes:
        """Device time of all projects' runs in the hours from ``start`` to ``end``, Unix seconds.

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
