"""A teacher labels a ladder's prompts: what it is asked, what is learnt from it, its cost, and what a crash loses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adapters.costs import Prices, TokenPrices
from adapters.protocol.runs import TeacherRef
from tests.support.http import serving
from tests.support.system import plain_environment
from tests.unit.trainer.ladder.test_kind import LADDER, LadderRun, ladder
from trainer.data.format import parse_chat
from trainer.errors import DataError, GatewayRefused
from trainer.ladder import spec
from trainer.ladder.costs import one_time
from trainer.ladder.labelling import Labelling, teacher_of, training_file, usable_prompts
from trainer.ladder.spec import Labels
from trainer.runs.control import Interrupted
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import PAUSED

__all__ = ["ladder"]
INSTRUCTIONS = "Be kind."
HELD_OUT = parse_chat(
    b"".join(
        json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]}).encode()
        + b"\n"
        for text in ("Where is the parcel that I ordered last week?", "Can I change the colour of my lamp?")
    )
)


def lines(*texts: str, system: str | None = None) -> bytes:
    rows = []
    for text in texts:
        turns = [] if system is None else [{"role": "system", "content": system}]
        rows.append({"messages": [*turns, {"role": "user", "content": text}]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def distinct(count: int) -> list[str]:
    words = ("kettle", "blanket", "spade", "candle", "chair", "basket", "mug", "rug", "clock", "vase", "stool", "tray")
    return [f"{words[number % 12]} number {number * 37} came {number} days late" for number in range(count)]


# what may be learnt from


def test_a_prompt_that_repeats_a_held_out_question_is_left_out() -> None:
    copies = ("where is the parcel that i ordered LAST week", "Where is the parcel that I ordered last week??")
    prompts = usable_prompts("p.jsonl", lines(*distinct(12), *copies), HELD_OUT, without_system=False, limit=None)
    assert prompts.count == 12
    assert "parcel that" not in prompts.content.decode()
    assert prompts.notes == ("2 prompts of p.jsonl repeat or nearly repeat held-out questions, and are left out",)


def test_a_system_message_that_the_examples_have_lost_does_not_hide_a_held_out_question_or_the_teachers_own() -> None:
    content = lines(*distinct(10), "Can I change the colour of my lamp?", system="You are the shop.")
    prompts = usable_prompts("p.jsonl", content, HELD_OUT, without_system=True, limit=None)
    assert prompts.count == 10
    assert "You are the shop." not in prompts.content.decode()


def test_quick_asks_the_same_prompts_in_every_order() -> None:
    texts = distinct(40)
    some = usable_prompts("p.jsonl", lines(*texts), HELD_OUT, without_system=False, limit=15)
    others = usable_prompts("p.jsonl", lines(*reversed(texts)), HELD_OUT, without_system=False, limit=15)
    assert (some.count, some.notes) == (15, ("quick: the teacher is asked 15 of 40 prompts",))
    assert sorted(some.content.splitlines()) == sorted(others.content.splitlines())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{\n', "p.jsonl: line 2: not JSON"),
        ("p.jsonl", b"", "p.jsonl: line 1: the file has no prompts"),
        ("p.txt", b"one\ntwo\ntwo\n", "p.txt has 2 different prompts; a LoRA needs at least 10."),
        (
            "p.jsonl",
            lines("Can I change the colour of my lamp?", *distinct(9)),
            "p.jsonl has 10 different prompts, 1 of them repeat held-out questions; a LoRA needs at least 10.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_by_its_field(name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as refused:
        usable_prompts(name, content, HELD_OUT, without_system=False, limit=None)
    assert refused.value.param == "unlabelled_file"
    assert refused.value.message.startswith(message)


# asking


@dataclass
class TeachingGateway:
    """Answers each question with itself, or as ``says`` says; keeps what it was asked, and the files it was sent."""

    url: str = ""
    says: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    everything: tuple[int, dict[str, Any]] | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)
    hold_after: int | None = None
    """Requests after which no more are answered until `open`."""
    open: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        if path == "/v1/files":
            self.files.append(body)
            return 200, b'{"id": "file-labelled"}', {}
        sent = json.loads(body)
        question = str(sent["messages"][-1]["content"])
        with self.lock:
            self.asked.append((path, sent))
            number = len(self.asked)
        if self.hold_after is not None and number > self.hold_after:
            self.held.set()
            self.open.wait()
        status, content = self.everything or self.says.get(question) or (200, completion(question))
        return status, json.dumps(content).encode(), {"x-hatrack-adapter": "support@9"}


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}


def refusal(code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": f"it says {code}", "code": code, "param": param}}


@pytest.fixture
def gateway() -> Iterator[TeachingGateway]:
    fake = TeachingGateway()
    with serving(fake.answer) as fake.url:
        yield fake
        fake.open.set()


def prepared(ladder: LadderRun, gateway: TeachingGateway, teacher: TeacherRef, prompts: int, **changes: Any) -> Path:
    """A ladder whose prompts have been compared, and whose teacher is to be asked next."""
    context = ladder.spec.context_of_request.model_copy(update={"teacher": teacher})
    changed = {"gateway": gateway.url, "context_of_request": context, **changes}
    ladder.spec = ladder.spec.model_copy(update=changed)
    ladder.ladders.write(LADDER, "spec.json", ladder.spec)
    ladder.plan(prompts=prompts)
    ladder.rungs("base", "instructions")
    directory = ladder.ladders.path_of(LADDER)
    (directory / spec.PROMPTS).write_bytes(lines(*(f"q{number}" for number in range(prompts))))
    return directory


def labelled(
    ladder: LadderRun, gateway: TeachingGateway, teacher: TeacherRef, prompts: int = 20, **options: Any
) -> tuple[Labels, list[dict[str, Any]]]:
    """What came of it, and the rows to learn from."""
    changes = {name: options.pop(name) for name in ("teacher_prices", "prices") if name in options}
    path = prepared(ladder, gateway, teacher, prompts, **changes)
    with RunDirectory(path) as directory:
        labelling = Labelling(
            *(ladder.spec, ladder.plan(prompts=prompts), INSTRUCTIONS, directory, lambda: None, lambda _labels: None),
            **options,
        )
        labels, replies = labelling.run("key")
    return labels, [json.loads(line) for line in training_file(replies).splitlines()]


VERSION = TeacherRef(name="support@2", outside=False)
OUTSIDE = TeacherRef(name="large", outside=True)


def test_a_version_answers_as_it_is_served_and_what_it_refuses_is_set_aside(
    ladder: LadderRun, gateway: TeachingGateway
) -> None:
    gateway.says = {
        "q1": (400, refusal("context_length_exceeded", "messages")),
        "q2": (200, completion("cut he", "length")),
        "q3": (200, completion("I'm sorry, but I can't help with that.")),
    }
    labels, rows = labelled(ladder, gateway, VERSION)
    assert (labels.answered, labels.refused, labels.truncated, labels.error) == (17, 2, 1, None)
    assert [row["messages"][0]["content"] for row in rows] == [f"q{number}" for number in (0, *range(4, 20))]
    assert all([message["role"] for message in row["messages"]] == ["user", "assistant"] for row in rows)
    path, body = gateway.asked[0]
    assert (path, body["model"], body["temperature"], body["max_tokens"]) == (
        "/v1/chat/completions",
        "support@2",
        0,
        32,
    )
    assert {message["role"] for _, sent in gateway.asked for message in sent["messages"]} == {"user"}
    assert (labels.prompt_tokens, labels.completion_tokens) == (1900, 190)
    assert labels.engine_seconds > 0


def test_an_outside_teacher_is_told_the_instructions_and_charges_for_tokens(
    ladder: LadderRun, gateway: TeachingGateway
) -> None:
    prices = {"teacher_prices": TokenPrices(input=2.0, output=10.0), "prices": Prices(device_hour=3.6)}
    labels, rows = labelled(ladder, gateway, OUTSIDE, **prices)
    path, body = gateway.asked[0]
    assert path == "/v1/teachers/large"
    assert body["messages"][0] == {"role": "system", "content": INSTRUCTIONS}
    assert "temperature" not in body
    assert body["max_tokens"] == 512
    assert rows[0]["messages"][0]["role"] == "user"
    assert labels.money == pytest.approx((2000 * 2 + 200 * 10) / 1e6)
    assert labels.engine_seconds == 0
    once = one_time(1000, Prices(device_hour=3.6), labels)
    assert (once.money, once.teacher) == (pytest.approx(1 + 0.006), pytest.approx(0.006))
    unpriced = labels.model_copy(update={"money": None})
    assert one_time(1000, Prices(device_hour=3.6), unpriced).money is None


def test_the_engine_time_of_a_version_that_teaches_is_part_of_the_cost() -> None:
    labels = Labels(teacher="support@2", outside=False, prompts=20, answered=20, engine_seconds=500)
    once = one_time(1000, Prices(device_hour=3.6), labels)
    assert (once.device_seconds, once.money, once.teacher) == (1500, pytest.approx(1.5), pytest.approx(0.5))


def test_the_base_has_no_prompt_of_its_own(ladder: LadderRun) -> None:
    context = ladder.spec.context_of_request.model_copy(update={"teacher": TeacherRef(name="tiny", outside=False)})
    asked = teacher_of(ladder.spec.model_copy(update={"context_of_request": context}), ladder.plan(), INSTRUCTIONS)
    assert (asked.system, asked.max_tokens) == (INSTRUCTIONS, 32)


def test_a_teacher_that_is_served_here_has_more_room_than_an_answer_that_is_scored(ladder: LadderRun) -> None:
    context = ladder.spec.context_of_request.model_copy(update={"teacher": TeacherRef(name="tiny", outside=False)})
    job = ladder.spec.model_copy(update={"context_of_request": context})
    assert teacher_of(job, ladder.plan(teacher_max_tokens=80), INSTRUCTIONS).max_tokens == 80


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ((422, refusal("teacher_refused")), "the teacher large refuses every prompt (teacher_refused: it says"),
        ((404, refusal("teacher_not_found")), "the teacher large could not be asked: it says teacher_not_found"),
        ((429, refusal("teacher_busy")), "the teacher large stayed busy (429 teacher_busy"),
        ((200, {"nothing": 1}), "the teacher large could not be asked: the answer is not a chat completion"),
        (
            (200, completion("", "length")),
            "the teacher large answered 0 of 20 prompts (0 refused, 20 cut); a LoRA needs",
        ),
    ],
)
def test_a_teacher_that_does_not_answer_leaves_a_reason_and_the_ladder_goes_on(
    ladder: LadderRun, gateway: TeachingGateway, says: tuple[int, dict[str, Any]], reason: str
) -> None:
    gateway.everything = says
    labels, _ = labelled(ladder, gateway, OUTSIDE, patience_s=0.5)
    assert labels.error is not None
    assert labels.error.startswith(reason)


def test_a_revoked_key_ends_the_ladder(ladder: LadderRun, gateway: TeachingGateway) -> None:
    gateway.everything = (401, refusal("invalid_api_key"))
    with pytest.raises(GatewayRefused):
        labelled(ladder, gateway, VERSION)


# a crash


def test_a_pause_keeps_what_is_labelled(ladder: LadderRun, gateway: TeachingGateway) -> None:
    gateway.hold_after = 12

    def pause_when_held() -> None:
        if gateway.held.is_set():
            raise Interrupted(PAUSED)

    path = prepared(ladder, gateway, VERSION, 30)
    with RunDirectory(path) as directory:
        arguments = (ladder.spec, ladder.plan(prompts=30), INSTRUCTIONS, directory)
        with pytest.raises(Interrupted):
            Labelling(*arguments, pause_when_held, lambda _labels: None).run("key")
        gateway.hold_after = None
        gateway.open.set()
        labels, _ = Labelling(*arguments, lambda: None, lambda _labels: None).run("key")
    asked = Counter(str(body["messages"][-1]["content"]) for _, body in gateway.asked)
    assert (labels.answered, len(asked)) == (30, 30)
    assert sum(asked.values()) <= 30 + ladder.spec.concurrency


@pytest.mark.slow
def test_a_worker_that_is_killed_asks_again_only_what_was_under_way(
    ladder: LadderRun, gateway: TeachingGateway
) -> None:
    path = prepared(ladder, gateway, VERSION, 40)
    gateway.hold_after = 25
    command = [sys.executable, "-m", spec.WORKER, str(path), "--stage", "label"]
    with subprocess.Popen(command, env=plain_environment()) as worker:
        assert gateway.held.wait(120)
        os.kill(worker.pid, signal.SIGKILL)
    before = ladder.kind.progress(LADDER)
    assert "bytes of replies" in before
    gateway.hold_after = None
    gateway.open.set()
    subprocess.run(command, env=plain_environment(), check=True, timeout=120)
    assert ladder.kind.progress(LADDER) != before
    asked = Counter(str(body["messages"][-1]["content"]) for _, body in gateway.asked)
    assert len(asked) == 40
    assert sum(asked.values()) <= 40 + ladder.spec.concurrency
    labels = ladder.ladders.read(LADDER, spec.LABELS, Labels)
    assert labels is not None
    assert (labels.answered, labels.file is not None and labels.file.id) == (40, "file-labelled")
    assert b"q39" in gateway.files[0]
    assert "40 of 40 answers" in (path / spec.SAMPLE).read_text()
    subprocess.run(command, env=plain_environment(), check=True, timeout=120)
    assert (sum(asked.values()), len(gateway.files)) == (len(gateway.asked), 1)
