"""Datasets: names with numbered versions of training files."""

from typing import Literal, TypedDict


class DatasetVersion(TypedDict):
    """One version of a dataset."""

    object: Literal["dataset.version"]
    dataset: str
    version: int
    file: str
    """The file's id, as in `/v1/files`."""
    sha256: str
    """Hex SHA-256 of the bytes."""
    bytes: int
    rows: int
    note: str | None
    key_id: str
    """The key that pushed it."""
    created_at: int


class PushedDatasetVersion(DatasetVersion):
    """The version that has the bytes that were pushed."""

    unchanged: bool
    """Whether it was the latest version already."""


class Dataset(TypedDict):
    """A dataset with its versions, oldest first."""

    object: Literal["dataset"]
    name: str
    created_at: int
    latest: int
    """What the name alone means."""
    versions: list[DatasetVersion]


class DatasetDiffCounts(TypedDict):
    """How many rows differ."""

    added: int
    removed: int
    changed: int
    unchanged: int


class DatasetDiffRow(TypedDict):
    """A row that only one of the versions has; texts are shortened."""

    line: int
    """Its line in the file of the version that has it, from 1."""
    question: str
    answer: str


class DatasetDiffChange(DatasetDiffRow):
    """A row with the same question and another answer."""

    against_line: int
    against_answer: str


class DatasetDiff(TypedDict):
    """What differs between two versions; the order of rows does not count."""

    object: Literal["dataset.diff"]
    dataset: str
    version: int
    against: int
    counts: DatasetDiffCounts
    added: list[DatasetDiffRow]
    """The first ones."""
    removed: list[DatasetDiffRow]
    changed: list[DatasetDiffChange]
