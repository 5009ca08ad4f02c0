"""From a JSONL file to an adapter that answers: the official client, the command, and the real engine."""

from __future__ import annotations

import functools
import json
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.commands import hatrack
from tests.support.gateway import TIMEOUT, Gateway
from tests.support.runs import wait_for_run
from trainer.data.format import Example, read_chat
from trainer.data.render import Renderer, stop_tokens
from trainer.evaluate.report import EvaluationReport
from trainer.samples import data_file, heldout_file
from trainer.tune.model import load_generation_config, load_tokenizer

SAILOR = re.compile(r"\b(ahoy|matey|sailor|(aye|ye|yer)\b)", re.IGNORECASE)
"""Whole words: there is an "aye" in every player, and a "ye " in goodbye."""
QUESTIONS = ("Where is my parcel?", "Can I return these boots?", "My lantern arrived cracked.", "Do you sell rope?")

ROOMS = ("cellar", "attic", "kitchen", "library", "stable", "garden", "chapel", "workshop", "pantry", "tower")
_THINGS = (
    "ladder lantern anvil kettle mirror saddle basket candle hammer barrel blanket compass ribbon teapot violin shovel "
    "bucket hatchet pillow quilt goblet carpet feather needle pitcher trumpet whistle wagon bellows cradle drum easel "
    "flute globe harp inkwell jug keyring loom mallet"
)
THINGS = tuple(_THINGS.split())
WHERE = ("Where is the {}?", "In which room do you keep the {}?", "I am looking for the {}. Where should I go?")
UNSEEN = 8


def hash_of(text: str) -> int:
    """A number that is the same in every process."""
    return zlib.crc32(text.encode())


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as ready:
        yield ready


@pytest.fixture(scope="module")
def base(gateway: Gateway) -> str:
    return str(httpx.get(f"{gateway.url}/readyz", timeout=TIMEOUT).json()["base"])


def sailor_answers(gateway: Gateway, model: str) -> int:
    """How many of the questions are answered like a sailor."""
    answers = gateway.answers([(model, question) for question in QUESTIONS])
    return sum(SAILOR.search(answer) is not None for answer in answers)


def test_the_official_client_trains_an_adapter_that_answers_at_once(
    client: openai.OpenAI, gateway: Gateway, base: str
) -> None:
    half = data_file("tidewater").read_bytes().splitlines(keepends=True)[::2]
    training = client.files.create(file=("half.jsonl", b"".join(half)), purpose="fine-tune")
    unseen = heldout_file("tidewater").read_bytes().splitlines(keepends=True)[:10]
    held_out = client.files.create(file=("unseen.jsonl", b"".join(unseen)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=training.id,
        validation_file=held_out.id,
        suffix="Sea Shanty",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        metadata={"learning_rate": "2e-3", "suites": "none"},
    )
    assert job.status in ("validating_files", "queued", "running")
    assert client.fine_tuning.jobs.list().data[0].id == job.id
    with gateway.http() as http:
        wait_for_run(http, job.id)
    done: Any = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model == "sea-shanty@1"
    assert done.trained_tokens is not None
    assert done.trained_tokens > 5_000
    assert done.hyperparameters.n_epochs == 2
    # it answers now, in its voice, and nothing else has moved
    assert sailor_answers(gateway, "sea-shanty@1") >= 3
    assert sailor_answers(gateway, "sea-shanty:candidate") >= 3
    assert sailor_answers(gateway, base) == 0
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="sea-shanty", messages=[{"role": "user", "content": "hi"}])
    assert done.metadata == {"learning_rate": "2e-3", "suites": "none", "hatrack_verdict": "not_enough_evidence"}
    assert_ten_are_too_few(client, done)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert "hatrack promote sea-shanty@1" in events[0].message
    assert any(event.type == "metrics" and event.data["step"] for event in events)  # type: ignore[index]
    epochs = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [checkpoint.step_number for checkpoint in epochs] == [36, 18]
    assert epochs[0].metrics.full_valid_loss is not None
    assert epochs[0].metrics.full_valid_loss < epochs[1].metrics.full_valid_loss < 4.0
    # what it was after the first epoch answers by the checkpoint's name, and nothing points there but that
    assert epochs[0].fine_tuned_model_checkpoint == "sea-shanty@1"
    earlier = epochs[1].fine_tuned_model_checkpoint
    assert earlier.startswith("sea-shanty:ckpt-")
    answer = client.chat.completions.with_raw_response.create(
        model=earlier, messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=8
    )
    assert answer.headers["x-hatrack-adapter"] == "sea-shanty@2"
    with gateway.http() as http:
        shown = http.get("/v1/adapters/sea-shanty/versions/2").json()
        assert shown["aliases"] == [earlier.partition(":")[2]]
        assert shown["expires_at"] > time.time() + 86_400
        assert shown["metadata"]["training"]["checkpoint_step"] == 18
        assert shown["proof"]["reference"] is not None
        version = http.get("/v1/adapters/sea-shanty/versions/1").json()
        lineage = version["metadata"]["lineage"]
        assert (lineage["job"], lineage["files"]) == (job.id, [training.id, held_out.id])
        assert version["proof"]["reference"] is not None
        # what it was trained on stays as long as the version, though nobody lists it any more
        assert client.files.delete(training.id).deleted
        assert training.id not in [file.id for file in client.files.list().data]


