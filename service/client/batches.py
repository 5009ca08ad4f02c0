"""`client.batches`: inference requests in a file, answered at background priority within a day."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final

from service.client.connection import Resource, given, path_of
from service.client.types.batches import Batch, BatchEndpoint

POLL_S: Final = 2.0
UNFINISHED: Final = ("validating", "in_progress", "finalizing", "cancelling")
"""Statuses of batches that have not ended."""


class Batches(Resource):
    """`client.batches`. Needs a key with the scope `infer`.

    Every method raises ClientError: `batch_not_found` (404) for what does not exist or is hidden from the key.
    """

    def create(
        self,
        input_file_id: str,
        endpoint: BatchEndpoint,
        *,
        metadata: Mapping[str, str] | None = None,
        output_expires_after_s: int | None = None,
    ) -> Batch:
        """Create a batch of an uploaded file with the purpose `batch`.

        Args:
            endpoint: The `url` of every line.
            output_expires_after_s: When its result files expire, s after they are made. None: never.

        Raises:
            ClientError: `file_not_found` (404); `too_many_batches` (429). What is wrong with the file's lines is in the
                batch's `errors`.
        """
        body = given({"input_file_id": input_file_id, "endpoint": endpoint, "metadata": metadata})
        if output_expires_after_s is not None:
            body["output_expires_after"] = {"anchor": "created_at", "seconds": output_expires_after_s}
        body["completion_window"] = "24h"
        return self._connection.request(Batch, "POST", path_of("batches"), json=body)

    def list(self) -> Iterator[Batch]:
        """All batches that the key may see, newest first."""
        return self._connection.pages(Batch, path_of("batches"))

    def retrieve(self, batch_id: str) -> Batch:
        """One batch."""
        return self._connection.request(Batch, "GET", path_of("batches", batch_id))

    def cancel(self, batch_id: str) -> Batch:
        """Cancel a batch; its answers so far become its output file.

        Raises:
            ClientError: `batch_final` (409) if it has ended, or is about to.
        """
        return self._connection.request(Batch, "POST", path_of("batches", batch_id, "cancel"))

    def poll(self, batch_id: str) -> Iterator[Batch]:
        """The batch, every two seconds, until it has ended."""
        while True:
            batch = self.retrieve(batch_id)
            yield batch
            if batch.get("status") not in UNFINISHED:
                return
            time.sleep(POLL_S)
