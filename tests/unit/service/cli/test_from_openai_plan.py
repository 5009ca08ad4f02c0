"""What becomes of OpenAI's jobs: names, settings, metadata, and what does not come along."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from adapters.protocol.requests import MAX_METADATA
from service.access.keys import PREFIX
from service.cli.from_openai.command import HATRACK_KEYS, app
from service.cli.from_openai.plan import JOB, METHODS, MODEL, OPTIONS, PlannedJob, adapter_name, plan_job
from service.cli.from_openai.training_file import convert
from service.client import ClientError
from tests.conftest import REPO
from tests.support.openai_account import RESOLVED, OpenAIStandIn, chat_lines
from trainer.finetune.schemas import OPENAIS, UNSERVABLE, CreateBody, Options, read_body
from trainer.tune.hyperparameters import HyperparameterRequest

CODES = re.compile(r'"(openai_(?!job|model)[a-z_]+|not_openai|\w+_unsupported)"')


def planned(job_id: str = "ftjob-1", **fields: Any) -> PlannedJob:
    """The plan for a job with these fields; its files are at OpenAI unless their ids begin with `gone`."""
    account = OpenAIStandIn()
    names = ("name", "any_status", "automatic", "here", "existing", "promote")
    options = {name: fields.pop(name) for name in names if name in fields}
    job: Any = account.add_job(job_id, "support", **fields)
    for file_id in filter(None, (job["training_file"], job["validation_file"])):
        account.add_file(file_id, chat_lines(10))
    files: Any = {name: None if name.startswith("gone") else file for name, file in account.files.items()}
    return plan_job(job, files, **options)


def body_of(plan: PlannedJob) -> dict[str, Any]:
    """The body that creates the job, as the client would send it."""
    hyperparameters = dict(plan.hyperparameters)
    return {
        "model": "tiny",
        "training_file": "file-1",
        "metadata": {"adapter": plan.adapter, **plan.metadata},
        "method": {"type": plan.method, plan.method: {"hyperparameters": hyperparameters}},
    } | ({} if plan.seed is None else {"seed": plan.seed})


def test_a_supervised_job_keeps_its_settings() -> None:
    plan = planned(validation_file="file-valid", metadata={"team": "shop"})
    assert plan.wanted
    assert (plan.adapter, plan.method, plan.seed) == ("support", "supervised", 42)
    assert plan.hyperparameters == RESOLVED
    assert plan.metadata == {JOB: "ftjob-1", "team": "shop", MODEL: plan.source["fine_tuned_model"]}
    assert [file["id"] for file in plan.files] == ["file-train", "file-valid"]
    assert plan.notes == ()
    request = read_body(body_of(plan))
    assert request.hyperparameters.learning_rate_multiplier == 1.8
    assert request.options.adapter == "support"


def test_a_preference_job_keeps_its_beta() -> None:
    hyperparameters = RESOLVED | {"beta": 0.1}
    plan = planned(method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}, hyperparameters=None)
    assert (plan.method, plan.hyperparameters) == ("dpo", hyperparameters)
    assert read_body(body_of(plan)).method == "dpo"


def test_a_job_older_than_methods_is_supervised() -> None:
    plan = planned(method=None, hyperparameters={"n_epochs": 4, "batch_size": "auto"})
    assert (plan.method, plan.hyperparameters) == ("supervised", {"n_epochs": 4})
    assert planned(automatic=True).hyperparameters == {}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:Support Bot:9kLm"}, "support-bot"),
        ({"fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:support:9kLm:ckpt-step-40"}, "support"),
        (
            {"fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme::9kLm", "user_provided_suffix": None},
            "openai-abcdefghijkl",
        ),
        ({"fine_tuned_model": None}, "support"),
        ({"fine_tuned_model": None, "user_provided_suffix": None}, "openai-abcdefghijkl"),
    ],
)
def test_the_adapter_is_named_after_the_suffix(fields: dict[str, Any], name: str) -> None:
    job: Any = OpenAIStandIn().add_job("ftjob-AbCdEfGhIjKlMnOp", "support", **fields)
    assert adapter_name(job) == name
    assert planned("ftjob-AbCdEfGhIjKlMnOp", name="mine", **fields).adapter == "mine"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"method": {"type": "reinforcement", "reinforcement": {}}},
            "reinforcement fine-tuning has no counterpart here",
        ),
        ({"method": {"type": "novel"}}, "the method 'novel' has no counterpart here"),
        ({"status": "failed"}, "it failed at OpenAI; `--job ftjob-1` takes it nevertheless"),
        ({"status": "running"}, "it has not ended at OpenAI; `--job ftjob-1` takes it nevertheless"),
        ({"training_file": "gone-1"}, "OpenAI no longer has its training file gone-1"),
    ],
)
def test_what_cannot_be_taken_says_why(fields: dict[str, Any], why: str) -> None:
    plan = planned(**fields)
    assert not plan.wanted
    assert why in str(plan.obstacle)


def test_a_job_that_failed_is_taken_if_it_is_named() -> None:
    assert planned(status="cancelled", any_status=True).wanted


def test_what_an_earlier_run_made_is_not_made_again() -> None:
    plan = planned(here={"id": "ftjob-here", "status": "running", "hatrack": {"adapter": "renamed"}})
    assert (plan.wanted, plan.adapter) == (False, "renamed")


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"validation_file": "gone-2"}, "the validation file gone-2: some of the training file is held out instead"),
        (
            {"model": "ft:gpt-4o-mini-2024-07-18:acme:first:7x"},
            "whose weights cannot be exported: it is trained from the",
        ),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "bots"}}]}, "integration wandb (bots) is not taken"),
        ({"seed": 2**32}, "seed 4294967296 is not allowed here: another one is chosen"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 4096}}}},
            "batch_size 4096 is not allowed here: it is chosen from the data",
        ),
        ({"metadata": {"judge": "me"}}, "metadata `judge` is kept as `openai_judge`"),
    ],
)
def test_what_does_not_come_along_is_said(fields: dict[str, Any], note: str) -> None:
    plan = planned(**fields)
    assert plan.wanted
    assert any(note in line for line in plan.notes), plan.notes
    read_body(body_of(plan))


def test_no_pair_of_metadata_becomes_an_option_here() -> None:
    options = {*Options.model_fields, *HyperparameterRequest.model_fields, *UNSERVABLE} - OPENAIS
    assert options <= OPTIONS
    for name in (*options, JOB, MODEL, "hatrack_verdict"):
        plan = planned(metadata={name: "true"})
        assert plan.metadata == {JOB: "ftjob-1", f"openai_{name}": "true", MODEL: plan.metadata[MODEL]}
        request = read_body(body_of(plan))
        assert request.options == Options(adapter="support")
        assert request.hyperparameters == HyperparameterRequest(**RESOLVED)


def test_a_full_set_of_metadata_leaves_room_for_what_is_made_here() -> None:
    plan = planned(metadata={f"k{number}": "v" for number in range(MAX_METADATA)})
    assert "metadata `k14`, `k15` has no room" in plan.notes[0]
    assert plan.metadata[JOB] == "ftjob-1"
    CreateBody.model_validate(body_of(plan))


@pytest.mark.parametrize(
    ("aliases", "splits", "promote", "sent", "note"),
    [
        ({"live": 3}, {}, False, "never", "becomes a candidate, and @3 stays live; --promote replaces it"),
        ({"live": 3}, {}, True, "auto", "replaces @3, which is live"),
        ({"live": None}, {"live": {"4": 10, "3": 90}}, False, "never", "`live` is a split over @3 and @4: only"),
        ({"canary": 3}, {}, False, "auto", "nothing of it is live: a version that passes goes live"),
    ],
)
def test_what_is_live_under_the_name_stays_live_unless_asked(
    aliases: dict[str, int | None], splits: dict[str, dict[str, int]], promote: bool, sent: str, note: str
) -> None:
    existing = {"name": "support", "aliases": aliases, "splits": splits}
    metadata = {f"k{number}": "v" for number in range(MAX_METADATA)}
    plan = planned(existing=existing, promote=promote, metadata=metadata)
    request = read_body(body_of(plan))
    assert request.options.promote == sent
    assert len(request.body.metadata or {}) == MAX_METADATA
    assert note in plan.notes[-1]


def test_the_page_has_every_option_and_every_code() -> None:
    page = (REPO / "service" / "cli" / "FROM_OPENAI.md").read_text()
    command: Any = typer.main.get_command(app)
    for parameter in command.commands["openai"].params:
        assert any(f"`{option}" in page for option in parameter.opts), parameter.opts
    sources = [*(REPO / "service" / "cli" / "from_openai").glob("*.py"), REPO / "service/client/openai_account.py"]
    codes = {code for path in sources for code in CODES.findall(path.read_text())}
    assert len(codes) > 10
    assert not {code for code in codes if f"`{code}`" not in page}
    assert not {name for names in METHODS.values() for name in names if f"`{name}`" not in page}


def test_a_gateways_keys_are_known_by_their_beginning() -> None:
    assert HATRACK_KEYS == PREFIX


# training files


def parts(*kinds: str) -> list[dict[str, Any]]:
    return [{"type": kind, "text": "Hi. "} if kind == "text" else {"type": kind, kind: {"url": "x"}} for kind in kinds]


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def test_text_in_parts_becomes_one_text(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "Grüße\ud800"}
    chat = {"messages": [{"role": "user", "content": parts("text", "text")}, answer]}
    pair = {
        "input": {"messages": [{"role": "user", "content": parts("text")}]},
        "preferred_output": [{"role": "assistant", "content": parts("text")}],
        "non_preferred_output": [answer],
    }
    untouched = b'{"messages": [{"role": "user", "content": "\\"type\\""}]}\n'
    broken = b'{"type": \n'
    path = written(tmp_path, chat, untouched, pair, broken)
    assert convert(path, tmp_path / "out.jsonl") == 3
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["messages"] == [{"role": "user", "content": "Hi. Hi. "}, answer]
    assert (lines[1], lines[3]) == (untouched, broken)
    assert json.loads(lines[2])["preferred_output"][0]["content"] == "Hi. "


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("image_url", "vision_unsupported", "line 2 has a picture"),
        ("refusal", "content_unsupported", "line 2 has a message with a part of the type 'refusal'"),
    ],
)
def test_what_is_not_text_is_refused_with_its_line(tmp_path: Path, kind: str, code: str, says: str) -> None:
    row = {"messages": [{"role": "user", "content": parts("text", kind)}]}
    path = written(tmp_path, {"messages": []}, row)
    with pytest.raises(ClientError, match=says) as refused:
        convert(path, tmp_path / "out.jsonl")
    assert refused.value.code == code
