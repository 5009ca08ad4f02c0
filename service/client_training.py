"""The client's calls for files and fine-tuning jobs; they need a key with the scope `train` (a new job more)."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from service.client_caller import Caller
from service.client_wire import ClientError, JsonObject, event_of, events, refusal

UPLOADING: Final = httpx.Timeout(60, connect=5, write=120)
LOOKING: Final = httpx.Timeout(60, connect=5, read=600)
"""A data check: the trainer renders every example."""
FOLLOWING: Final = httpx.Timeout(30, connect=5, read=600)
"""Between two events of a job; the stream says something at least now and then."""
AWAY_S: Final = 600.0
"""How long a job is followed on while the gateway, or the stream of its events, is away."""
PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Between two tries; the last is repeated."""
PASSING: Final = frozenset({0, 502, 503, 504})
"""Statuses that say nothing about the job: a gateway that starts again, or a proxy before it."""
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
JOBS: Final = "/v1/fine_tuning/jobs"


class TrainingCalls(Caller):
    """What ``HatrackClient`` can do with files and jobs; every method raises ClientError."""

    # files

    def upload_file(self, path: Path, purpose: str = "fine-tune") -> JsonObject:
        """Upload a file, streamed; the file object, whose `id` jobs take."""
        with path.open("rb") as file:
            return self._object(
                "POST", "/v1/files", data={"purpose": purpose}, files={"file": (path.name, file)}, timeout=UPLOADING
            )

    def check_data(self, path: Path, **options: Any) -> JsonObject:
        """The quality report on a data file, which is not kept.

        Args:
            options: `max_length`, `strict`, `drop_long`.
        """
        with path.open("rb") as file:
            params = {name: value for name, value in options.items() if value is not None}
            return self._object(
                "POST",
                "/v1/fine_tuning/data_check",
                params=params,
                files={"file": (path.name, file)},
                timeout=LOOKING,
            )

    # jobs

    def create_job(
        self,
        training_file: str,
        *,
        model: str,
        name: str,
        validation_file: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> JsonObject:
        """Make a job that trains the adapter ``name``.

        Args:
            training_file: The id of an uploaded file.
            model: The base's name, or `name@version` to train on from.
            hyperparameters: Ours and OpenAI's; what is left out is chosen from the data.
        """
        body: JsonObject = {
            "model": model,
            "training_file": training_file,
            "validation_file": validation_file,
            "seed": seed,
            "metadata": {"adapter": name, **(metadata or {})},
            "method": {"type": "supervised", "supervised": {"hyperparameters": dict(hyperparameters or {})}},
        }
        return self._object("POST", JOBS, json={key: value for key, value in body.items() if value is not None})

    def jobs(self) -> Iterator[JsonObject]:
        """All jobs, newest first."""
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = self._object("GET", JOBS, params=params)
            data = page.get("data", [])
            yield from data
            if not page.get("has_more") or not data or data[-1]["id"] == params.get("after"):
                return
            params["after"] = data[-1]["id"]

    def job(self, job_id: str) -> JsonObject:
        """One job."""
        return self._object("GET", _job(job_id))

    def change_job(self, job_id: str, verb: str) -> JsonObject:
        """`cancel`, `pause` or `resume` a job; it is done within a step."""
        return self._object("POST", f"{_job(job_id)}/{verb}")

    def job_report(self, job_id: str) -> JsonObject:
        """The quality report on a job's data."""
        return self._object("GET", f"{_job(job_id)}/report")

    def job_events(self, job_id: str) -> Generator[JsonObject, None, None]:
        """A job's events from its first to its last, as they come; ends when the job has ended.

        A connection that breaks is taken up again where it was; so it is while the gateway is away, for AWAY_S.
        """
        last: str | None = None
        outage = _Outage()
        while True:
            try:
                for event in self._events_after(job_id, last):
                    if event is None:
                        return
                    last = str(event.get("id") or last)
                    outage = _Outage()
                    yield event
            except ClientError as error:
                if last is None:
                    raise
                outage.note(error)
            try:
                if self.job(job_id).get("status") in ENDED:
                    return
            except ClientError as error:
                outage.note(error)
            outage.wait()

    def _events_after(self, job_id: str, last: str | None) -> Generator[JsonObject | None, None, None]:
        """One stream's events, and None once the job has ended. Raises ClientError."""
        headers = {"last-event-id": last} if last else {}
        with (
            self._translated(),
            self._http.stream(
                "GET", f"{_job(job_id)}/events", params={"stream": "true"}, headers=headers, timeout=FOLLOWING
            ) as response,
        ):
            if not response.is_success:
                response.read()
                raise refusal(response)
            for data in events(response.iter_bytes()):
                yield None if data == b"[DONE]" else event_of(data)

    # what came of them

    def lineage(self, name: str, version: int) -> JsonObject:
        """Where a version comes from: data, recipe, base, packages, cost; empty where its uploader said nothing."""
        found = self._object("GET", f"/v1/adapters/{quote(name, safe='')}/versions/{version}")
        metadata = found.get("metadata")
        return dict(metadata) if isinstance(metadata, dict) else {}


class _Outage:
    """The time since a job's events came last: tries with pauses that grow, until AWAY_S have passed."""

    def __init__(self) -> None:
        self._tries = 0
        self._since: float | None = None

    def note(self, error: ClientError) -> None:
        """A try has failed. Raises the error where no other try could help, or they have lasted long enough."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if error.status not in PASSING or now - self._since >= AWAY_S:
            raise error

    def wait(self) -> None:
        """Stand still until the next try."""
        time.sleep(PAUSES_S[min(self._tries, len(PAUSES_S) - 1)])
        self._tries += 1


def _job(job_id: str) -> str:
    return f"{JOBS}/{quote(job_id, safe='')}"


def pairs(text: Mapping[str, str]) -> dict[str, Any]:
    """Hyperparameters as a person types them: numbers, true and false as JSON has them, everything else as text."""
    found: dict[str, Any] = {}
    for name, value in text.items():
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