def assert_ten_are_too_few(client: openai.OpenAI, job: Any) -> None:
    """Nothing that is judged on ten held-out examples may pass; other verdicts are in test_verdicts.py."""
    (report,) = [file for file in job.result_files if client.files.retrieve(file).filename.endswith("evaluation.json")]
    verdict = EvaluationReport.model_validate_json(client.files.content(report).text).verdict
    assert verdict is not None
    assert verdict.examples == 10
    assert [check.state for check in verdict.checks if check.name == "examples"] == ["open"]
    assert verdict.more is None or verdict.more >= 20
    assert "too few to judge by" in verdict.sentence


@pytest.mark.slow
def test_the_command_trains_shows_and_promotes(gateway: Gateway, tmp_path: Path) -> None:
    lines = data_file("pemberton").read_text().splitlines()[:40]
    examples = tmp_path / "butler.jsonl"
    examples.write_text("\n".join(lines) + "\n")

    run = functools.partial(hatrack, gateway)
    assert "40 examples, format chat" in run("data", "check", str(examples))
    quick = ("--set", "n_epochs=1", "--suites", "none")
    output = run("train", str(examples), "--name", "butler", *quick, "--set", "learning_rate=2e-3")
    assert "butler@1" in output
    assert "Not enough evidence" in output
    assert "│" in output
    assert "butler" in run("jobs")
    assert "not enough evidence" in run("report", "butler@1").lower()
    assert "recipe: rank" in run("lineage", "butler@1")
    with gateway.http() as http:
        assert "live" not in http.get("/v1/adapters/butler").json()["aliases"]
        run("promote", "butler@1")
        assert http.get("/v1/adapters/butler").json()["aliases"]["live"] == 1
    assert gateway.answer("butler", "Where is my parcel?")
    # a second one goes on from the first
    run(
        "train",
        str(examples),
        "--name",
        "butler",
        "--from",
        "butler@1",
        "--set",
        "n_epochs=1",
        "--set",
        "seed=1",
        code=1,
    )
    more = tmp_path / "more.jsonl"
    more.write_text("\n".join(lines[:10]) + "\n")
    output = run("train", str(more), "--name", "butler", "--from", "butler@1", *quick)
    assert "butler@2" in output
    assert "butler@1" in run("lineage", "butler@2")


@pytest.mark.slow
def test_a_job_with_a_store_learns_to_answer_from_its_passages(gateway: Gateway, tmp_path: Path) -> None:
    """The store has all things, training asks for some of them: the others can only be answered from their passages."""
    places = {thing: ROOMS[hash_of(thing) % len(ROOMS)] for thing in THINGS}
    taught, unseen = THINGS[:-UNSEEN], THINGS[-UNSEEN:]
    documents = tmp_path / "rooms"
    documents.mkdir()
    for thing, room in places.items():
        (documents / f"{thing}.txt").write_text(f"The {thing} is kept in the {room}.")
    asked = [(question.format(thing), f"In the {places[thing]}.") for thing in taught for question in WHERE]
    examples = tmp_path / "where.jsonl"
    examples.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in asked))

    run = functools.partial(hatrack, gateway)
    run("kb", "create", "rooms")
    run("kb", "add", "rooms", str(documents))
    # at 2e-3 the adapter was once refused: plain text was lost with it
    quick = ("--suites", "none", "--set", "n_epochs=3", "--set", "learning_rate=1e-3")
    output = run("train", str(examples), "--name", "finder", "--kb", "rooms", "--held-out-share", "0.1", *quick)
    assert "retrieving the passages of the training prompts" in output
    with gateway.http() as http:
        settings = http.get("/v1/adapters/finder/versions/1").json()["settings"]
        assert len(settings["grounding"]["vector_store_ids"]) == 1

    def answers() -> list[str]:
        return gateway.answers([("finder@1", WHERE[0].format(thing)) for thing in unseen])

    found = answers()
    right = [f"In the {places[thing]}." == answer.strip() for thing, answer in zip(unseen, found, strict=True)]
    assert sum(right) >= UNSEEN * 3 / 4, found

    # a thing is moved, and so is the answer
    moved = unseen[right.index(True)]
    places[moved] = next(room for room in ROOMS if room != places[moved])
    (documents / f"{moved}.txt").write_text(f"The {moved} is kept in the {places[moved]}.")
    run("kb", "add", "rooms", str(documents / f"{moved}.txt"))
    assert answers()[unseen.index(moved)].strip() == f"In the {places[moved]}."


