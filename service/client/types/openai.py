"""What OpenAI's API says of fine-tuning jobs and files, as far as `service.client.openai_account` reads it."""

from typing import Any, Literal, NotRequired, TypedDict


class OpenAIMethod(TypedDict):
    """`method`: its type, and under the type's name its options."""

    type: str
    supervised: NotRequired[dict[str, Any] | None]
    dpo: NotRequired[dict[str, Any] | None]
    reinforcement: NotRequired[dict[str, Any] | None]


class OpenAIJob(TypedDict):
    """A `fine_tuning.job`."""

    object: Literal["fine_tuning.job"]
    id: str
    created_at: int
    status: str
    model: str
    """The model that was trained: one of OpenAI's, or `ft:…`, an earlier job's."""
    fine_tuned_model: str | None
    """`ft:MODEL:ORGANIZATION:SUFFIX:ID`; null unless the job succeeded."""
    user_provided_suffix: NotRequired[str | None]
    training_file: str
    validation_file: NotRequired[str | None]
    seed: NotRequired[int | None]
    hyperparameters: NotRequired[dict[str, Any] | None]
    """Of jobs older than `method`; of others the same as there."""
    method: NotRequired[OpenAIMethod | None]
    metadata: NotRequired[dict[str, str] | None]
    integrations: NotRequired[list[dict[str, Any]] | None]


class OpenAIFile(TypedDict):
    """A `file`."""

    object: Literal["file"]
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: NotRequired[int | None]
