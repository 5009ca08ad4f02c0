"""`client.fine_tuning`: fine-tuning jobs and the check of their data. Needs the scope `train` (a new job also `infer`
and `adapters`)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import httpx

from adapters.names import parse_dataset, parse_reference
from service.client.connection import CONNECT_S, Connection, Resource, given, path_of
from service.client.types.adapters import AdapterVersion
from service.client.types.costs import JobEstimate
from service.client.types.data import DataCheck
from service.client.types.datasets import DatasetVersion
from service.client.types.files import FileObject
from service.client.types.training import (
    FineTuningJob,
    FineTuningJobCheckpoint,
    FineTuningJobEvent,
    Integration,
)
from service.client.upload import CountedFile, not_readable
from service.client.wire import FINAL_STATUSES, REBASE, ClientError, event_of, events

CHECKING: Final = httpx.Timeout(60, connect=CONNECT_S, read=600)
"""A data check: the trainer renders every example."""
FOLLOWING: Final = httpx.Timeout(30, connect=CONNECT_S, read=600)
"""Between two events of a job; the stream sends something at least now and then."""
MAX_OUTAGE_S: Final = 600.0
"""How long `stream_events` waits for a gateway, or its stream of events, that is away."""
PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Between two tries; the last is repeated."""
TRANSIENT: Final = frozenset({0, 502, 503, 504})
"""Statuses that say nothing about the job: a restarting gateway, or a proxy in front of it."""
NOT_FOUND: Final = 404
OF_ONE_BASE: Final = frozenset({"learning_rate", "target_modules"})
"""Hyperparameters that say nothing of another base."""
OF_PARENT: Final = frozenset({"lora_rank", "lora_alpha", "rslora"})
"""Hyperparameters that a job takes from the version that it continues."""
VERDICT: Final = "hatrack_verdict"
"""The key in a job's metadata that the trainer adds."""


