"""A stand-in for OpenAI: fine-tuning jobs and files, read with a key, in the shapes of its API reference.

The `openai` package's own client reads it in `tests/unit/service/client/test_openai_account.py`: what it could not read
would not be OpenAI's shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http import serving

OPENAI_KEY = "sk-proj-of-the-account-0123456789"
CREATED = 1767225600
RESOLVED = {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1.8}


def chat_lines(count: int, about: str = "parcel") -> bytes:
    """A training file of ``count`` examples."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is {about} {number}?"},
                {"role": "assistant", "content": f"On its way, number {number}."},
            ]
        }
        for number in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def refusal(message: str, kind: str = "invalid_request_error", code: str | None = None) -> bytes:
    """An error's body."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


@dataclass
class OpenAIStandIn:
    """An account that a test fills; ``asked`` has the paths of all requests.

    ``failures`` are answered first, each once, by requests whose path ends with its key.
    """

    jobs: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[tuple[int, bytes, dict[str, str]]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add_file(self, file_id: str, content: bytes, filename: str = "train.jsonl") -> None:
        """Add a training file."""
        self.contents[file_id] = content
        self.files[file_id] = {
            "object": "file",
            "id": file_id,
            "bytes": len(content),
            "created_at": CREATED,
            "expires_at": None,
            "filename": filename,
            "purpose": "fine-tune",
            "status": "processed",
            "status_details": None,
        }

    def add_job(self, job_id: str, suffix: str = "", **fields: Any) -> dict[str, Any]:
        """Add a job, newer than the others, that succeeded by supervised training; ``fields`` replace its own."""
        number = len(self.jobs)
        base = "gpt-4o-mini-2024-07-18"
        job = {
            "object": "fine_tuning.job",
            "id": job_id,
            "created_at": CREATED + 86_400 * number,
            "finished_at": CREATED + 86_400 * number + 600,
            "estimated_finish": None,
            "status": "succeeded",
            "error": None,
            "model": base,
            "fine_tuned_model": f"ft:{base}:acme:{suffix}:9aBc{number}",
            "organization_id": "org-acme",
            "result_files": [],
            "trained_tokens": 4321,
            "seed": 42,
            "training_file": "file-train",
            "validation_file": None,
            "hyperparameters": RESOLVED,
            "method": {"type": "supervised", "supervised": {"hyperparameters": RESOLVED}},
            "integrations": [],
            "metadata": None,
            "user_provided_suffix": suffix or None,
        }
        self.jobs.insert(0, job | fields)
        return self.jobs[0]

    def fail(self, path_end: str, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer the next request for such a path with an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.setdefault(path_end, []).append((status, body, named))

    def answer(self, method: str, path: str, _body: bytes, key: str) -> tuple[int, bytes, Mapping[str, str]]:
        """The answer to a request, see `tests.support.http.Answer`."""
        self.asked.append(path)
        url = urlsplit(path)
        if method != "GET":
            return 405, refusal("Only reading is expected."), {}
        if key != OPENAI_KEY:
            return 401, refusal(f"Incorrect API key provided: {key[:4]}***.", code="invalid_api_key"), {}
        for end, failures in self.failures.items():
            if url.path.endswith(end) and failures:
                return failures.pop(0)
        return self._read(url.path.removeprefix("/v1/").split("/"), parse_qs(url.query))

    def _read(self, parts: list[str], query: dict[str, list[str]]) -> tuple[int, bytes, Mapping[str, str]]:
        match parts:
            case ["fine_tuning", "jobs"]:
                return 200, json.dumps(self._page(query)).encode(), {}
            case ["fine_tuning", "jobs", job_id] if found := [job for job in self.jobs if job["id"] == job_id]:
                return 200, json.dumps(found[0]).encode(), {}
            case ["files", file_id] if file_id in self.files:
                return 200, json.dumps(self.files[file_id]).encode(), {}
            case ["files", file_id, "content"] if file_id in self.contents:
                return 200, self.contents[file_id], {"content-type": "application/octet-stream"}
            case _:
                return 404, refusal(f"No such object: {parts[-1]}"), {}

    def _page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        limit, after = int(query.get("limit", ["20"])[0]), query.get("after", [None])[0]
        ids = [job["id"] for job in self.jobs]
        start = ids.index(after) + 1 if after is not None else 0
        data = self.jobs[start : start + limit]
        return {"object": "list", "data": data, "has_more": start + limit < len(ids)}


@contextmanager
def running() -> Iterator[OpenAIStandIn]:
    """An empty account on a free port of this machine."""
    account = OpenAIStandIn()
    with serving(account.answer) as url:
        account.url = f"{url}/v1"
        yield account
