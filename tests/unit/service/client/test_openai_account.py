"""Reading an OpenAI account, against a stand-in whose shapes OpenAI's own client reads, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.client import ClientError
from service.client.openai_account import OpenAIAccount
from tests.support.openai_account import OPENAI_KEY, OpenAIStandIn, chat_lines, refusal, running

CONTENT = chat_lines(3000)


@pytest.fixture
def stand_in() -> Iterator[OpenAIStandIn]:
    with running() as account:
        account.add_file("file-train", CONTENT)
        yield account


@pytest.fixture
def waits() -> list[tuple[float, str]]:
    """How long the account was left alone, and why."""
    return []


@pytest.fixture
def account(stand_in: OpenAIStandIn, waits: list[tuple[float, str]]) -> Iterator[OpenAIAccount]:
    """The stand-in's account; it waits for nothing."""
    with opened(stand_in.url, on_wait=lambda seconds, reason: waits.append((seconds, reason))) as reader:
        yield reader


def opened(url: str, key: str = OPENAI_KEY, **options: Any) -> OpenAIAccount:
    return OpenAIAccount(url, key, **{"sleep": lambda _: None, **options})


def error_of(call: Callable[[], object]) -> ClientError:
    with pytest.raises(ClientError) as refused:
        call()
    assert refused.value.status == 0
    assert OPENAI_KEY not in str(refused.value.payload())
    return refused.value


def test_openais_own_client_reads_the_stand_in(stand_in: OpenAIStandIn) -> None:
    for number in range(3):
        stand_in.add_job(f"ftjob-{number}", "support", metadata={"team": "a"})
    with openai.OpenAI(base_url=stand_in.url, api_key=OPENAI_KEY, max_retries=0) as client:
        jobs = list(client.fine_tuning.jobs.list(limit=2))
        assert [job.id for job in jobs] == ["ftjob-2", "ftjob-1", "ftjob-0"]
        assert all(type(job).model_validate(job.model_dump(), strict=True) for job in jobs)
        assert client.files.content("file-train").read() == CONTENT
        file = client.files.retrieve("file-train")
        assert type(file).model_validate(file.model_dump(), strict=True).bytes == len(CONTENT)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve("file-gone")
    with (
        openai.OpenAI(base_url=stand_in.url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="Incorrect API key"),
    ):
        stranger.fine_tuning.jobs.list()


def test_jobs_come_page_after_page_newest_first(stand_in: OpenAIStandIn, account: OpenAIAccount) -> None:
    for number in range(101):
        stand_in.add_job(f"ftjob-{number}")
    assert [job["id"] for job in account.jobs()] == [f"ftjob-{number}" for number in reversed(range(101))]
    assert stand_in.asked == [
        "/v1/fine_tuning/jobs?limit=100",
        "/v1/fine_tuning/jobs?limit=100&after=ftjob-1",
    ]
    assert account.job("ftjob-7")["training_file"] == "file-train"


def test_a_file_is_saved_with_progress(account: OpenAIAccount, tmp_path: Path) -> None:
    seen: list[int] = []
    account.download(account.file("file-train"), tmp_path / "data.jsonl", seen.append)
    assert (tmp_path / "data.jsonl").read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_file_of_another_length_is_not_kept(stand_in: OpenAIStandIn, account: OpenAIAccount, tmp_path: Path) -> None:
    stand_in.contents["file-train"] = CONTENT[:-1]
    error = error_of(lambda: account.download(account.file("file-train"), tmp_path / "data.jsonl"))
    assert error.code == "openai_incomplete"
    assert f"{len(CONTENT) - 1} bytes" in error.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "body", "code", "says"),
    [
        (403, refusal("Missing scopes: api.files.read"), "openai_forbidden", "Missing scopes: api.files.read"),
        (404, refusal("No such File object: file-train"), "openai_not_found", "expired, was deleted, or is another's"),
        (400, refusal(f"Not allowed for {OPENAI_KEY}"), "openai_refused", "(status 400): Not allowed for (the key)"),
        (429, refusal("You exceeded your quota", code="insufficient_quota"), "openai_quota", "exceeded your quota"),
        (500, refusal("The server had an error"), "openai_unavailable", "status 500"),
        (200, b"<html>", "not_openai", "check --openai-url"),
    ],
)
def test_each_refusal_is_told_in_words(
    stand_in: OpenAIStandIn, account: OpenAIAccount, status: int, body: bytes, code: str, says: str
) -> None:
    for _ in range(5):
        stand_in.fail("/files/file-train", status, body)
    error = error_of(lambda: account.file("file-train"))
    assert error.code == code
    assert says in error.message


def test_a_wrong_key_is_told_without_a_part_of_it(stand_in: OpenAIStandIn) -> None:
    with opened(stand_in.url, "sk-wrong-key") as account:
        error = error_of(lambda: list(account.jobs()))
    assert error.code == "openai_key_invalid"
    assert "OPENAI_API_KEY" in error.message
    assert "sk-" not in error.message
    assert len(stand_in.asked) == 1, "a key that is wrong once is wrong again"