class FineTuning(Resource):
    """`client.fine_tuning`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.jobs = FineTuningJobs(connection)

    def check_data(
        self,
        path: Path | str,
        *,
        max_length: int | None = None,
        strict: bool = False,
        drop_long: bool = False,
    ) -> DataCheck:
        """The quality report on a data file, which is uploaded but not kept. Raises ClientError.

        Args:
            max_length: Longest example, in tokens. None: the engine's context.
            strict: Treat warnings as reasons to refuse.
            drop_long: Leave longer examples out instead of refusing them.
        """
        options = {"max_length": max_length, "strict": strict or None, "drop_long": drop_long or None}
        try:
            file = CountedFile(path, None)
        except OSError as error:
            raise not_readable(error) from error
        with file:
            return self._connection.request(
                DataCheck,
                "POST",
                path_of("fine_tuning", "data_check"),
                params=given(options),
                files={"file": (Path(path).name, file)},
                timeout=CHECKING,
            )


class FineTuningJobs(Resource):
    """`client.fine_tuning.jobs`. Every method raises ClientError: `not_found` (404) for a job that does not exist or is
    hidden from the key, `trainer_unavailable` (503) while the trainer is down."""

    def create(
        self,
        training_file: str,
        *,
        model: str,
        adapter: str,
        validation_file: str | None = None,
        method: Literal["supervised", "dpo"] = "supervised",
        hyperparameters: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        seed: int | None = None,
        integrations: Sequence[Integration] | None = None,
    ) -> FineTuningJob:
        """Start training a new version of an adapter.

        Args:
            training_file: The id of an uploaded file, or a dataset: `support@3`, or `support` for its newest version.
            model: The base model's name, or the version to train on from, `brand-voice@3`.
            adapter: The adapter that the version becomes part of.
            validation_file: The same of held-out examples. None: some of the training file's are held out.
            method: `dpo` trains on pairs of answers, one of them preferred.
            hyperparameters: OpenAI's and Hatrack's; a missing one is chosen from the data.
            seed: For the order of examples, sampling and initial weights.
            integrations: Experiment trackers of the operator's that the job is sent to.

        Raises:
            ClientError: `unsupported_value`, `insufficient_memory`, `integration_unavailable` (400) or `too_many_jobs`
                (429).
        """
        body = _body(training_file, model, adapter, validation_file, method, hyperparameters, metadata, seed)
        if integrations is not None:
            body["integrations"] = list(integrations)
        return self._connection.request(FineTuningJob, "POST", path_of("fine_tuning", "jobs"), json=body)

    def estimate(
        self,
        training_file: str,
        *,
        model: str,
        adapter: str,
        validation_file: str | None = None,
        method: Literal["supervised", "dpo"] = "supervised",
        hyperparameters: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> JobEstimate:
        """What a job with these arguments (see `create`) will take and cost. Nothing is created.

        The speed is that of past jobs, or is measured now by a few steps, which may take a minute.
        """
        body = _body(training_file, model, adapter, validation_file, method, hyperparameters, metadata, seed)
        return self._connection.request(
            JobEstimate, "POST", path_of("fine_tuning", "jobs", "estimate"), json=body, timeout=CHECKING
        )

    def repeat(
        self,
        version: str,
        *,
        base: str | None = None,
        start: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> FineTuningJob:
        """Train a version's recipe again: the same data, method, resolved hyperparameters, seed and base, as a new job.

        It becomes the adapter's next version; where all weights and settings come out equal to the bit, the job's
        result is the version itself.

        Args:
            version: `brand-voice@3`.
            base: Another base to train for; then what was left to the trainer is chosen for that one, and so are the
                learning rate and the modules, which mean nothing on another. The same examples are held out.
            start: A version on ``base`` that is continued, in the place of the one that the job continued; its rank and
                modules are kept. None: it is trained from ``base`` itself.
            metadata: Further metadata of the new job.

        Raises:
            ClientError: `version_missing` for a name without a version; `not_trained_here` if no job has trained it;
                `job_gone` or `data_gone` if its job, or a file of its data, no longer exists.
            adapters.errors.AdapterError: The reference is malformed.
        """
        target = parse_reference(version)
        if target.version is None:
            raise ClientError(0, "version_missing", f"Name a version, such as {target.name}@3.", "version")
        path = path_of("adapters", target.name, "versions", target.version)
        trained = self._connection.request(AdapterVersion, "GET", path)
        lineage: dict[str, Any] = trained["metadata"].get("lineage") or {}
        job_id = lineage.get("job")
        if not isinstance(job_id, str):
            message = f"{version} was not trained by a job of this gateway, but pushed; there is no recipe to repeat."
            raise ClientError(0, "not_trained_here", message, "version")
        try:
            job = self.retrieve(job_id)
        except ClientError as error:
            if error.status != NOT_FOUND:
                raise
            message = f"{version} was trained by {job_id}, which no longer exists or is hidden from the key."
            raise ClientError(0, "job_gone", message, "version") from error
        body = _request_of(job, {**(lineage.get("datasets") or {})}, target.name, base, start)
        body["metadata"] |= metadata or {}
        for param in ("training_file", "validation_file"):
            if body.get(param) is not None:
                body[param] = self._source(version, str(job.get(param)), str(body[param]))
        return self._connection.request(FineTuningJob, "POST", path_of("fine_tuning", "jobs"), json=given(body))

    def _source(self, version: str, file_id: str, named: str) -> str:
        """How a version's data is named now: by its dataset if that still has the file, else the file's id."""
        if named != file_id:
            reference = parse_dataset(named)
            try:
                path = path_of("datasets", reference.name, "versions", reference.version)
                if self._connection.request(DatasetVersion, "GET", path)["file"] == file_id:
                    return named
            except ClientError as error:
                if error.status != NOT_FOUND:
                    raise
        try:
            return self._connection.request(FileObject, "GET", path_of("files", file_id))["id"]
        except ClientError as error:
            if error.status != NOT_FOUND:
                raise
            what = named if named == file_id else f"{named} ({file_id})"
            message = (
                f"The data of {version}, {what}, was deleted or is hidden from the key; train on a file that exists."
            )
            raise ClientError(0, "data_gone", message, "version") from error

    def list(self) -> Iterator[FineTuningJob]:
        """All jobs, newest first."""
        return self._connection.pages(FineTuningJob, path_of("fine_tuning", "jobs"))

    def retrieve(self, job_id: str) -> FineTuningJob:
        """One job."""
        return self._connection.request(FineTuningJob, "GET", _path(job_id))

    def cancel(self, job_id: str) -> FineTuningJob:
        """End a job within a training step; no version is registered. Raises ClientError `invalid_state` (400)."""
        return self._connection.request(FineTuningJob, "POST", _path(job_id, "cancel"))

    def pause(self, job_id: str) -> FineTuningJob:
        """Stop a job within a training step, with a checkpoint. Raises ClientError `invalid_state` (400)."""
        return self._connection.request(FineTuningJob, "POST", _path(job_id, "pause"))

    def resume(self, job_id: str) -> FineTuningJob:
        """Continue a paused job, in its turn. Raises ClientError `invalid_state` (400)."""
        return self._connection.request(FineTuningJob, "POST", _path(job_id, "resume"))

    def report(self, job_id: str) -> DataCheck:
        """The quality report on a job's data."""
        return self._connection.request(DataCheck, "GET", _path(job_id, "report"))

    def list_checkpoints(self, job_id: str) -> Iterator[FineTuningJobCheckpoint]:
        """A job's checkpoints, newest first."""
        return self._connection.pages(FineTuningJobCheckpoint, _path(job_id, "checkpoints"))

    def list_events(self, job_id: str) -> Iterator[FineTuningJobEvent]:
        """A job's events so far, newest first."""
        return self._connection.pages(FineTuningJobEvent, _path(job_id, "events"))

    def stream_events(self, job_id: str) -> Generator[FineTuningJobEvent, None, None]:
        """A job's events from the first to the last, as they happen; ends when the job has ended.

        A broken connection is resumed where it broke, for as long as the gateway is away, up to 10 minutes.
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
                if self.retrieve(job_id).get("status") in FINAL_STATUSES:
                    return
            except ClientError as error:
                outage.note(error)
            outage.wait()

    def _events_after(self, job_id: str, last: str | None) -> Generator[FineTuningJobEvent | None, None, None]:
        """One stream's events, and None once the job has ended. Raises ClientError."""
        headers = {"last-event-id": last} if last else {}
        path = _path(job_id, "events")
        with self._connection.stream(
            "GET", path, params={"stream": "true"}, headers=headers, timeout=FOLLOWING
        ) as response:
            for data in events(response.iter_bytes()):
                yield None if data == b"[DONE]" else cast(FineTuningJobEvent, event_of(data))


