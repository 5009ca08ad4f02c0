"""`client.ladders`: should one fine-tune at all?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.client.connection import LONG, Resource, given, path_of
from service.client.types.ladders import Ladder, LadderEvent, LadderReport


class Ladders(Resource):
    """`client.ladders`. Needs a key with the scopes `train`, `infer` and `adapters`.

    Every method raises ClientError: `not_found` (404) for a ladder that does not exist or is hidden from the key,
    `trainer_unavailable` (503) while the trainer is down.
    """

    def create(
        self,
        training_file: str,
        adapter: str,
        *,
        vector_store_ids: Sequence[str] | None = None,
        instructions: Sequence[str] | None = None,
        target: float | None = None,
        quick: bool | None = None,
        lora: bool | None = None,
        teacher: str | None = None,
        unlabelled_file: str | None = None,
        requests_per_month: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Ladder:
        """Measure, rung by rung, how little answers like the examples.

        Args:
            training_file: The id of an uploaded file, or a dataset (`support@2`).
            adapter: The name of the adapter that the rungs become versions of.
            vector_store_ids: Stores with documents that answers may depend on.
            instructions: System prompts to try, at most four, beside those that are made from the data.
            target: The score that is good enough, 0 to 1.
            quick: Fewer questions and examples.
            lora: False: no LoRA is trained.
            teacher: Who answers the prompts of ``unlabelled_file`` for a LoRA to learn from: the base, a version, or an
                outside endpoint (`client.teachers`).
            unlabelled_file: The id of a file with prompts, or a dataset.
            requests_per_month: Expected traffic, for the cost of a year.

        Raises:
            ClientError: `too_many_ladders` (429).
        """
        body = given(
            {
                "training_file": training_file,
                "adapter": adapter,
                "vector_store_ids": vector_store_ids,
                "instructions": instructions,
                "target": target,
                "quick": quick,
                "lora": lora,
                "teacher": teacher,
                "unlabelled_file": unlabelled_file,
                "requests_per_month": requests_per_month,
                "metadata": metadata,
            }
        )
        return self._connection.request(Ladder, "POST", path_of("ladders"), json=body, timeout=LONG)

    def list(self) -> Iterator[Ladder]:
        """The project's ladders, newest first."""
        return self._connection.pages(Ladder, path_of("ladders"))

    def retrieve(self, ladder_id: str) -> Ladder:
        """One ladder."""
        return self._connection.request(Ladder, "GET", path_of("ladders", ladder_id))

    def cancel(self, ladder_id: str) -> Ladder:
        """Cancel it and its child runs; the versions that it made stay."""
        return self._connection.request(Ladder, "POST", path_of("ladders", ladder_id, "cancel"), timeout=LONG)

    def pause(self, ladder_id: str) -> Ladder:
        """Pause it and its child runs."""
        return self._connection.request(Ladder, "POST", path_of("ladders", ladder_id, "pause"), timeout=LONG)

    def resume(self, ladder_id: str) -> Ladder:
        """Resume it after a pause."""
        return self._connection.request(Ladder, "POST", path_of("ladders", ladder_id, "resume"), timeout=LONG)

    def events(self, ladder_id: str, *, limit: int = 20) -> Sequence[LadderEvent]:
        """Its last events, newest first."""
        path, params = path_of("ladders", ladder_id, "events"), {"limit": limit}
        page = self._connection.request(dict[str, Any], "GET", path, params=params)
        return [*page["data"]]

    def report(self, ladder_id: str) -> LadderReport:
        """The report of a ladder that has succeeded. Raises ClientError `not_finished` (409)."""
        return self._connection.request(LadderReport, "GET", path_of("ladders", ladder_id, "report"), timeout=LONG)

    def report_html(self, ladder_id: str) -> bytes:
        """The report as one HTML page that loads nothing else. Raises ClientError `not_finished` (409)."""
        return self._connection.checked("GET", path_of("ladders", ladder_id, "report.html"), timeout=LONG).content
