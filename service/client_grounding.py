"""The client's calls for vector stores; they need a key with the scope `knowledge` (a search: or `infer`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from service.client_caller import Caller
from service.client_upload import CountedFile
from service.client_wire import ClientError, JsonObject

STORES: Final = "/v1/vector_stores"
UPLOADING: Final = httpx.Timeout(60, connect=5, write=120)
SEARCHING: Final = httpx.Timeout(30, connect=5)
PAGE: Final = 100
POLL_S: Final = 0.5
MAX_BATCH: Final = 2000
Attributes = Mapping[str, str | float | bool]


class GroundingCalls(Caller):
    """What ``HatrackClient`` can do with vector stores; every method raises ClientError."""

    # stores

    def create_store(self, name: str, *, description: str | None = None) -> JsonObject:
        """Make an empty store."""
        body = {"name": name, "description": description}
        return self._object("POST", STORES, json={key: value for key, value in body.items() if value is not None})

    def stores(self) -> Iterator[JsonObject]:
        """All stores that the key may read, newest first."""
        return self._pages(STORES)

    def store(self, name: str) -> JsonObject:
        """The store of that id, else the one of that name.

        Raises:
            ClientError: `vector_store_not_found` or, where several have the name, `vector_store_ambiguous`.
        """
        if name.startswith("vs_"):
            return self._object("GET", _store(name))
        found = [store for store in self.stores() if store.get("name") == name]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(str(store["id"]) for store in found)
            raise ClientError(409, "vector_store_ambiguous", f"Several stores are named {name}: say which of {ids}.")
        raise ClientError(404, "vector_store_not_found", f"There is no vector store named {name}.")

    def delete_store(self, store_id: str) -> JsonObject:
        """Delete a store; the files stay."""
        return self._object("DELETE", _store(store_id))

    def search_store(
        self, store_id: str, query: str, *, most: int = 5, filters: Mapping[str, Any] | None = None
    ) -> list[JsonObject]:
        """The passages that fit best, best first."""
        body: JsonObject = {"query": query, "max_num_results": most}
        if filters is not None:
            body["filters"] = dict(filters)
        found = self._object("POST", f"{_store(store_id)}/search", json=body, timeout=SEARCHING)
        return list(found.get("data", []))

    # files

    def upload_document(self, path: Path, name: str, report: Callable[[int], None] = lambda size: None) -> JsonObject:
        """Upload a document under a name; ``report`` is told of every piece, in bytes."""
        with CountedFile(path, report) as file:
            return self._object(
                "POST", "/v1/files", data={"purpose": "assistants"}, files={"file": (name, file)}, timeout=UPLOADING
            )

    def add_to_store(self, store_id: str, files: Mapping[str, Attributes]) -> list[JsonObject]:
        """Put files, by their ids, into a store with their attributes, in batches; the batches."""
        drafts = [{"file_id": file_id, "attributes": dict(attributes)} for file_id, attributes in files.items()]
        return [
            self._object("POST", f"{_store(store_id)}/file_batches", json={"files": drafts[start : start + MAX_BATCH]})
            for start in range(0, len(drafts), MAX_BATCH)
        ]

    def store_files(self, store_id: str) -> Iterator[JsonObject]:
        """All files of a store, newest first."""
        return self._pages(f"{_store(store_id)}/files")

    def batch_files(self, store_id: str, batch_id: str) -> Iterator[JsonObject]:
        """All files of a batch."""
        return self._pages(f"{_store(store_id)}/file_batches/{quote(batch_id, safe='')}/files")

    def watch_batch(self, store_id: str, batch_id: str) -> Iterator[list[JsonObject]]:
        """A batch's files again and again, until none is in progress."""
        while True:
            files = list(self.batch_files(store_id, batch_id))
            yield files
            if not any(file.get("status") == "in_progress" for file in files):
                return
            time.sleep(POLL_S)

    def remove_from_store(self, store_id: str, file_id: str) -> JsonObject:
        """Take a file out of a store."""
        return self._object("DELETE", f"{_store(store_id)}/files/{quote(file_id, safe='')}")

    def delete_file(self, file_id: str) -> JsonObject:
        """Take a file off the list of files."""
        return self._object("DELETE", f"/v1/files/{quote(file_id, safe='')}")

    def _pages(self, path: str) -> Iterator[JsonObject]:
        params: dict[str, Any] = {"limit": PAGE}
        while True:
            page = self._object("GET", path, params=params)
            data = page.get("data", [])
            yield from data
            if not page.get("has_more") or not data or data[-1]["id"] == params.get("after"):
                return
            params["after"] = data[-1]["id"]


def _store(store_id: str) -> str:
    return f"{STORES}/{quote(store_id, safe='')}"
