"""What a version says of its grounding (``settings.grounding``), and what the gateway's settings say of all of it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from service.grounding.template import check_template

EMBEDDED: Final = "embedded"
WEBHOOK: Final = "webhook"
MAX_STORES_NAMED: Final = 8
"""Stores that one request may look in."""
MAX_RESULTS: Final = 50
DEFAULT_RESULTS: Final = 4
DEFAULT_PASSAGE_TOKENS: Final = 1536
MIN_PASSAGE_TOKENS: Final = 16
MAX_PASSAGE_TOKENS: Final = 1_000_000
MAX_TIMEOUT_S: Final = 60
MAX_FILTER_BYTES: Final = 16 * 1024
MAX_STORE_ID_CHARS: Final = 64
MAX_REQUIRED_FILTERS: Final = 8
MAX_ATTRIBUTE_CHARS: Final = 64
PROVIDER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)

OnFailure = Literal["fail_open", "fail_closed"]
InsertAs = Literal["passages", "turns"]
"""quoted before the question · as earlier turns of the conversation, which takes a store of examples"""
PASSAGES: Final[InsertAs] = "passages"
TURNS: Final[InsertAs] = "turns"
NO_TEMPLATE: Final = "quotes passages, and examples that are inserted as `turns` are not quoted; leave it out"
StoreId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STORE_ID_CHARS, pattern=r"^[A-Za-z0-9._-]+$")]

AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ATTRIBUTE_CHARS)]


class GroundingSettings(BaseModel):
    """A version's grounding; what a request says in its own ``grounding`` wins, field by field.

    Attributes:
        provider: Who finds the passages: `embedded`, `webhook` or the name that a package has registered.
        vector_store_ids: Where to look.
        max_num_results: Most passages.
        filters: OpenAI's filter over the documents' attributes.
        required_filters: Attributes of which every grounded request must give a value, or its key carry one; a
            request can only add to them. See ``service.grounding.required_filters``.
        score_threshold: Least score of a passage.
        insert_as: `passages` are quoted before the question; `turns` shows examples as earlier turns.
        template: What stands before the question; see ``service.grounding.template``. None: the default.
        max_passage_tokens: Most tokens of all passages together.
        on_failure: Answer without passages (`fail_open`) or not at all (`fail_closed`, 503) where the provider is late
            or broken. None: the gateway's setting.
        timeout_s: What the provider gets, seconds. None: the gateway's setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str = Field(EMBEDDED, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    vector_store_ids: tuple[StoreId, ...] = Field((), max_length=MAX_STORES_NAMED)
    max_num_results: int = Field(DEFAULT_RESULTS, ge=1, le=MAX_RESULTS)
    filters: dict[str, Any] | None = None
    required_filters: tuple[AttributeName, ...] = Field((), max_length=MAX_REQUIRED_FILTERS)
    score_threshold: float | None = Field(None, ge=0, le=1)
    insert_as: InsertAs = PASSAGES
    template: str | None = None
    max_passage_tokens: int = Field(DEFAULT_PASSAGE_TOKENS, ge=MIN_PASSAGE_TOKENS, le=MAX_PASSAGE_TOKENS)
    on_failure: OnFailure | None = None
    timeout_s: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S)

    @field_validator("template")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None:
            check_template(value)
        return value

    @model_validator(mode="after")
    def _no_template_of_turns(self) -> Self:
        if self.insert_as == TURNS and self.template is not None:
            raise ValueError(f"`template` {NO_TEMPLATE}")
        return self

    def unset(self) -> set[str]:
        """The members of later releases that say nothing: they are not stored, as in versions older than them."""
        unset = {"required_filters"} if not self.required_filters else set()
        return unset | ({"insert_as"} if self.insert_as == PASSAGES else set())
