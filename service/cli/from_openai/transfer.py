"""Does what the plan says: downloads files from OpenAI, uploads them, and creates the jobs, oldest first."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from service.cli.from_openai.training_file import convert
from service.client import CannotConnect, ClientError, HatrackClient
from service.client.output import writing
from service.client.upload import file_sha256

if TYPE_CHECKING:
    from service.cli.from_openai.plan import PlannedJob
    from service.client.openai_account import OpenAIAccount, OpenAIFile

PURPOSE: Final = "fine-tune"
ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
OWN_FAULT: Final = frozenset(
    {
        *("openai_not_found", "openai_forbidden", "openai_refused", "openai_incomplete"),
        *("vision_unsupported", "content_unsupported"),
    }
)
"""Codes, beside those of the gateway's 400s, that are about one job: the others may still be taken."""
BAD_REQUESTS: Final = frozenset({400, 409, 413, 422})


class Bar(Protocol):
    """Shows how far one file has come."""

    def __call__(self, done: int) -> None:
        """Bytes so far."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one of OpenAI's jobs.

    Attributes:
        job: The id of the job here; None if there is none.
        reason: Why there is none.
    """

    planned: PlannedJob
    result: Literal["created", "here", "not_taken", "failed"]
    job: str | None = None
    reason: str | None = None


class Interrupted(ClientError):
    """An error that ends the import before its last job.

    Args:
        error: What went wrong.
        outcomes: What was done before.
        left: How many jobs were not created.
    """

    def __init__(self, error: ClientError, outcomes: Sequence[Outcome], left: int) -> None:
        made = sum(outcome.result == "created" for outcome in outcomes)
        rest = f"jobs created: {made}, not yet: {left}; run the command again for the rest"
        super().__init__(error.status, error.code, f"{error.message} ({rest})", error.param)
        self.outcomes = outcomes


class Transfer:
    """Creates the jobs of a plan.

    Args:
        folder: Where downloaded files are; what is complete there is not downloaded again.
        base: The name of the gateway's base model.
        bar: Begins to show a file: its description, and its bytes.
        say: Tells a person what was done.
    """

    def __init__(
        self,
        client: HatrackClient,
        account: OpenAIAccount,
        folder: Path,
        base: str,
        *,
        bar: Callable[[str, int], Bar],
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._account = account
        self._folder = folder
        self._base = base
        self._bar = bar
        self._say = say
        self._uploaded: dict[str, str] = {}
        """Ids of files here by OpenAI's."""
        self._by_hash: dict[str, str] | None = None
        """Ids of the gateway's training files by the hash of their content; None before they were asked for."""

    def run(self, plan: Sequence[PlannedJob]) -> list[Outcome]:
        """Create the jobs, in their order.

        Raises:
            Interrupted: One failed for a reason that the others share, or the disk is full.
        """
        outcomes: list[Outcome] = []
        for at, planned in enumerate(plan):
            if planned.here is not None:
                outcomes.append(Outcome(planned, "here", planned.here["id"]))
            elif planned.obstacle is not None or planned.training_file is None:
                outcomes.append(Outcome(planned, "not_taken", reason=planned.obstacle))
            else:
                try:
                    outcomes.append(self._take(planned, planned.training_file))
                except ClientError as error:
                    if not _is_about_one_job(error):
                        left = sum(later.wanted for later in plan[at:])
                        raise Interrupted(error, outcomes, left) from error
                    outcomes.append(Outcome(planned, "failed", reason=error.message))
                    self._say(f"{planned.source['id']} is not here: {error.message}")
        return outcomes

    def _take(self, planned: PlannedJob, training_file: OpenAIFile) -> Outcome:
        self._keep(planned.source)
        job = self._client.fine_tuning.jobs.create(
            self._file(training_file),
            model=self._base,
            adapter=planned.adapter,
            validation_file=self._file(planned.validation_file) if planned.validation_file is not None else None,
            method=planned.method,
            hyperparameters=planned.hyperparameters,
            metadata=planned.metadata,
            seed=planned.seed,
        )
        self._say(f"{planned.source['id']} is {job['id']}, for the adapter {planned.adapter}")
        return Outcome(planned, "created", job["id"])

    def _keep(self, job: Any) -> None:
        """Save OpenAI's whole job beside its files, with the fields that have no place here."""
        with writing(self._folder):
            path = self._path(job["id"], ".json")
            path.write_text(json.dumps(job, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _file(self, file: OpenAIFile) -> str:
        """The id here of one of OpenAI's files, which is uploaded unless a file with its content is here."""
        if file["id"] in self._uploaded:
            return self._uploaded[file["id"]]
        path = self._downloaded(file)
        converted = path.with_suffix(".converted")
        with writing(self._folder):
            try:
                joined = convert(path, converted)
                source = converted if joined else path
                if joined:
                    self._say(f"{file['id']}: the text of {joined} messages was in parts, and is in one now")
                self._uploaded[file["id"]] = self._upload(source, file)
            finally:
                converted.unlink(missing_ok=True)
        return self._uploaded[file["id"]]

    def _path(self, name: str, suffix: str) -> Path:
        """Where what has this id at OpenAI is kept. Raises ClientError `not_openai` for what cannot be an id."""
        if ID.fullmatch(name) is None:
            raise ClientError(0, "not_openai", f"{name[:80]!r} is not an id of OpenAI's; check --openai-url.")
        return self._folder / f"{name}{suffix}"

    def _downloaded(self, file: OpenAIFile) -> Path:
        path = self._path(file["id"], ".jsonl")
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            show = self._bar(f"{file['filename']} from OpenAI", file["bytes"])
            self._account.download(file, path, show)
        return path

    def _upload(self, source: Path, file: OpenAIFile) -> str:
        if self._by_hash is None:
            self._by_hash = {here["sha256"]: here["id"] for here in self._client.files.list(PURPOSE)}
        sha256 = file_sha256(source)
        if sha256 not in self._by_hash:
            show, sent = self._bar(f"{file['filename']} to the gateway", source.stat().st_size), 0

            def progress(count: int) -> None:
                nonlocal sent
                sent += count
                show(sent)

            name = file["filename"]
            uploaded = self._client.files.create(source, PURPOSE, filename=name, progress=progress)
            self._by_hash[sha256] = uploaded["id"]
        return self._by_hash[sha256]


def _is_about_one_job(error: ClientError) -> bool:
    if isinstance(error, CannotConnect):
        return False
    return error.status in BAD_REQUESTS or error.code in OWN_FAULT
