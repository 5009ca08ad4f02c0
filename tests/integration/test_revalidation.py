"""Judged versions: what a change of the base does to their verdicts, and how they are judged again.

The first test needs no engine: a version is pushed and judged once; then `hatrack serve` starts on the same home with
another chat template, with another base, and with the first base again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.config import Settings
from service.engine.assemble import describe_base
from tests.support.adapters import make_adapter, make_base
from tests.support.gateway import Gateway
from tests.support.runs import wait_for_run
from tests.unit.service.registry.conftest import RegistryApp
from tests.unit.service.registry.engine import BASE

pytestmark = pytest.mark.slow

UP_S = 600.0


@pytest.fixture
def home() -> Iterator[Path]:
    # the path of a Unix socket under it has 107 bytes at most
    with tempfile.TemporaryDirectory(prefix="judged-") as directory:
        yield Path(directory)


def copy_of(base_dir: Path, parent: Path) -> Path:
    """The base's files, the large one linked; its name is the same in each place, so that it is served by one name."""
    copy = parent / BASE
    copy.mkdir(parents=True)
    for file in base_dir.iterdir():
        target = copy / file.name
        if file.suffix == ".safetensors":
            target.symlink_to(file.resolve())
        else:
            shutil.copyfile(file, target)
    return copy


async def push_judged_version(home: Path, base: Path, directory: Path) -> None:
    """`voice@1` is live in a gateway's home, and a verdict is on it; no engine is needed to write it down."""
    described = describe_base(Settings(home=home, base_model=str(base)))
    async with RegistryApp(home, described).run() as registry_app:
        pushed = await registry_app.push("voice", make_adapter(directory, described, rank=1, modules=("q_proj",)))
        assert pushed.status_code == 201, pushed.text
        assert (await registry_app.verdict("voice@1")).status_code == 201


@contextmanager
def gateway_on(home: Path, base: Path) -> Iterator[httpx.Client]:
    """`hatrack serve` on that base, whose engine is somebody else's and not there."""
    settings = {"HATRACK_ENGINE_URL": f"unix:{home}/nobody.sock"}
    gateway = Gateway(home=home, base_dir=base, settings=settings)
    gateway.start(wait=False)
    try:
        with gateway.http() as client:
            deadline = time.monotonic() + UP_S
            while True:
                assert time.monotonic() < deadline, gateway.log()
                assert gateway.process is not None
                assert gateway.process.poll() is None, gateway.log()
                with suppress(httpx.TransportError):
                    if client.get("/healthz").status_code == 200:
                        break
                time.sleep(0.1)
            yield client
    finally:
        gateway.stop()


def serving_state(client: httpx.Client) -> tuple[str, Any]:
    """Whether `voice@1` can serve, and what its verdict is worth."""
    version = client.get("/v1/adapters/voice/versions/1").json()
    assert version["verdict"]["verdict"] == "pass"
    return version["servable"], version["revalidation"]


def refusal_code(client: httpx.Client) -> str:
    """Why a chat with `voice` is refused: there is no engine to answer it."""
    body = {"model": "voice", "messages": [{"role": "user", "content": "hi"}]}
    return str(client.post("/v1/chat/completions", json=body).json()["error"]["code"])


def versions_by_state(client: httpx.Client) -> dict[str, int]:
    """The versions by state, as /metrics has them: asked again where it is without them, as one scrape is when the
    database is slow."""
    prefix = 'hatrack_versions_revalidation{state="'
    deadline = time.monotonic() + UP_S
    while not (lines := [line for line in client.get("/metrics").text.splitlines() if line.startswith(prefix)]):
        assert time.monotonic() < deadline, "the versions are not in /metrics"
        time.sleep(1.05)  # until then it is the same text
    return {line.removeprefix(prefix).split('"')[0]: int(float(line.split()[-1])) for line in lines}


