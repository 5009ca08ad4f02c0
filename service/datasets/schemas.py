"""What the routes of datasets take and answer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from service.http.schema import ApiModel

NAME_SCHEMA: Final = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._-]{0,63}$"}
"""The service checks the name itself, with the message of `adapters.names`."""
MAX_NOTE_CHARS: Final = 500


class DatasetPush(BaseModel):
    """An uploaded file that is to be a dataset's next version."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, WithJsonSchema(NAME_SCHEMA)] = Field(
        description="The dataset's name. The first file makes the dataset, each further one a version. Names that "
        "begin with `file-` are reserved."
    )
    file: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="The id of a file with the purpose `fine-tune` that does not expire."
    )
    note: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NOTE_CHARS)] | None = Field(
        None, description="What is new, for people."
    )


class DatasetVersion(ApiModel):
    """One version of a dataset."""

    object: Literal["dataset.version"]
    dataset: str
    version: int
    file: str = Field(description="The id of its file, which cannot be deleted before the version.")
    sha256: str = Field(description="Of its bytes, in hex.")
    bytes: int
    rows: int
    note: str | None
    key_id: str = Field(description="Of the API key that pushed it.")
    created_at: int


class PushedDatasetVersion(DatasetVersion):
    """The version that has the bytes that were pushed."""

    unchanged: bool = Field(description="Whether it was the latest version already; then nothing was changed.")


class Dataset(ApiModel):
    """A dataset with its versions, oldest first."""

    object: Literal["dataset"]
    name: str
    created_at: int
    latest: int = Field(description="The number of the newest version: what the name alone means.")
    versions: list[DatasetVersion]


class DatasetDiffCounts(ApiModel):
    """How many rows differ."""

    added: int
    removed: int
    changed: int
    unchanged: int


class DatasetDiffRow(ApiModel):
    """A row that only one of the versions has; texts are shortened."""

    line: int = Field(description="Its line in the file of the version that has it, from 1.")
    question: str = Field(description="The last turn before the answer, or the prompt.")
    answer: str


class DatasetDiffChange(DatasetDiffRow):
    """A row with the same question and another answer."""

    against_line: int = Field(description="Its line in the other version's file.")
    against_answer: str


class DatasetDiff(ApiModel):
    """What a version has that another one has not, and the other way round. The order of rows does not count."""

    object: Literal["dataset.diff"]
    dataset: str
    version: int
    against: int
    counts: DatasetDiffCounts
    added: list[DatasetDiffRow] = Field(description="The first ones, in the order of their lines.")
    removed: list[DatasetDiffRow] = Field(description="The first ones; lines are those of `against`.")
    changed: list[DatasetDiffChange] = Field(description="The first ones.")
