"""What was taught to the versions before one, and to what serves, is no measure of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway, jsonl, rows
from tests.unit.trainer.finetune.test_grounded import PLAN, PRIMARY
from trainer.data.formats import read_dataset
from trainer.errors import GatewayRefused
from trainer.evaluate.arms import ChatMessage, Question, questions
from trainer.evaluate.base_prompts import NO_UNSEEN_EXAMPLES
from trainer.evaluate.evaluations.contamination import TrainingHistory, training_chain
from trainer.finetune.judging import Judging
from trainer.finetune.spec import JobSpec
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway


@dataclass
class TrainedVersions:
    """A gateway's versions, their training verdicts' held-out files, and files."""

    lineages: dict[str, dict[str, Any]]
    held_out: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def metadata(self, version: str) -> dict[str, Any]:
        if version not in self.lineages:
            raise GatewayRefused(404, "version_not_found", f"there is no {version}")
        return {"lineage": self.lineages[version]}

    def settings(self, version: str) -> dict[str, Any]:
        return {}

    def held_out_file(self, version: str) -> str | None:
        return self.held_out.get(version)

    def fetch_content(self, file: str, target: Path) -> None:
        if file not in self.files:
            raise GatewayRefused(404, "file_not_found", f"there is no file {file}")
        target.write_bytes(self.files[file])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory(tmp_path / "job") as found:
        yield found


@pytest.fixture(autouse=True)
def _place(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()


def ask(*numbers: int) -> tuple[Question, ...]:
    return tuple(
        Question(id=str(at), turns=(ChatMessage(role="user", content=row["prompt"]),), reference=row["completion"])
        for at, row in enumerate(rows(60))
        if at in numbers
    )


def kept(*numbers: int) -> bytes:
    return "".join(question.model_dump_json() + "\n" for question in ask(*numbers)).encode()


def history(versions: TrainedVersions, folder: RunDirectory, said: list[str]) -> TrainingHistory:
    return TrainingHistory(cast(Any, versions), folder, said.append)


def test_what_each_version_before_was_trained_on_counts_but_for_what_its_own_job_held_out(folder: RunDirectory) -> None:
    versions = TrainedVersions(
        lineages={
            "voice@3": {"files": ["f3"], "parent": "voice@2"},
            "voice@2": {"files": ["f2"], "parent": "other@1"},
            "other@1": {"files": ["f1"]},
            "voice@9": {"files": ["f9"]},
        },
        held_out={"voice@2": "h2"},
        files={
            "f3": jsonl(rows(60)),
            "f2": jsonl(rows(60)[10:20]),
            "h2": kept(12, 13),
            "f1": jsonl(rows(60)[13:16]),
            "f9": jsonl(rows(60)[30:40]),
        },
    )
    said: list[str] = []
    asked = ask(0, 11, 12, 13, 14, 35, 50)
    # 12 was held out of what @2 was taught; 13 was, too, but taught to what came before @2
    assert history(versions, folder, said).trained_on(["voice@3", "voice@9"], asked, excluded="voice@3") == (
        "11",
        "13",
        "14",
        "35",
    )
    assert history(versions, folder, said).trained_on(["voice@3", None], asked, excluded="voice@3") == (
        "11",
        "13",
        "14",
    )
    assert said == []
    assert not folder.path("taught.jsonl").exists()


def test_case_space_and_a_common_system_message_hide_nothing(folder: RunDirectory) -> None:
    row = rows(60)[7]
    spoken = [
        {"messages": [
            {"role": "system", "content": "You sell ropes."},
            {"role": "user", "content": f"  {row['prompt'].upper()}"},
            {"role": "assistant", "content": row["completion"]},
        ]}
    ]  # fmt: skip
    versions = TrainedVersions({"voice@1": {"files": ["f"]}}, files={"f": jsonl(spoken)})
    plain, own = ask(7)[0], ChatMessage(role="system", content="You are somebody else.")
    asked = (plain, plain.model_copy(update={"id": "own", "turns": (own, *plain.turns)}))
    assert history(versions, folder, []).trained_on(["voice@1"], asked, excluded="") == ("7", "own")


def test_what_cannot_be_looked_at_is_said(folder: RunDirectory) -> None:
    versions = TrainedVersions({"voice@3": {"files": ["f3"], "parent": "gone@1"}, "voice@4": {"files": ["bad"]}})
    versions.files["bad"] = b"no json"
    said: list[str] = []
    assert history(versions, folder, said).trained_on(["voice@3", "voice@4"], ask(1), excluded="") == ()
    assert said[0] == "the training data of voice@3 was not checked: there is no file f3"
    assert said[1] == "cannot tell what voice@3 was trained on: there is no gone@1"
    assert said[2].startswith("the training data of voice@4 was not checked: ")


def test_a_chain_that_is_a_ring_ends() -> None:
    versions = TrainedVersions(
        {"voice@1": {"files": ["a"], "parent": "voice@2"}, "voice@2": {"files": 3, "parent": "voice@1"}}
    )
    assert [lesson.version for lesson in training_chain(cast(Any, versions), "voice@1")] == ["voice@1", "voice@2"]
    assert list(training_chain(cast(Any, versions), None)) == []


def test_the_training_s_verdict_names_what_the_job_held_out(gateway: FakeGateway) -> None:
    way = Gateway(gateway.url, KEY)
    gateway.verdicts = [{"kind": "evaluation", "files": {"held_out": "another"}}]
    assert way.held_out_file("voice@1") is None
    gateway.verdicts = [{"kind": "training", "files": {"held_out": "file-h"}}]
    assert way.held_out_file("voice@1") == "file-h"
    way.close()


@pytest.mark.parametrize("taught", [6, 24])
def test_a_job_asks_nothing_that_was_taught_to_its_parent(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, taught: int
) -> None:
    monkeypatch.setattr(
        Gateway, "metadata", lambda _, version: {"lineage": {"files": ["old"]}} if version == "voice@1" else {}
    )
    gateway.files["old"] = jsonl(rows()[:taught])
    directory = make_job(parent="voice@1")
    job = JobSpec.model_validate_json((directory / "spec.json").read_bytes())
    data = read_dataset("t", jsonl(rows()))[1]
    way = Gateway(gateway.url, KEY)
    prepared = SimpleNamespace(
        training=data,
        held_out=data.examples,
        held_out_sequences=[SimpleNamespace(tokens=range(20))],
        report=SimpleNamespace(max_length=2048),
    )
    with RunDirectory(directory) as held:
        judging = Judging(
            job, held, way, lambda: None, plan=PLAN, primary=PRIMARY, name="voice@2", metadata=cast(Any, None),
            prepared=cast(Any, prepared),
        )  # fmt: skip
        if taught == 24:
            judged, _ = judging.judge()
            assert (judged.verdict, judged.examples) == ("not_enough_evidence", 0)
            assert judged.sentence.startswith("Not enough evidence: an ancestor of this version")
            assert gateway.kept == []
        else:
            fixed, asked = judging._fix_comparison()
            assert fixed.left_out == tuple(str(line) for line in range(1, 7))
            assert any(note.startswith("6 of 24 held-out examples are left out") for note in fixed.notes)
            assert NO_UNSEEN_EXAMPLES in fixed.notes
            assert {question.id for question in asked} == {q.id for q in questions(data.examples)} - {*fixed.left_out}
            assert len(asked) == 18
    way.close()


def test_the_record_of_what_is_left_out_survives_a_crash(make_job: Any, gateway: FakeGateway) -> None:
    """A worker that goes on reads it: what it would find now may be another thing."""
    directory = make_job()
    job = JobSpec.model_validate_json((directory / "spec.json").read_bytes())
    data = read_dataset("t", jsonl(rows()))[1]
    way = Gateway(gateway.url, KEY)
    prepared = SimpleNamespace(
        training=data,
        held_out=data.examples,
        held_out_sequences=[SimpleNamespace(tokens=range(20))],
        report=SimpleNamespace(max_length=2048),
    )
    with RunDirectory(directory) as held:
        judging = Judging(
            job, held, way, lambda: None, plan=PLAN, primary=PRIMARY, name="voice@2", metadata=cast(Any, None),
            prepared=cast(Any, prepared),
        )  # fmt: skip
        fixed = judging._fix_comparison()[0].model_copy(update={"left_out": ("1", "2")})
        again = type(fixed).model_validate(json.loads(fixed.model_dump_json(by_alias=True)))
        assert len(judging._sample(again.left_out)) == 22
    way.close()
