"""`hatrack import openai`, from a stand-in for OpenAI to a gateway with its trainer, whose workers train nothing."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.client import HatrackClient
from tests.contract import gateway as contract
from tests.contract.gateway import ADMIN_KEY, ContractGateway
from tests.support import openai_account
from tests.support.openai_account import OPENAI_KEY, OpenAIStandIn, chat_lines, refusal

Import: TypeAlias = Callable[..., Awaitable[Result]]


@pytest_asyncio.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ContractGateway]:
    """A gateway and a trainer, for all tests here."""
    async with contract.running(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def account() -> Iterator[OpenAIStandIn]:
    with openai_account.running() as stand_in:
        yield stand_in


@pytest.fixture
def run(gateway: ContractGateway, account: OpenAIStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Import:
    """Runs `hatrack import openai`, in a thread, since the gateway is in this one."""
    monkeypatch.setenv("HATRACK_URL", str(gateway.http.base_url))
    monkeypatch.setenv("HATRACK_KEY", ADMIN_KEY)
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("service.client.openai_account.PAUSES_S", (0.0,) * 4)

    async def call(*arguments: str) -> Result:
        command = ["import", "openai", "--openai-url", account.url, *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    return call


async def jobs_here(gateway: ContractGateway, source: str) -> list[dict[str, Any]]:
    """The gateway's jobs that were made of one of OpenAI's."""
    response = await gateway.http.get(
        "/v1/fine_tuning/jobs",
        params={"metadata[openai_job]": source, "limit": 100},
        headers={"authorization": f"Bearer {ADMIN_KEY}"},
    )
    found: list[dict[str, Any]] = response.json()["data"]
    return found


async def content_here(gateway: ContractGateway, file_id: str) -> bytes:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return (await gateway.http.get(f"/v1/files/{file_id}/content", headers=headers)).content


async def test_jobs_and_files_become_jobs_here(gateway: ContractGateway, account: OpenAIStandIn, run: Import) -> None:
    account.add_file("file-train", chat_lines(20, "a-parcel"))
    account.add_file("file-valid", chat_lines(10, "b-letter"), "valid.jsonl")
    account.add_job("ftjob-a1", "support", validation_file="file-valid", metadata={"team": "shop"})
    account.add_job("ftjob-a2", "support")
    done = await run("--yes")
    assert done.exit_code == 0, done.output
    assert "OpenAI's weights cannot be exported: each job trains the base here, tiny, on the same data" in done.output
    assert done.stdout.endswith("2 jobs created; `hatrack jobs` shows how far they are.\n")
    (first,), (second,) = await jobs_here(gateway, "ftjob-a1"), await jobs_here(gateway, "ftjob-a2")
    assert (first["hatrack"]["adapter"], first["model"], first["seed"]) == ("support", "tiny", 42)
    assert first["hatrack"]["requested"] == openai_account.RESOLVED
    assert {"team": "shop", "openai_model": "ft:gpt-4o-mini-2024-07-18:acme:support:9aBc0"}.items() <= first[
        "metadata"
    ].items()
    assert await content_here(gateway, first["training_file"]) == account.contents["file-train"]
    assert await content_here(gateway, first["validation_file"]) == account.contents["file-valid"]
    assert second["training_file"] == first["training_file"], "a file of two jobs is here once"
    assert second["validation_file"] is None
    assert account.asked.count("/v1/files/file-train/content") == 1


async def test_a_second_run_takes_what_is_new(gateway: ContractGateway, account: OpenAIStandIn, run: Import) -> None:
    account.add_file("file-train", chat_lines(20, "b-parcel"))
    account.add_job("ftjob-b1", "support")
    assert (await run("--yes")).exit_code == 0
    account.add_job("ftjob-b2", "support")
    account.asked.clear()
    done = await run("--yes")
    assert f"is here as {(await jobs_here(gateway, 'ftjob-b1'))[0]['id']}" in done.output
    assert "1 job to create" in done.output
    (first,), (second,) = await jobs_here(gateway, "ftjob-b1"), await jobs_here(gateway, "ftjob-b2")
    assert first["training_file"] == second["training_file"], "its content was here"
    account.asked.clear()
    assert "0 jobs to create" in (await run()).output
    assert not [path for path in account.asked if path.startswith("/v1/files")]


async def test_a_dry_run_does_nothing(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import, tmp_path: Path
) -> None:
    account.add_file("file-train", chat_lines(20, "c-parcel"))
    account.add_job("ftjob-c1", "support")
    account.add_job("ftjob-c2", method={"type": "reinforcement", "reinforcement": {}})
    done = await run("--dry-run", "--keep", str(tmp_path / "kept"))
    assert done.exit_code == 0
    assert "+ ftjob-c1  2026-01-01 00:00Z  gpt-4o-mini-2024-07-18  → support  (supervised, n_epochs 3, " in done.output
    assert "training file file-train  train.jsonl  " in done.output
    assert "- ftjob-c2  2026-01-02 00:00Z  gpt-4o-mini-2024-07-18  is not taken: reinforcement" in done.output
    assert "1 job to create at http" in done.output
    assert "0 already here, 1 not taken." in done.output
    assert await jobs_here(gateway, "ftjob-c1") == []
    assert "/v1/files/file-train/content" not in account.asked
    assert not (tmp_path / "kept").exists()


async def test_jobs_are_chosen_by_time_and_by_id(gateway: ContractGateway, account: OpenAIStandIn, run: Import) -> None:
    account.add_file("file-train", chat_lines(20, "d-parcel"))
    for number in range(3):
        account.add_job(f"ftjob-d{number}", "support", status="failed" if number == 1 else "succeeded")
    shown = (await run("--dry-run", "--since", "2026-01-02")).output
    assert "ftjob-d0" not in shown
    assert "- ftjob-d1" in shown
    assert "+ ftjob-d2" in shown
    done = await run("--yes", "--job", "ftjob-d1=mine", "--auto")
    assert done.exit_code == 0, done.output
    (job,) = await jobs_here(gateway, "ftjob-d1")
    assert (job["hatrack"]["adapter"], job["hatrack"]["requested"]) == ("mine", {})
    assert await jobs_here(gateway, "ftjob-d2") == []
    wrong = await run("--job", "ftjob-absent", "--dry-run")
    assert (wrong.exit_code, "OpenAI no longer has the job ftjob-absent" in wrong.stderr) == (1, True)
    assert (await run("--job", "d1")).exit_code == 2
    assert (await run("--job", "ftjob-d1=No Name")).exit_code == 2


async def test_one_job_that_fails_leaves_the_others(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    with_picture = json.dumps({"messages": [{"role": "user", "content": [picture]}]}).encode()
    account.add_file("file-picture", with_picture)
    account.add_file("file-broken", b"not json\n" * 10)
    account.add_file("file-train", chat_lines(20, "e-parcel"))
    account.add_job("ftjob-e1", training_file="file-picture")
    account.add_job("ftjob-e2", training_file="file-broken")
    account.add_job("ftjob-e3", training_file="file-gone")
    account.add_job("ftjob-e4", "support")
    done = await run("--yes", "--json")
    assert done.exit_code == 1
    jobs = {job["openai_job"]: job for job in json.loads(done.stdout)["jobs"]}
    assert [jobs[f"ftjob-e{number}"]["result"] for number in (1, 2, 3, 4)] == [
        "failed",
        "failed",
        "not_taken",
        "created",
    ]
    assert jobs["ftjob-e1"]["reason"] == "line 1 has a picture, and adapters here learn from text alone"
    assert "line 1" in jobs["ftjob-e2"]["reason"].lower()
    assert "no longer has its training file file-gone" in jobs["ftjob-e3"]["reason"]
    assert jobs["ftjob-e4"]["job"] == (await jobs_here(gateway, "ftjob-e4"))[0]["id"]


async def test_what_broke_off_goes_on_from_there(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    account.add_file("file-train", chat_lines(20, "f-parcel"))
    account.add_file("file-other", chat_lines(20, "f-letter"))
    account.add_job("ftjob-f1", "support")
    account.add_job("ftjob-f2", "support", training_file="file-other")
    account.fail("/file-other/content", 429, refusal("Rate limit reached"), retry_after="999")
    broken = await run("--yes", "--keep", str(kept))
    assert broken.exit_code == 1
    assert "[openai_rate_limited]" in broken.stderr
    assert "try again in 999 s" in broken.stderr
    assert "(jobs created: 1, not yet: 1; run the command again for the rest)" in broken.stderr
    assert len(await jobs_here(gateway, "ftjob-f1")) == 1
    assert (await run("--yes", "--keep", str(kept))).exit_code == 0
    assert [len(await jobs_here(gateway, f"ftjob-f{number}")) for number in (1, 2)] == [1, 1]
    assert account.asked.count("/v1/files/file-train/content") == 1
    assert (kept / "file-train.jsonl").read_bytes() == account.contents["file-train"]
    assert json.loads((kept / "ftjob-f2.json").read_text()) == account.jobs[0]
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".json", ".jsonl", ".jsonl"]


async def test_a_job_that_failed_here_is_made_again_on_request(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import
) -> None:
    account.add_file("file-train", chat_lines(20, "g-parcel"))
    account.add_job("ftjob-g1", "support", metadata={"hold": "1"})
    assert (await run("--yes")).exit_code == 0
    (job,) = await jobs_here(gateway, "ftjob-g1")
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    await gateway.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel", headers=headers)
    assert "0 jobs to create" in (await run("--yes")).output
    assert "1 job created" in (await run("--yes", "--retry")).output
    assert len(await jobs_here(gateway, "ftjob-g1")) == 2


async def test_what_is_live_is_not_replaced_unless_the_command_says_so(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import
) -> None:
    with HatrackClient(str(gateway.http.base_url), ADMIN_KEY) as client:
        await asyncio.to_thread(client.adapters.push, "taken", settings={"system_prompt": "You are in production."})
    account.add_file("file-train", chat_lines(20, "k-parcel"))
    for number, name in enumerate(("taken", "new", "taken", "new")):
        account.add_job(f"ftjob-k{number}", name)
    note = "`taken` exists: a version that passes becomes a candidate, and @1 stays live; --promote replaces it"
    assert (await run("--dry-run")).output.count(note) == 2
    assert (await run("--yes")).exit_code == 0
    made = [(await jobs_here(gateway, f"ftjob-k{number}"))[0]["metadata"].get("promote") for number in range(4)]
    assert made == ["never", None, "never", None], "what this import itself makes does not count"
    account.add_job("ftjob-k4", "taken")
    done = await run("--yes", "--promote")
    assert "`taken` exists: a version that passes replaces @1, which is live" in done.output
    assert "promote" not in (await jobs_here(gateway, "ftjob-k4"))[0]["metadata"]


async def test_each_key_goes_to_its_own_service(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    account.add_file("file-train", chat_lines(20, "h-parcel"))
    account.add_job("ftjob-h1", "support", metadata={"secret": "none"})
    sent: list[httpx.Request] = []
    send = httpx.Client.send

    def recording(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        sent.append(request)
        return send(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", recording)
    done = await run("--yes", "--keep", str(tmp_path / "kept"))
    assert done.exit_code == 0, done.output
    ports = {gateway.http.base_url.port: ADMIN_KEY, httpx.URL(account.url).port: OPENAI_KEY}
    assert {request.url.port for request in sent} == set(ports)
    for request in sent:
        assert request.headers["authorization"] == f"Bearer {ports[request.url.port]}"
    assert {request.method for request in sent if request.url.port == httpx.URL(account.url).port} == {"GET"}
    secret = OPENAI_KEY.encode()
    assert secret not in done.stdout_bytes + done.stderr_bytes
    kept = [path for folder in (gateway.home, tmp_path / "kept") for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert not [path for path in kept if secret in path.read_bytes()]


@pytest.mark.parametrize("key", [None, ADMIN_KEY])
async def test_openais_variables_never_name_the_gateway_or_its_key(
    account: OpenAIStandIn, run: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str | None
) -> None:
    sent: list[httpx.Request] = []
    send = httpx.Client.send

    def recording(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        sent.append(request)
        return send(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", recording)
    monkeypatch.setattr("service.client.settings.DEFAULT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HATRACK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HATRACK_URL")
    monkeypatch.delenv("HATRACK_KEY")
    if key is not None:
        monkeypatch.setenv("HATRACK_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:10/v1")
    done = await run("--dry-run")
    assert done.exit_code == 3, done.output
    assert [(request.url.port, request.headers.get("authorization")) for request in sent] == [
        (9, None if key is None else f"Bearer {key}")
    ]


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"OPENAI_API_KEY": ""}, "openai_key_missing"),
        ({"OPENAI_API_KEY": ADMIN_KEY}, "openai_key_invalid"),
        ({"OPENAI_API_KEY": "hk_of-another-gateway"}, "openai_key_invalid"),
        ({"OPENAI_API_KEY": "sk-wrong"}, "openai_key_invalid"),
        ({"HATRACK_URL": "the account's"}, "openai_url_invalid"),
    ],
)
async def test_keys_and_addresses_that_are_mixed_up_are_told(
    account: OpenAIStandIn, run: Import, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, account.url if value == "the account's" else value)
    done = await run("--dry-run")
    assert done.exit_code == 1
    assert done.stderr.startswith("hatrack: ")
    assert done.stderr.endswith(f"[{code}]\n")
    assert len(account.asked) <= 1, "only a key that may be OpenAI's was shown to it"
    assert bool(account.asked) == (environment.get("OPENAI_API_KEY") == "sk-wrong")


async def test_a_script_must_say_yes(gateway: ContractGateway, account: OpenAIStandIn, run: Import) -> None:
    account.add_file("file-train", chat_lines(20, "i-parcel"))
    account.add_job("ftjob-i1", "support")
    refused = await run()
    assert refused.exit_code == 2
    assert "give --yes to create the jobs" in refused.stderr
    assert await jobs_here(gateway, "ftjob-i1") == []


async def test_at_a_terminal_it_asks_and_shows_each_file(
    gateway: ContractGateway, account: OpenAIStandIn, run: Import, tmp_path: Path
) -> None:
    account.add_file("file-train", chat_lines(20, "j-parcel"), "parcels.jsonl")
    account.add_job("ftjob-j1", "support")
    refused = await asyncio.to_thread(at_a_terminal, account.url, "n")
    assert "Create this job? [y/N]" in refused
    assert await jobs_here(gateway, "ftjob-j1") == []
    shown = await asyncio.to_thread(at_a_terminal, account.url, "y")
    assert "parcels.jsonl from OpenAI" in shown
    assert "parcels.jsonl to the gateway" in shown
    assert "1 job created" in shown
    assert len(await jobs_here(gateway, "ftjob-j1")) == 1


def at_a_terminal(url: str, typed: str) -> str:
    """What the command shows at a terminal where ``typed`` is the answer to its question."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.cli", "import", "openai", "--openai-url", url]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        os.write(ours, f"{typed}\n".encode())
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # a terminal whose last writer has gone
        finally:
            os.close(ours)
        process.wait(120)
    return shown.decode()
