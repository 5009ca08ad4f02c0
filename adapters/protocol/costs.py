"""What the gateway asks the trainer about costs, for itself: no client's path leads here.

GET  /internal/costs/device_time?start=…&end=…   DeviceTimes
GET  /internal/costs/last_training?project=…&adapter=…   LastTraining, or null
POST /internal/costs/estimate   multipart: `job` (CreateJob), `training_file`, `validation_file` → EstimatedJob
"""

from __future__ import annotations

from typing import Any, Literal

from adapters.protocol.runs import ProtocolModel

DEVICE_TIME_PATH = "/internal/costs/device_time"
LAST_TRAINING_PATH = "/internal/costs/last_training"
ESTIMATE_PATH = "/internal/costs/estimate"


class RunTime(ProtocolModel):
    """How long one run has had the training device in one hour.

    Attributes:
        key_id: Of its creator.
        adapter, version: What it trains; version is None until it has ended, or if it made none.
        hour: Unix seconds of its beginning.
        training_s: Without the judging.
        judging_s: While it judged: the engine's time of its requests is measured by the gateway.
    """

    run: str
    project: str
    key_id: str
    adapter: str
    version: int | None
    hour: int
    training_s: float
    judging_s: float


class EndpointCharge(ProtocolModel):
    """What an endpoint outside has charged in one hour for one run, or for a key that asked it on its own.

    Attributes:
        run: None for a key on its own (`hatrack data label`).
        key_id: Of the run's creator, or of who asked.
        adapter, version: What the run trains, judges or advises on; "" and None where there is none.
        endpoint: Its name in the operator's settings.
        hour: Unix seconds of its beginning.
        money: At the prices of that time, without what `unpriced` requests cost, which is not known.
    """

    run: str | None
    project: str
    key_id: str
    adapter: str
    version: int | None
    endpoint: str
    hour: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    unpriced: int


class DeviceTimes(ProtocolModel):
    """What all projects' runs took in a period, oldest first: the device's time, and what endpoints outside charged."""

    data: tuple[RunTime, ...]
    charges: tuple[EndpointCharge, ...] = ()


class LastTraining(ProtocolModel):
    """The last job of an adapter that made a version, those of a learning curve left out.

    Attributes:
        run_key_id: Of the key that its requests were made with; None if it shares the key with others, as a ladder's
            jobs do.
        training_s, judging_s: Device time, s.
        examples: That it trained on.
    """

    run: str
    run_key_id: str | None
    version: int | None
    finished_at: int
    training_s: float
    judging_s: float
    examples: int
    trained_tokens: int


class EstimatedJob(ProtocolModel):
    """What a job will take, by a measured speed. Times in seconds; None where nothing was measured.

    Attributes:
        trained_tokens: At most: the training may stop early.
        tokens_per_s: Of training.
        speed_source: `record`: past jobs on this base and device, `jobs` of them; `short_run`: a few steps, made now.
        starting_s: Loading, preparing and exporting.
        judging_s: By past jobs; None if none has been judged.
        held_out: Examples that will be judged on.
        hyperparameters, plan: As the job shows them once its data are checked.
    """

    examples: int
    held_out: int
    epochs: int
    trained_tokens: int
    tokens_per_s: float
    speed_source: Literal["record", "short_run"]
    jobs: int
    device: str
    starting_s: float
    training_s: float
    judging_s: float | None
    hyperparameters: dict[str, Any]
    plan: dict[str, Any]
