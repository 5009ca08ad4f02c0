"""The requests with which the gateway creates runs at the trainer.

The trainer trusts them: the caller is in headers that no client can send through the gateway, and what the gateway has
resolved and authorised is sent with the client's own body, in one envelope for every kind of run:

    POST /v1/fine_tuning/jobs   CreateJob
    POST /v1/evaluations        CreateEvaluation
    POST /v1/ladders            CreateLadder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.authorization import StoreNames

PROJECT_HEADER: Final = "x-hatrack-project"
KEY_ID_HEADER: Final = "x-hatrack-key-id"
ADAPTERS_HEADER: Final = "x-hatrack-adapters"
"""Comma-separated globs of the adapter names that the caller's key may use; absent: all."""
STORES_HEADER: Final = "x-hatrack-stores"
"""Comma-separated globs of the vector stores that the caller's key may read; absent: all."""
RUN_KEY_HEADER: Final = "x-hatrack-job-key"
"""The key that the gateway created for the run; its id is in the next header."""
RUN_KEY_ID_HEADER: Final = "x-hatrack-job-key-id"
SECRET_HEADER: Final = "x-hatrack-trainer-secret"  # noqa: S105 (a header's name)
REPLAYED_HEADER: Final = "x-hatrack-replayed"
UNUSED_KEYS_PATH: Final = "/internal/keys/unused"
"""The trainer's route that tells which of the keys in a `RunKeys` no run has: `{"unused": [ids]}`."""
"""Set by the trainer if the run already existed for this Idempotency-Key, so that the new key is not used."""


class ProtocolModel(BaseModel):
    """A part of a request. Unknown fields are refused: both sides are of the same release."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRef(ProtocolModel):
    """A file of the gateway's `/v1/files`."""

    id: str
    filename: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ParentShape:
    """The shape of the parent adapter, which training cannot change.

    ``modules``: number of modules with a LoRA; None if unknown.
    """

    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    modules: int | None = None


class JobContext(ProtocolModel):
    """What the gateway resolved for a fine-tuning job.

    ``adapter``: the name of the result. ``base``: the served name of the base; None: the default. ``parent``: the
    `name@version` to continue from; None: the base. ``datasets``: the `name@version` of each file that the client named
    by a dataset, by the body's field. ``stores``: the vector stores whose passages the
    run may show; None: not known.
    """

    adapter: str
    base: str | None = None
    training_file: FileRef
    validation_file: FileRef | None = None
    parent: str | None = None
    parent_shape: ParentShape | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    stores: tuple[StoreNames, ...] | None = None


class EarlierVerdict(ProtocolModel):
    """The verdict that a revalidation is compared with.

    ``id``: of the verdict. ``verdict``: its word. ``rule``: the version of the rule that it was reached by. ``scores``:
    the file with its scores, question by question.
    """

    id: str
    verdict: Literal["pass", "not_enough_evidence"]
    rule: int
    scores: FileRef


class PromptExample(ProtocolModel):
    """A question and its answer in a version's prompt."""

    user: str
    assistant: str


class EvaluationContext(ProtocolModel):
    """What the gateway resolved and authorised for an evaluation.

    ``base``: the served name of the base that the models are compared with; None: the default. ``models``: what each
    arm of the gateway's stands for (`name@3`, or a base), by its label. ``candidate``: the
    version that is judged, None where it is none; ``system_prompt``, ``grounding`` and ``examples`` are its settings,
    and ``has_weights`` is False if it is made of these alone. ``live``: the version that serves under its name now, if
    that is another. ``groundings``: by its name, the grounding of each version that is asked and has one.
    ``records``: the evaluation's key may write the verdict down. ``training_files``: what the candidate was trained
    on, as far as the project still has it. ``earlier``: what a revalidation is compared with, None if no earlier
    verdict has its scores stored. ``stores``: as in `JobContext`.
    """

    held_out: FileRef
    base: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    candidate: str | None = None
    system_prompt: str | None = None
    grounding: dict[str, Any] | None = None
    examples: tuple[PromptExample, ...] = ()
    has_weights: bool = True
    live: str | None = None
    groundings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    records: bool = False
    training_files: tuple[FileRef, ...] = ()
    lineage: dict[str, Any] | None = None
    earlier: EarlierVerdict | None = None
    stores: tuple[StoreNames, ...] | None = None


class TeacherRef(ProtocolModel):
    """Who labels prompts: a model of the gateway (the base, or `name@version`), or what may be an outside endpoint,
    which only the trainer knows."""

    name: str
    outside: bool


class LadderContext(ProtocolModel):
    """What the gateway resolved for a ladder.

    ``adapter``: the name of the versions. ``vector_stores``: the ids of the stores with documents. ``teacher``: who
    answers the prompts of ``unlabelled_file``; both or neither. ``datasets`` and ``stores``: as in `JobContext`.
    """

    adapter: str
    training_file: FileRef
    vector_stores: tuple[str, ...] = ()
    teacher: TeacherRef | None = None
    unlabelled_file: FileRef | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    stores: tuple[StoreNames, ...] | None = None


class CreateLadder(ProtocolModel):
    """The client's body as sent, and what the gateway resolved."""

    request: dict[str, Any]
    context: LadderContext


class CreateJob(ProtocolModel):
    """The client's body as sent, and what the gateway resolved."""

    request: Any
    context: JobContext


class CreateEvaluation(ProtocolModel):
    """The client's body (or the gateway's own, with the kind of evaluation), and what the gateway resolved."""

    request: dict[str, Any]
    context: EvaluationContext


class RunKeys(ProtocolModel):
    """Ids of keys that gateways have made for runs."""

    keys: tuple[str, ...]
