"""`client.files` and `client.vector_stores`: uploads, and the stores that documents are indexed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import httpx

from service.client.connection import CONNECT_S, LONG, Connection, Resource, given, path_of
from service.client.types.files import (
    DeletedFile,
    DeletedVectorStore,
    FileObject,
    Purpose,
    RemovedVectorStoreFile,
    SearchResult,
    SearchResults,
    VectorStore,
    VectorStoreFile,
    VectorStoreFileBatch,
)
from service.client.upload import CountedFile, not_readable
from service.client.wire import ClientError

UPLOADING: Final = httpx.Timeout(60, connect=CONNECT_S, write=120)
POLL_S: Final = 0.5
MAX_BATCH: Final = 2000
"""Files in one request."""
SIMILARITY: Final = 0.7
"""How like a store's name must be, from 0 to 1, to be suggested."""


class Files(Resource):
    """`client.files`: uploaded files. Needs a key with the scope `train` or `knowledge`; a batch's need `infer`.

    Every method raises ClientError: `file_not_found` (404) for what does not exist or is hidden from the key.
    """

    def create(
        self,
        path: Path | str,
        purpose: Purpose = "fine-tune",
        *,
        filename: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> FileObject:
        """Upload a file, streamed from disk.

        Args:
            purpose: `fine-tune` (examples to train on; checked line by line), `evals` (examples to judge on),
                `assistants` or `user_data` (documents), `batch` (requests of a batch).
            filename: What the gateway calls it. None: the name of ``path``.
            progress: Called with the number of bytes sent since its last call.

        Raises:
            ClientError: `not_readable` before anything is sent; `invalid_training_file` (400).
        """
        try:
            file = CountedFile(path, progress)
        except OSError as error:
            raise not_readable(error) from error
        with file:
            part = {"file": (filename or Path(path).name, file)}
            return self._connection.request(
                FileObject, "POST", path_of("files"), data={"purpose": purpose}, files=part, timeout=UPLOADING
            )

    def list(self, purpose: Purpose | None = None) -> Iterator[FileObject]:
        """All files, or those of one purpose, newest first."""
        return self._connection.pages(FileObject, path_of("files"), {"purpose": purpose})

    def retrieve(self, file_id: str) -> FileObject:
        """One file, without its content."""
        return self._connection.request(FileObject, "GET", path_of("files", file_id))

    def content(self, file_id: str) -> bytes:
        """The bytes of a file."""
        return self._connection.checked("GET", path_of("files", file_id, "content"), timeout=LONG).content

    def download(self, file_id: str, target: Path | str) -> int:
        """Save the bytes of a file; ``target`` is created only once the download is complete. Returns their number."""
        return self._connection.download(path_of("files", file_id, "content"), target)

    def delete(self, file_id: str) -> DeletedFile:
        """Delete a file. Its bytes stay as long as a version, vector store, job or batch needs them.

        Raises:
            ClientError: `file_in_use` (409) if it is a version of a dataset.
        """
        return self._connection.request(DeletedFile, "DELETE", path_of("files", file_id))


class VectorStores(Resource):
    """`client.vector_stores`. Needs a key with the scope `knowledge`; a search can do with `infer`.

    Every method raises ClientError: `vector_store_not_found` (404) for what does not exist or is hidden from the key.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.files = VectorStoreFiles(connection)
        self.file_batches = VectorStoreFileBatches(connection)

    def create(self, name: str, *, description: str | None = None) -> VectorStore:
        """Create an empty store."""
        body = given({"name": name, "description": description})
        return self._connection.request(VectorStore, "POST", path_of("vector_stores"), json=body)

    def list(self) -> Iterator[VectorStore]:
        """All stores that the key may read, newest first."""
        return self._connection.pages(VectorStore, path_of("vector_stores"))

    def retrieve(self, store_id: str) -> VectorStore:
        """The store with an id."""
        return self._connection.request(VectorStore, "GET", path_of("vector_stores", store_id))

    def find(self, name: str) -> VectorStore:
        """The store with an id or a name.

        Raises:
            ClientError: `vector_store_not_found` (404); `vector_store_ambiguous` (409) if several have the name.
        """
        if name.startswith("vs_"):
            return self.retrieve(name)
        listed = list(self.list())
        stores = [store for store in listed if store.get("name") == name]
        if len(stores) == 1:
            return stores[0]
        if stores:
            ids = ", ".join(store["id"] for store in stores)
            raise ClientError(
                409, "vector_store_ambiguous", f"Several stores are named {name}; use one of these ids: {ids}."
            )
        similar = get_close_matches(name, [store.get("name") or "" for store in listed], 1, SIMILARITY)
        hint = f" Did you mean `{similar[0]}`?" if similar else ""
        raise ClientError(404, "vector_store_not_found", f"There is no vector store named {name}.{hint}")

    def update(self, store_id: str, *, name: str | None = None, description: str | None = None) -> VectorStore:
        """Change a store's name or description; None leaves it as it is."""
        body = given({"name": name, "description": description})
        return self._connection.request(VectorStore, "POST", path_of("vector_stores", store_id), json=body)

    def delete(self, store_id: str) -> DeletedVectorStore:
        """Delete a store; its files stay in `client.files`."""
        return self._connection.request(DeletedVectorStore, "DELETE", path_of("vector_stores", store_id))

    def search(
        self, store_id: str, query: str, *, max_num_results: int = 5, filters: Mapping[str, Any] | None = None
    ) -> Sequence[SearchResult]:
        """The passages that match best, best first.

        Args:
            max_num_results: 1 to 50.
            filters: OpenAI's filter on the files' attributes, `{"type": "eq", "key": "region", "value": "eu"}`.

        Raises:
            ClientError: `search_timeout` (503).
        """
        body = given({"query": query, "max_num_results": max_num_results, "filters": filters})
        path = path_of("vector_stores", store_id, "search")
        return self._connection.request(SearchResults, "POST", path, json=body)["data"]


class VectorStoreFiles(Resource):
    """`client.vector_stores.files`: the files of a store.

    Every method raises ClientError: `vector_store_not_found` or `vector_store_file_not_found` (404).
    """

    def list(self, store_id: str) -> Iterator[VectorStoreFile]:
        """All files of a store, newest first."""
        return self._connection.pages(VectorStoreFile, path_of("vector_stores", store_id, "files"))

    def retrieve(self, store_id: str, file_id: str) -> VectorStoreFile:
        """A file of a store, with its indexing progress."""
        return self._connection.request(VectorStoreFile, "GET", path_of("vector_stores", store_id, "files", file_id))

    def delete(self, store_id: str, file_id: str) -> RemovedVectorStoreFile:
        """Remove a file from a store; the file itself stays in `client.files`."""
        return self._connection.request(
            RemovedVectorStoreFile, "DELETE", path_of("vector_stores", store_id, "files", file_id)
        )


class VectorStoreFileBatches(Resource):
    """`client.vector_stores.file_batches`: files that are added, and indexed, together.

    Every method raises ClientError: `vector_store_not_found` or `file_batch_not_found` (404).
    """

    def create(
        self, store_id: str, files: Mapping[str, Mapping[str, str | float | bool]]
    ) -> Sequence[VectorStoreFileBatch]:
        """Add files to a store, in batches of at most 2,000; indexing goes on after the call.

        Args:
            files: By file id, the attributes that filters match.
        """
        path = path_of("vector_stores", store_id, "file_batches")
        entries = [{"file_id": file_id, "attributes": dict(attributes)} for file_id, attributes in files.items()]
        return [
            self._connection.request(
                VectorStoreFileBatch, "POST", path, json={"files": entries[start : start + MAX_BATCH]}
            )
            for start in range(0, len(entries), MAX_BATCH)
        ]

    def list_files(self, store_id: str, batch_id: str) -> Iterator[VectorStoreFile]:
        """All files of a batch, newest first."""
        path = path_of("vector_stores", store_id, "file_batches", batch_id, "files")
        return self._connection.pages(VectorStoreFile, path)

    def poll(self, store_id: str, batch_id: str) -> Iterator[Sequence[VectorStoreFile]]:
        """The files of a batch, twice a second, until none is in progress."""
        while True:
            files = list(self.list_files(store_id, batch_id))
            yield files
            if not any(file.get("status") == "in_progress" for file in files):
                return
            time.sleep(POLL_S)
