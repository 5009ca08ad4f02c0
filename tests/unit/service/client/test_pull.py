"""`adapters.versions.pull` and `hatrack pull`: whole, checked, resumed, and nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from typer.testing import CliRunner

from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from adapters.store import digest_of
from service.cli.main import app
from service.client import AdapterDirectory, ClientError, HatrackClient
from service.client import pull as pull_module
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base
from tests.support.sources import FileServer, running, sha256

PLACE = "/v1/adapters/voice/versions/3"
PROMPT = "Answer like a sailor."
SOURCE = {"url": "hf://acme/voice@" + "c" * 40, "sha256": "d" * 64, "revision": "c" * 40}
NAMES = ("README.md", "adapter_config.json", "adapter_model.safetensors", "metadata.json", "settings.json")


@dataclass
class Stage:
    """A gateway that has voice@3, its client, and where it is pulled to."""

    files: AdapterFiles
    gateway: FileServer
    client: HatrackClient
    target: Path

    def serve(self, version: dict[str, Any]) -> None:
        self.gateway.files[PLACE] = json.dumps(version).encode()

    @property
    def version(self) -> dict[str, Any]:
        version: dict[str, Any] = json.loads(self.gateway.files[PLACE])
        return version

    def pull(self, **options: Any) -> pull_module.Pulled:
        return self.client.adapters.versions.pull("voice", 3, self.target, **options)

    def ranges(self) -> list[str | None]:
        return [seen.range for seen in self.gateway.seen if seen.path.endswith("/weights")]


def shown(files: AdapterFiles, base_dir: Path) -> dict[str, Any]:
    """The version object of an adapter, as the registry shows it."""
    base = describe_base(base_dir)
    inspection = inspect_weights(files.weights_path, Manifest.parse(files.config, max_rank=4096), base)
    verdict = {"verdict": "pass", "sentence": "Better by 12 points.", "metric": "f1", "examples": 40, "rule": 3}
    return {
        "object": "adapter.version", "adapter": "voice", "version": 3, "state": "ready",
        "digest": digest_of(inspection.manifest.canonical(), sha256(files.weights)),
        "rank": 4, "alpha": 8.0, "target_modules": ["q_proj"], "bytes": len(files.weights),
        "base": base.fingerprint.model_dump(), "metadata": {"source": SOURCE},
        "settings": {"system_prompt": PROMPT, "examples": [], "sampling": {"temperature": 0.2}, "grounding": None},
        "proof": {"tokens": 300, "distance": 0.4321, "noise": 0.002, "perplexity": {"ratio": 1.08}},
        "verdict": verdict, "revalidation": {"state": "fresh", "reasons": []}, "held_back": None,
    }  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(pull_module, "PAUSES_S", (0.0, 0.0))
    base_dir = make_base(tmp_path / "base")
    files = make_adapter(tmp_path / "adapter", describe_base(base_dir), rank=64)
    gateway = FileServer()
    gateway.files = {
        PLACE: json.dumps(shown(files, base_dir)).encode(),
        f"{PLACE}/files/config": files.config,
        f"{PLACE}/files/weights": files.weights,
    }
    with running(gateway), HatrackClient(gateway.url, "hk-test") as client:
        monkeypatch.setenv("HATRACK_URL", gateway.url)
        monkeypatch.setenv("HATRACK_KEY", "hk-test")
        yield Stage(files, gateway, client, tmp_path / "out" / "voice-3")


def test_what_is_pulled_can_be_pushed(stage: Stage) -> None:
    seen: list[tuple[int, int]] = []
    pulled = stage.pull(progress=lambda done, total: seen.append((done, total)))
    assert pulled.files == pulled.written == NAMES
    directory = AdapterDirectory.read(stage.target)
    assert (directory.config.read_bytes(), directory.weights.read_bytes()) == (stage.files.config, stage.files.weights)
    assert directory.settings == {"system_prompt": PROMPT, "sampling": {"temperature": 0.2}}
    assert directory.metadata == {"source": SOURCE}
    assert seen[-1] == (len(stage.files.weights), len(stage.files.weights))
    assert sorted(path.name for path in stage.target.iterdir()) == list(NAMES)


def test_the_model_card_says_what_it_is_and_what_is_known(stage: Stage) -> None:
    stage.pull()
    card = (stage.target / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    for fact in (
        *("# voice@3", "rank 4, alpha 8", "library_name: peft", PROMPT, "**pass** (Better by 12 points.)"),
        *("0.432 nats", "1.08 times", SOURCE["url"], "temperature 0.2", "without a lineage", stage.version["digest"]),
    ):
        assert fact in card, fact
    assert max(len(line) for line in card.splitlines()) < 250


@pytest.mark.parametrize("lineage", ["mine", {"data": 3}, {"data": [{"name": 1}]}, {"recipe": []}, {"base_name": {}}])
def test_a_lineage_that_is_none_of_ours_does_no_harm(stage: Stage, lineage: object) -> None:
    stage.serve(stage.version | {"metadata": {"lineage": lineage}})
    stage.pull()
    assert "training" in (stage.target / "README.md").read_text() or lineage == {"base_name": {}}


def test_pulled_again_nothing_is_written_or_downloaded(stage: Stage) -> None:
    stage.pull()
    assert stage.pull().written == ()
    assert len(stage.ranges()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_another_file_is_not_overwritten_unless_forced(stage: Stage, name: str) -> None:
    stage.target.mkdir(parents=True)
    (stage.target / name).write_bytes(b"mine")
    (stage.target / "notes.txt").write_text("mine, too")
    with pytest.raises(ClientError, match=name) as caught:
        stage.pull()
    assert (caught.value.code, stage.ranges()) == ("target_exists", [])
    assert {path.name for path in stage.target.iterdir()} == {name, "notes.txt"}
    assert name in stage.pull(force=True).written
    assert (stage.target / name).read_bytes() != b"mine"
    assert (stage.target / "notes.txt").read_text() == "mine, too"


def test_an_earlier_card_of_the_version_is_replaced(stage: Stage) -> None:
    stage.pull()
    (stage.target / "README.md").write_bytes((stage.target / "README.md").read_bytes().replace(b"\n", b"\r\n"))
    stage.serve(stage.version | {"verdict": None, "revalidation": None})
    assert stage.pull().written == ("README.md",)
    assert "never evaluated" in (stage.target / "README.md").read_text()


def test_a_card_of_another_version_is_not_replaced(stage: Stage) -> None:
    stage.pull()
    card = (stage.target / "README.md").read_text()
    for other in (card.replace("# voice@3\n", "# voice@33\n"), card.replace("# voice@3\n", "# voice@3, merged\n")):
        (stage.target / "README.md").write_text(other)
        with pytest.raises(ClientError, match=r"README\.md") as caught:
            stage.pull()
        assert caught.value.code == "target_exists"


def test_the_form_that_peft_leaves_is_replaced_only_while_nobody_has_filled_it_in(stage: Stage) -> None:
    form = str(ModelCard.from_template(ModelCardData(library_name="peft", base_model="acme/base")))
    form += "### Framework versions\n\n- PEFT 0.21.0\n"
    stage.target.mkdir(parents=True)
    for mine in (
        form.replace("[More Information Needed]", "Jo", 1),
        form.replace("Model ID", "Sailor"),
        form.replace("## Model Details", "It answers like a sailor.\n\n## Model Details"),
    ):
        (stage.target / "README.md").write_text(mine)
        with pytest.raises(ClientError, match=r"README\.md"):
            stage.pull()
    (stage.target / "README.md").write_text(form)
    assert "README.md" in stage.pull().written
    assert "# voice@3" in (stage.target / "README.md").read_text()


def test_a_connection_that_breaks_is_gone_on_with(stage: Stage) -> None:
    stage.gateway.faults.cuts = [30_000]
    stage.pull(progress=lambda _done, _total: stage.gateway.faults.came.set())
    assert (stage.target / "adapter_model.safetensors").read_bytes() == stage.files.weights
    first, second = stage.ranges()
    assert first is None
    assert 0 < int((second or "").removeprefix("bytes=").removesuffix("-")) <= 30_000


def test_a_pull_that_was_given_up_is_gone_on_with_by_the_next(stage: Stage) -> None:
    def leave(_done: int, _total: int) -> None:
        stage.gateway.faults.came.set()
        raise KeyboardInterrupt

    stage.gateway.faults.cuts = [30_000]
    with pytest.raises(KeyboardInterrupt):
        stage.pull(progress=leave)
    (part,) = stage.target.iterdir()
    size = part.stat().st_size
    assert (part.suffix, size > 0) == (".part", True)
    stage.pull()
    assert stage.ranges() == [None, f"bytes={size}-"]
    assert sorted(path.name for path in stage.target.iterdir()) == list(NAMES)


def test_a_gateway_that_stays_away_ends_the_pull_and_keeps_what_came(stage: Stage) -> None:
    stage.gateway.faults.waits = False
    stage.gateway.faults.cuts = [0] * 9
    with pytest.raises(ClientError) as caught:
        stage.pull()
    assert caught.value.code == "connection_lost"
    assert not (stage.target / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("change", ["shorter", "longer", "another byte", "no tensors"])
def test_weights_that_are_not_the_versions_leave_nothing(stage: Stage, change: str) -> None:
    weights = stage.files.weights
    stage.gateway.files[f"{PLACE}/files/weights"] = {
        "shorter": weights[:-1],
        "longer": weights + b"x",
        "another byte": weights[:-1] + bytes([weights[-1] ^ 1]),
        "no tensors": bytes(len(weights)),
    }[change]
    with pytest.raises(ClientError) as caught:
        stage.pull()
    assert caught.value.code == "damaged"
    assert list(stage.target.iterdir()) == []


def test_a_version_without_weights_is_its_settings(stage: Stage) -> None:
    proof = {"format": 1, "kind": "settings", "prompt_tokens": 9, "context_tokens": 2048, "warnings": []}
    without = {"digest": None, "rank": None, "alpha": None, "target_modules": [], "bytes": 0, "proof": proof}
    stage.serve(stage.version | without | {"metadata": {}, "verdict": None, "revalidation": None})
    done = CliRunner().invoke(app, ["pull", "voice@3", str(stage.target)])
    assert done.exit_code == 0, done.output
    assert "it has no weights" in done.stdout
    assert sorted(path.name for path in stage.target.iterdir()) == ["README.md", "settings.json"]
    assert json.loads((stage.target / "settings.json").read_text())["system_prompt"] == PROMPT
    card = (stage.target / "README.md").read_text()
    assert "without weights" in card
    assert "9 of the context's 2048 tokens" in card


@pytest.mark.parametrize("state", ["proving", "rejected"])
def test_what_is_not_proven_is_not_pulled(stage: Stage, state: str) -> None:
    stage.serve(stage.version | {"state": state})
    with pytest.raises(ClientError, match=state):
        stage.pull()
    assert not stage.target.exists()


def test_the_command(stage: Stage) -> None:
    pull = ["pull", "voice@3", str(stage.target)]
    done = CliRunner().invoke(app, pull)
    assert (done.exit_code, done.stdout) == (0, f"voice@3 is in {stage.target}: {', '.join(NAMES)}\n")
    assert CliRunner().invoke(app, pull).stdout == f"{stage.target} has voice@3 already\n"
    (stage.target / "settings.json").write_text("{}")
    refused = CliRunner().invoke(app, pull)
    assert refused.exit_code == 1
    assert "other files than voice@3: settings.json" in refused.stderr
    forced = CliRunner().invoke(app, [*pull, "--force", "--json"])
    assert json.loads(forced.stdout)["written"] == ["settings.json"]


@pytest.mark.parametrize("arguments", [("voice", "out"), ("voice:live", "out"), ("voice@3",)])
def test_wrong_usage(stage: Stage, arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["pull", *arguments]).exit_code == 2


def test_a_directory_that_is_a_file(stage: Stage) -> None:
    stage.target.parent.mkdir(parents=True)
    stage.target.write_text("mine")
    with pytest.raises(ClientError) as caught:
        stage.pull()
    assert caught.value.code == "target_exists"