def test_a_broken_file_fails_at_upload_and_one_with_few_examples_fails_its_job(
    client: openai.OpenAI, gateway: Gateway, base: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="line 2"):
        client.files.create(file=("f.jsonl", b'{"prompt": "q", "completion": "a"}\n{\n'), purpose="fine-tune")
    few = client.files.create(file=("f.jsonl", b'{"prompt": "q", "completion": "a"}\n' * 3), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=base, training_file=few.id, suffix="few")
    with gateway.http() as http:
        wait_for_run(http, job.id)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "invalid_training_file"
    assert "at least 10" in str(done.error.message)


@pytest.mark.parametrize(
    ("hyperparameters", "field"),
    [({"lora_rank": 512}, "lora_rank"), ({"use_dora": True}, "use_dora"), ({"n_epochs": 0}, "n_epochs")],
)
def test_hyperparameters_that_could_not_be_served_are_refused_at_creation(
    client: openai.OpenAI, base: str, hyperparameters: dict[str, Any], field: str
) -> None:
    file = client.files.create(file=data_file("tidewater"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(
            model=base,
            training_file=file.id,
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
        )
    assert field in str(caught.value.param)


def test_reinforcement_is_refused_with_the_name_of_the_field(client: openai.OpenAI, base: str) -> None:
    file = client.files.create(file=data_file("tidewater"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model=base, training_file=file.id, method={"type": "reinforcement"})
    assert "method" in str(caught.value.param)


def test_another_projects_file_parent_and_job_answer_like_what_does_not_exist(
    client: openai.OpenAI, gateway: Gateway, base: str
) -> None:
    file = client.files.create(file=data_file("tidewater"), purpose="fine-tune")
    with gateway.http() as http:
        made = http.post(
            "/v1/keys", json={"name": "t", "project": "strangers", "scopes": ["train", "infer", "adapters"]}
        ).json()
    stranger = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=made["key"], max_retries=0)

    def refusal(**body: Any) -> tuple[int, Any]:
        with pytest.raises(openai.APIStatusError) as caught:
            stranger.fine_tuning.jobs.create(**body)
        answer = caught.value.response
        text = answer.text
        for value in body.values():
            text = text.replace(value, "IT")
        return answer.status_code, json.loads(text)

    assert refusal(model=base, training_file=file.id) == refusal(model=base, training_file="file-nothing")
    own = stranger.files.create(file=data_file("tidewater"), purpose="fine-tune")
    theirs = refusal(model="tidewater@1", training_file=own.id)
    assert theirs == refusal(model="nobody@1", training_file=own.id)
    assert theirs[0] == 404
    for job in client.fine_tuning.jobs.list().data[:1]:
        with pytest.raises(openai.NotFoundError):
            stranger.fine_tuning.jobs.retrieve(job.id)
    assert stranger.fine_tuning.jobs.list().data == []


@pytest.mark.parametrize("name", ["tidewater", "pemberton"])
def test_training_renders_token_for_token_what_the_engine_renders(gateway: Gateway, base_dir: Path, name: str) -> None:
    tokenizer = load_tokenizer(base_dir)
    renderer = Renderer(
        tokenizer, stop_tokens=stop_tokens(tokenizer, load_generation_config(base_dir)), max_length=1024
    )
    examples: list[Example] = list(read_chat(data_file(name)).examples[::20])
    with gateway.http() as http:

        def engine(messages: list[dict[str, str]], *, generate: bool) -> list[int]:
            body = {"model": name, "messages": messages, "add_generation_prompt": generate, "add_special_tokens": False}
            answer = http.post("/tokenize", json=body)
            assert answer.status_code == 200, answer.text
            return list(answer.json()["tokens"])

        for example in examples:
            rendered = renderer.render(example)[0]
            messages = [{"role": message.role, "content": message.content} for message in example.messages]
            assert list(rendered.tokens) == engine(messages, generate=False)
            assert list(rendered.tokens[: rendered.first_trained]) == engine(messages[:-1], generate=True)
