"""`client.datasets`: names with numbered versions of training files. Needs a key with the scope `train`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import httpx

from adapters.names import parse_dataset
from service.client.connection import CONNECT_S, Connection, Resource, given, path_of
from service.client.files import Files
from service.client.output import writing
from service.client.types.datasets import Dataset, DatasetDiff, DatasetVersion, PushedDatasetVersion
from service.client.upload import file_sha256
from service.client.wire import ClientError

READING: Final = httpx.Timeout(300, connect=CONNECT_S)
"""The gateway counts a file's rows, or compares two files."""


class Datasets(Resource):
    """`client.datasets`. Names have the form `support`, references also `support@3`.

    Every method raises ClientError: `dataset_not_found` or `dataset_version_not_found` (404) for what does not exist or
    is hidden from the key; and adapters.errors.AdapterError where a reference is malformed.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.versions = DatasetVersions(connection)

    def create(self, name: str, file: str, *, note: str | None = None) -> PushedDatasetVersion:
        """Make an uploaded file the next version of a dataset; the first version creates it.

        Args:
            file: The id of a file with the purpose `fine-tune` that does not expire.
            note: What is new, for people.

        Returns:
            The version; the latest one, with `unchanged`, if it has the same bytes.
        """
        body = given({"name": name, "file": file, "note": note})
        return self._connection.request(PushedDatasetVersion, "POST", path_of("datasets"), json=body, timeout=READING)

    def push(
        self,
        name: str,
        path: Path | str,
        *,
        note: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> PushedDatasetVersion:
        """Upload a file of examples as the next version of a dataset. Bytes that a version has are not sent again.

        Args:
            note: What is new, for people.
            progress: Called with the number of bytes sent since its last call.

        Returns:
            The version; the latest one, with `unchanged`, if it has the same bytes.

        Raises:
            ClientError: `not_readable` before anything is sent; `invalid_training_file` (400).
        """
        sha256 = file_sha256(path)
        try:
            versions = self.retrieve(name)["versions"]
        except ClientError as error:
            if error.code != "dataset_not_found":
                raise
            versions = []
        file = next((version["file"] for version in reversed(versions) if version["sha256"] == sha256), None)
        if file is None:
            file = Files(self._connection).create(path, progress=progress)["id"]
        return self.create(name, file, note=note)

    def list(self) -> Iterator[Dataset]:
        """All datasets with their versions, oldest first."""
        return self._connection.pages(Dataset, path_of("datasets"), cursor="name")

    def retrieve(self, name: str) -> Dataset:
        """One dataset with its versions."""
        return self._connection.request(Dataset, "GET", path_of("datasets", name))

    def delete(self, reference: str) -> None:
        """Delete a version (`support@2`) or a dataset with all its versions (`support`); their files stay.

        Raises:
            ClientError: `dataset_in_use` (409) while a job or an evaluation reads it.
        """
        target = parse_dataset(reference)
        below = () if target.version is None else ("versions", target.version)
        self._connection.checked("DELETE", path_of("datasets", target.name, *below))


class DatasetVersions(Resource):
    """`client.datasets.versions`. Every method raises ClientError, `dataset_version_not_found` (404) among others."""

    def retrieve(self, name: str, version: int) -> DatasetVersion:
        """One version."""
        return self._connection.request(DatasetVersion, "GET", path_of("datasets", name, "versions", version))

    def diff(self, name: str, version: int, against: int, *, limit: int | None = None) -> DatasetDiff:
        """The rows that a version has added, removed or changed.

        Args:
            against: The version to compare with.
            limit: How many rows of each kind are in the answer, 0 to 100. None: 20.

        Raises:
            ClientError: `dataset_too_large` (422).
        """
        params = given({"against": against, "limit": limit})
        path = path_of("datasets", name, "versions", version, "diff")
        return self._connection.request(DatasetDiff, "GET", path, params=params, timeout=READING)

    def download(self, name: str, version: int, target: Path | str) -> int:
        """Save a version's file; ``target`` is created only once the download is complete and has the right SHA-256.

        Returns:
            Its size in bytes.

        Raises:
            ClientError: `checksum_mismatch`; `disk_full` or `not_writable`.
        """
        target = Path(target)
        wanted = self.retrieve(name, version)
        part = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        path = path_of("files", wanted["file"], "content")
        with writing(target):
            try:
                headers = {"accept-encoding": "identity"}
                with self._connection.stream("GET", path, headers=headers) as response, part.open("wb") as out:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        out.write(chunk)
                if digest.hexdigest() != wanted["sha256"]:
                    sha256 = wanted["sha256"]
                    message = f"The download of {name}@{version} does not have its SHA-256, {sha256}; try again."
                    raise ClientError(0, "checksum_mismatch", message)
                part.replace(target)
                return wanted["bytes"]
            finally:
                part.unlink(missing_ok=True)