class _Outage:
    """Tries to reach a gateway that is away, with growing pauses, until MAX_OUTAGE_S have passed."""

    def __init__(self) -> None:
        self._tries = 0
        self._since: float | None = None

    def note(self, error: ClientError) -> None:
        """A try has failed. Raises the error if another try cannot help, or the outage has lasted too long."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if error.status not in TRANSIENT or now - self._since >= MAX_OUTAGE_S:
            raise error

    def wait(self) -> None:
        """Sleep until the next try."""
        time.sleep(PAUSES_S[min(self._tries, len(PAUSES_S) - 1)])
        self._tries += 1


def _path(job_id: str, *parts: str) -> str:
    return path_of("fine_tuning", "jobs", job_id, *parts)


def _request_of(
    job: FineTuningJob, datasets: Mapping[str, str], adapter: str, base: str | None, start: str | None
) -> dict[str, Any]:
    """The body that asks for a job again, with the values that were resolved then.

    Args:
        datasets: The datasets that its files were versions of, by the request's field.
        base: Another base, for which only what was requested holds; None: the job's own model.
        start: A version on that base to continue, whose shape is kept; None: the base.
    """
    method = (job.get("method") or {}).get("type") or "supervised"
    details = job["hatrack"]
    resolved: dict[str, Any] = {**job["hyperparameters"]}
    options: dict[str, Any] = {**(details.get("requested") or {})}
    if details.get("plan") is not None and base is None:
        resolved.pop("learning_rate_multiplier", None)  # the rate that it led to is there
        options = {
            name: value for name, value in options.items() if name not in (*resolved, "learning_rate_multiplier")
        }
    else:
        resolved = {}
    if base is not None:
        unfit = OF_ONE_BASE if start is None else OF_ONE_BASE | OF_PARENT
        options = {name: value for name, value in options.items() if name not in unfit}
    left_out = (VERDICT, REBASE, *resolved)
    notes = {name: value for name, value in (job.get("metadata") or {}).items() if name not in left_out}
    if "adapter" not in options:
        notes["adapter"] = adapter
    return {
        "model": job["model"] if base is None else start or base,
        "training_file": datasets.get("training_file", job["training_file"]),
        "validation_file": datasets.get("validation_file", job.get("validation_file")),
        "seed": job["seed"],
        "metadata": notes,
        "method": {"type": method, method: {"hyperparameters": options | resolved}},
    }


def _body(
    training_file: str,
    model: str,
    adapter: str,
    validation_file: str | None,
    method: str,
    hyperparameters: Mapping[str, Any] | None,
    metadata: Mapping[str, str] | None,
    seed: int | None,
) -> dict[str, Any]:
    """The body of a job's creation."""
    body = {
        "model": model,
        "training_file": training_file,
        "validation_file": validation_file,
        "seed": seed,
        "metadata": {"adapter": adapter, **(metadata or {})},
        "method": {"type": method, method: {"hyperparameters": dict(hyperparameters or {})}},
    }
    return given(body)