async def test_a_new_chat_template_makes_a_verdict_due_and_another_base_is_unservable(
    base_dir: Path, home: Path, tmp_path: Path
) -> None:
    first = copy_of(base_dir, tmp_path / "first")
    await push_judged_version(home, first, tmp_path / "adapter")
    with gateway_on(home, first) as client:
        assert serving_state(client) == ("ok", {"state": "fresh", "reasons": []})
        assert refusal_code(client) == "engine_unavailable"
        assert versions_by_state(client) == {"fresh": 1, "due": 0, "failed": 0}

    templated = copy_of(base_dir, tmp_path / "templated")
    template = templated / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another one #}")
    with gateway_on(home, templated) as client:
        assert serving_state(client) == ("ok", {"state": "due", "reasons": ["template"]})
        assert refusal_code(client) == "engine_unavailable", "it would serve"
        assert versions_by_state(client) == {"fresh": 0, "due": 1, "failed": 0}
        due = client.get("/v1/adapters", params={"revalidation": "due"}).json()["data"]
        assert [adapter["name"] for adapter in due] == ["voice"]

    with gateway_on(home, make_base(tmp_path / "other" / BASE)) as client:
        assert serving_state(client)[0] == "other_base"
        assert refusal_code(client) == "version_other_base"
        assert versions_by_state(client) == {"fresh": 0, "due": 0, "failed": 0}

    with gateway_on(home, first) as client:
        assert serving_state(client) == ("ok", {"state": "fresh", "reasons": []})
        assert refusal_code(client) == "engine_unavailable"


def test_a_revalidation_repeats_the_evaluation_that_the_verdict_came_from(gateway: Gateway) -> None:
    """With the engine: held-out examples that are off the list by now, and the same version as ever goes on serving."""
    lines = "\n".join(example(f"Where is parcel {number}?", "Here.") for number in range(4))
    version = "/v1/adapters/tidewater/versions/1"
    with gateway.http() as client:
        files = {"file": ("held.jsonl", lines.encode())}
        held_out = client.post("/v1/files", data={"purpose": "evals"}, files=files).json()["id"]
        request = {"model": "tidewater@1", "held_out": held_out, "metric": "exact_match", "suites": []}
        body = {
            "verdict": "not_enough_evidence",
            "sentence": "Four examples show nothing.",
            "metric": "exact_match",
            "examples": 4,
            "kind": "evaluation",
            "files": {"held_out": held_out},
            "evaluation": request | {"max_tokens": 4, "repeats": 1},
        }
        assert client.post(f"{version}/verdicts", json=body).status_code == 201
        assert client.get(version).json()["revalidation"] == {"state": "fresh", "reasons": []}
        begun_now = client.post("/v1/revalidations").json()["data"]
        assert "tidewater@1" not in [item["version"] for item in begun_now], "nothing of it has changed"
        assert client.delete(f"/v1/files/{held_out}").status_code == 200

        begun = client.post(f"{version}/revalidate").json()
        assert (begun["object"], begun["kind"]) == ("evaluation", "revalidation"), begun
        assert client.post(f"{version}/revalidate").json()["id"] == begun["id"], "one at a time"
        ended = wait_for_run(client, begun["id"])
        assert ended["status"] == "succeeded", ended

        shown = client.get(version).json()
        assert shown["revalidation"] == {"state": "fresh", "reasons": []}
        assert "live" in shown["aliases"]
        verdict = shown["verdict"]
        assert (verdict["kind"], verdict["evaluation_id"]) == ("revalidation", begun["id"])
        assert verdict["verdict"] == ended["verdict"] == "not_enough_evidence"
        assert verdict["base"] == shown["base"]
        assert verdict["files"]["held_out"] == held_out
        history = client.get(f"{version}/verdicts").json()["data"]
        assert [item["kind"] for item in history[:2]] == ["revalidation", "evaluation"]
        assert history[0]["evaluation"]["model"] == "tidewater@1"
        assert versions_by_state(client)["fresh"] >= 1


def example(question: str, answer: str) -> str:
    """A line of a held-out file."""
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
