"""The bodies of `/v1/vector_stores`: OpenAI's fields, checked, or refused by name where nothing here stands for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from service.errors import BadRequest, FieldRefused
from service.grounding.config import MAX_FILTER_BYTES, MAX_RESULTS
from service.grounding.provider import Attribute
from service.knowledge.types import Chunking, NewStoreFile

MAX_LABELS: Final = 16
MAX_LABEL_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 512
MAX_BATCH: Final = 2000
MAX_QUERY_CHARS: Final = 4096
MAX_QUERIES: Final = 8
MIN_CHUNK, MAX_CHUNK = 100, 4096
DEFAULT_SEARCH_RESULTS: Final = 10

Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
Metadata = Annotated[dict[Label, Text], Field(max_length=MAX_LABELS)]
Attributes = Annotated[dict[Label, Text | bool | float], Field(max_length=MAX_LABELS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Static(_Body):
    """OpenAI's numbers of a chunking."""

    max_chunk_size_tokens: int = Field(ge=MIN_CHUNK, le=MAX_CHUNK)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _half(self) -> Static:
        if self.chunk_overlap_tokens > self.max_chunk_size_tokens // 2:
            raise ValueError("chunk_overlap_tokens must not exceed half of max_chunk_size_tokens")
        return self


class Strategy(_Body):
    """`auto`, or `static` with numbers."""

    type: Literal["auto", "static"]
    static: Static | None = None

    @model_validator(mode="after")
    def _numbers(self) -> Strategy:
        if (self.type == "static") != (self.static is not None):
            raise ValueError("`static` requires the type `static`, and only that type")
        return self

    @property
    def chunking(self) -> Chunking | None:
        """The numbers; None is the default."""
        if self.static is None:
            return None
        return Chunking(self.static.max_chunk_size_tokens, self.static.chunk_overlap_tokens)


class _StoreBody(_Body):
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    description: Text | None = None
    metadata: Metadata | None = None
    expires_after: Any = None

    def demand_lasting(self) -> None:
        """Raise FieldRefused where the store is to expire."""
        if self.expires_after is not None:
            raise FieldRefused(
                "`expires_after` cannot be used: vector stores do not expire; delete the store instead",
                param="expires_after",
            )


class CreateStore(_StoreBody):
    """Body of a new store."""

    file_ids: list[FileId] = Field(default_factory=list, max_length=MAX_BATCH)
    chunking_strategy: Strategy | None = None


class UpdateStore(_StoreBody):
    """Body of a change: what is missing stays."""


class AddFile(_Body):
    """Body of one file for a store."""

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: Strategy | None = None

    @property
    def draft(self) -> NewStoreFile:
        """The file without its name."""
        return draft(self.file_id, self.attributes, self.chunking_strategy)


class SetAttributes(_Body):
    """Body of a change of a file's metadata."""

    attributes: Attributes | None


class AddBatch(_Body):
    """Body of a batch: `file_ids` with one strategy, or `files` with one each."""

    file_ids: list[FileId] | None = Field(None, min_length=1, max_length=MAX_BATCH)
    files: list[AddFile] | None = Field(None, min_length=1, max_length=MAX_BATCH)
    attributes: Attributes | None = None
    chunking_strategy: Strategy | None = None

    @property
    def drafts(self) -> list[NewStoreFile]:
        """The files without their names, each once. Raises BadRequest."""
        if (self.file_ids is None) == (self.files is None):
            raise BadRequest("send either `file_ids` or `files`", param="file_ids")
        if self.files is not None:
            drafts = [file.draft for file in self.files]
        else:
            drafts = [draft(file_id, self.attributes, self.chunking_strategy) for file_id in self.file_ids or ()]
        return list({file.file_id: file for file in drafts}.values())


class Ranking(_Body):
    """OpenAI's ranking options; there is one ranker."""

    ranker: Literal["auto", "none", "default-2024-11-15"] = "auto"
    score_threshold: float | None = Field(None, ge=0, le=1)


class Search(_Body):
    """Body of a search."""

    query: str | list[str]
    filters: dict[str, Any] | None = None
    max_num_results: int = Field(DEFAULT_SEARCH_RESULTS, ge=1, le=MAX_RESULTS)
    ranking_options: Ranking | None = None
    rewrite_query: bool = False

    @field_validator("query")
    @classmethod
    def _query(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 1 <= len(texts) <= MAX_QUERIES or any(not 1 <= len(text) <= MAX_QUERY_CHARS for text in texts):
            raise ValueError(f"1 to {MAX_QUERIES} texts of 1 to {MAX_QUERY_CHARS} characters are allowed")
        return value

    @property
    def texts(self) -> Sequence[str]:
        """The queries. Raises FieldRefused where they are to be written anew."""
        if self.rewrite_query:
            raise FieldRefused("`rewrite_query` is not supported: queries are used as given", param="rewrite_query")
        return [self.query] if isinstance(self.query, str) else self.query


def draft(file_id: str, attributes: dict[str, Attribute] | None, strategy: Strategy | None) -> NewStoreFile:
    """A file for a store, without its name."""
    return NewStoreFile(file_id, "", attributes or {}, strategy.chunking if strategy else None)


MAX_BODY_BYTES: Final = MAX_BATCH * 8 * 1024
"""Of a body: a batch whose files each have attributes."""
MAX_SEARCH_BYTES: Final = MAX_FILTER_BYTES + MAX_QUERIES * MAX_QUERY_CHARS * 6