@pytest.mark.parametrize(
    ("headers", "waited_s"),
    [({"retry_after": "7"}, 7.0), ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5), ({}, 1.0)],
)
def test_a_limit_is_waited_for_as_long_as_openai_says(
    stand_in: OpenAIStandIn,
    account: OpenAIAccount,
    waits: list[tuple[float, str]],
    headers: dict[str, str],
    waited_s: float,
) -> None:
    stand_in.fail("/files/file-train", 429, refusal("Rate limit reached", code="rate_limit_exceeded"), **headers)
    assert account.file("file-train")["bytes"] == len(CONTENT)
    assert waits == [(waited_s, "limits how often it is asked")]


def test_a_wait_may_be_given_as_a_date(
    stand_in: OpenAIStandIn, account: OpenAIAccount, waits: list[tuple[float, str]]
) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    stand_in.fail("/files/file-train", 503, retry_after=moment)
    account.file("file-train")
    assert waits[0][1] == "answered with status 503"
    assert 0 < waits[0][0] <= 60


def test_a_longer_wait_is_the_persons(
    stand_in: OpenAIStandIn, account: OpenAIAccount, waits: list[tuple[float, str]]
) -> None:
    stand_in.fail("/files/file-train", 429, refusal("Rate limit reached for requests"), retry_after="3600")
    error = error_of(lambda: account.file("file-train"))
    assert error.code == "openai_rate_limited"
    assert "try again in 3600 s. It says: Rate limit reached for requests" in error.message
    assert waits == []


def test_it_gives_up_after_five_tries(
    stand_in: OpenAIStandIn, account: OpenAIAccount, waits: list[tuple[float, str]]
) -> None:
    for _ in range(9):
        stand_in.fail("/files/file-train", 500, refusal("The server had an error"))
    assert error_of(lambda: account.file("file-train")).code == "openai_unavailable"
    assert [seconds for seconds, _ in waits] == [1, 2, 4, 8]
    assert len(stand_in.asked) == 5
    stand_in.fail("/files/file-2", 500, refusal("No use"), x_should_retry="false")
    assert error_of(lambda: account.file("file-2")).code == "openai_refused"


class CutOff(httpx.SyncByteStream):
    """A body that breaks off."""

    def __iter__(self) -> Iterator[bytes]:
        yield CONTENT[:-1]
        raise httpx.ReadError("connection reset")


def test_a_download_that_breaks_off_begins_anew(stand_in: OpenAIStandIn, tmp_path: Path) -> None:
    answers = [httpx.Response(200, stream=CutOff()), httpx.Response(200, content=CONTENT)]
    file: Any = stand_in.files["file-train"]
    with opened("https://api.test", transport=httpx.MockTransport(lambda _: answers.pop(0))) as account:
        account.download(file, tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_bytes() == CONTENT
    assert answers == [], "one that broke off, and one that did not"


def test_an_account_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to host", request=request)

    with opened("https://api.test", transport=httpx.MockTransport(unreachable)) as account:
        error = error_of(lambda: account.job("ftjob-1"))
    assert (error.code, error.message) == (
        "openai_unreachable",
        "Cannot read the job ftjob-1 from https://api.test: no route to host.",
    )


def test_the_key_goes_to_openai_alone(tmp_path: Path) -> None:
    requests: list[httpx.Request] = []

    def redirecting(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.url.host == "api.test":
            return httpx.Response(302, headers={"location": "https://files.test/content"})
        return httpx.Response(200, content=CONTENT)

    with opened(
        "https://api.test/v1/",
        organization="org-1",
        project="proj-1",
        transport=httpx.MockTransport(redirecting),
    ) as account:
        file: Any = {"id": "file-1", "filename": "a.jsonl", "bytes": len(CONTENT)}
        account.download(file, tmp_path / "a.jsonl")
    first, second = requests
    assert str(first.url) == "https://api.test/v1/files/file-1/content"
    assert first.headers["authorization"] == f"Bearer {OPENAI_KEY}"
    assert (first.headers["openai-organization"], first.headers["openai-project"]) == ("org-1", "proj-1")
    assert "authorization" not in second.headers


@pytest.mark.parametrize("target", ["http://files.test/content", "http://api.test/v1/content", "http://127.0.0.1:9/x"])
def test_a_redirect_off_tls_is_not_followed(target: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def redirecting(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"location": target})
        return httpx.Response(200, content=CONTENT)

    with opened("https://api.test", transport=httpx.MockTransport(redirecting)) as account:
        file: Any = {"id": "file-1", "filename": "a.jsonl", "bytes": len(CONTENT)}
        error = error_of(lambda: account.download(file, tmp_path / "a.jsonl"))
    assert (error.code, asked, list(tmp_path.iterdir())) == ("openai_refused", ["api.test"], [])
    assert "not https" in error.message


@pytest.mark.parametrize("url", ["http://api.openai.com/v1", "api.openai.com", "ftp://x", "https://", "http://[::1"])
def test_an_address_that_would_show_the_key_is_refused(url: str) -> None:
    assert error_of(lambda: opened(url)).code == "openai_url_invalid"


@pytest.mark.parametrize("key", ["", " ", "sk-Schlüssel", "sk-\n"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    assert error_of(lambda: opened("https://api.openai.com", key)).code == "openai_key_invalid"


def test_a_full_disk_is_told(account: OpenAIAccount, tmp_path: Path) -> None:
    error = error_of(lambda: account.download(account.file("file-train"), tmp_path / "absent" / "data.jsonl"))
    assert error.code == "not_writable"
    assert "No such file or directory" in error.message
