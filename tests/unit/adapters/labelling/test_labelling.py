"""From prompts to a training file, with a teacher that does as it is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.dataset.formats import Format, read_lines
from adapters.labelling.asking import (
    Journal,
    JournalInUse,
    PromptRefused,
    Reply,
    SpentTokens,
    Teacher,
    TeacherBusy,
    TeacherRefusesAll,
    ask_all,
)
from adapters.labelling.completion import read_completion
from adapters.labelling.prompts import Prompt, PromptsInvalid, read_prompts
from adapters.labelling.result import LabelFiles, Labelled, Outcome, draw, sort_replies, undetected_share

TEACHER = Teacher("big", max_tokens=64)


def prompts(count: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(line, ({"role": "user", "content": f"question {line}"},), group=f"g{line}")
        for line in range(1, count + 1)
    )


class Scripted:
    """A teacher that answers, unless ``says`` has a reply or an error for the question's number."""

    def __init__(self, **says: Any) -> None:
        self.says = says
        self.asked: list[int] = []
        self.in_flight = self.most_in_flight = 0

    async def __call__(self, teacher: Teacher, prompt: Prompt) -> Reply:
        self.asked.append(prompt.line)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        said = self.says.get(f"q{prompt.line}")
        if isinstance(said, list):
            said = said.pop(0) if said else None
        if isinstance(said, BaseException):
            raise said
        return said or Reply(f"answer {prompt.line}", "stop", None, 10, 5, "big@1", 0.1, teacher.max_tokens)


async def label(
    path: Path, found: Sequence[Prompt], ask: Scripted, teacher: Teacher = TEACHER, **more: Any
) -> Labelled:
    with Journal(path) as journal:
        await ask_all(found, teacher, journal, ask, **more)
        return sort_replies(found, teacher, journal)


# prompts


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_prompts_are_read_from_every_form() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    found = read_prompts(
        lines(
            {"prompt": "a", "id": 7},
            {"messages": turns, "group": "g", "filters": {"customer": "c-1"}},
            {"messages": [*turns[1:], {"role": "assistant", "content": "old answer"}]},
            {"prompt": "b"},
        )
    )
    assert [prompt.line for prompt in found.prompts] == [1, 2, 4]
    assert (found.repeated, found.answers) == (1, 1)
    assert found.prompts[1].messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "a"})
    assert (found.prompts[1].group, found.prompts[1].filters) == ("g", {"customer": "c-1"})
    text = read_prompts("\ufeffWhere is it?\n\n  And now? \n".encode(), as_text=True)
    assert [(prompt.line, prompt.messages[0]["content"]) for prompt in text.prompts] == [
        (1, "Where is it?"),
        (3, "And now?"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        "not an object",
        {},
        {"prompt": "a", "messages": []},
        {"prompt": 7},
        {"messages": [{"role": "system", "content": "s"}]},
        {"messages": [{"role": "assistant", "content": "s"}]},
        {"prompt": "a", "filters": "c-1"},
    ],
)
def test_every_line_that_is_no_prompt_is_listed(row: object) -> None:
    with pytest.raises(PromptsInvalid, match=r"line 2: .*line 4: not JSON"):
        read_prompts(lines({"prompt": "a"}, row, {"prompt": "b"}) + b"{\n")


@pytest.mark.parametrize(("content", "as_text"), [(b"", False), (b"\n\n", True)])
def test_a_file_without_prompts_is_refused(content: bytes, as_text: bool) -> None:
    with pytest.raises(PromptsInvalid, match="no prompts"):
        read_prompts(content, as_text=as_text)


# asking


async def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    found, broken = prompts(100), Scripted(q13=RuntimeError("connection lost"))
    with pytest.raises(RuntimeError):
        await label(tmp_path / "j", found, broken, concurrency=4)
    assert 12 < len(broken.asked) < 100
    mended = Scripted()
    labelled = await label(tmp_path / "j", found, mended)
    # twice: what broke, and what was in flight then
    twice = [line for line, times in Counter(broken.asked + mended.asked).items() if times > 1]
    assert 13 in twice
    assert len(twice) <= 4
    assert [each.reply.text for each in labelled.prompts] == [f"answer {line}" for line in range(1, 101)]
    again = Scripted()
    await label(tmp_path / "j", found, again)
    assert again.asked == []


async def test_a_journal_that_a_crash_cut_goes_on(tmp_path: Path) -> None:
    found = prompts(3)
    await label(tmp_path / "j", found, Scripted())
    content = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(b"not a reply\n[]\n" + content[:-20])
    rest = Scripted()
    labelled = await label(tmp_path / "j", found, rest)
    assert len(rest.asked) == 1
    assert len(labelled.prompts) == 3


async def test_another_teacher_or_prompt_has_replies_of_its_own(tmp_path: Path) -> None:
    found = prompts(2)
    await label(tmp_path / "j", found, Scripted())
    for teacher in (
        Teacher("other"),
        Teacher("big", outside=True),
        Teacher("big", system="Be kind."),
        Teacher("big", temperature=0.5),
    ):
        asked = Scripted()
        await label(tmp_path / "j", found, asked, teacher)
        assert sorted(asked.asked) == [1, 2]


async def test_what_was_cut_is_asked_again_for_longer_answers_only(tmp_path: Path) -> None:
    found = prompts(2)
    cut = Reply("answ", "length", max_tokens=64)
    labelled = await label(tmp_path / "j", found, Scripted(q2=cut))
    assert [each.prompt.line for each in labelled.of(Outcome.TRUNCATED)] == [2]
    same, longer = Scripted(), Scripted()
    await label(tmp_path / "j", found, same)
    assert same.asked == []
    labelled = await label(tmp_path / "j", found, longer, Teacher("big", max_tokens=128))
    assert longer.asked == [2]
    assert labelled.spent.completion == 5 + 0 + 5, "what was cut has been paid for as well"
    assert labelled.of(Outcome.TRUNCATED) == []


async def test_a_busy_teacher_is_left_alone_for_as_long_as_it_says(tmp_path: Path) -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)
        await asyncio.sleep(0)

    ask = Scripted(q1=[TeacherBusy("429", 7.0), TeacherBusy("503", 3600.0)])
    labelled = await label(tmp_path / "j", prompts(3), ask, concurrency=1, wait=wait)
    assert ask.asked == [1, 1, 1, 2, 3]
    assert len(labelled.prompts) == 3
    assert 6 < waited[0] <= 7
    assert 59 < waited[1] <= 60  # never longer than a minute


async def test_all_wait_while_the_teacher_is_busy(tmp_path: Path) -> None:
    open_again, all_wait, waiting = asyncio.Event(), asyncio.Event(), 0

    async def wait(_seconds: float) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 4:
            all_wait.set()
        await open_again.wait()

    ask = Scripted(**{f"q{line}": [TeacherBusy("429", 5)] for line in range(1, 5)})
    task = asyncio.ensure_future(label(tmp_path / "j", prompts(8), ask, concurrency=4, wait=wait))
    await all_wait.wait()
    assert sorted(ask.asked) == [1, 2, 3, 4]
    open_again.set()
    assert len((await task).prompts) == 8


async def test_a_teacher_that_stays_busy_ends_it(tmp_path: Path) -> None:
    async def wait(_seconds: float) -> None:
        await asyncio.sleep(0)

    ask = Scripted(q1=[TeacherBusy("engine down", 30.0)] * 9)
    with pytest.raises(TeacherBusy, match="engine down"):
        await label(tmp_path / "j", prompts(1), ask, wait=wait, patience_s=20)


async def test_a_teacher_that_refuses_all_is_at_fault_itself(tmp_path: Path) -> None:
    found = prompts(12)
    ask = Scripted(**{f"q{line}": PromptRefused("unsupported_value", "no such field") for line in range(1, 13)})
    with pytest.raises(TeacherRefusesAll, match="unsupported_value: no such field"):
        await label(tmp_path / "j", found, ask, concurrency=1)
    assert len(ask.asked) == 10
    # nothing of it is kept: with the settings mended, all are asked again
    mended = Scripted(q3=PromptRefused("content_filter", "no"))
    labelled = await label(tmp_path / "j", found, mended)
    assert sorted(mended.asked) == list(range(1, 13))
    assert [each.prompt.line for each in labelled.of(Outcome.REFUSED)] == [3]
    # a few that are all refused may be
    few = Scripted(q1=PromptRefused("content_filter", "no"))
    assert len((await label(tmp_path / "few", found[:1], few)).of(Outcome.REFUSED)) == 1


async def test_a_teacher_that_answered_before_an_interruption_does_not_refuse_all(tmp_path: Path) -> None:
    found = prompts(32)
    await label(tmp_path / "j", found[:10], Scripted())
    rest = Scripted(**{f"q{line}": PromptRefused("context_length_exceeded", "too long") for line in range(11, 33)})
    labelled = await label(tmp_path / "j", found, rest, concurrency=1)
    assert (len(labelled.of(Outcome.ANSWERED)), len(labelled.of(Outcome.REFUSED))) == (10, 22)


async def test_only_the_teachers_own_answer_is_learned(tmp_path: Path) -> None:
    turns = [("user", "Hello?"), ("assistant", "Hello."), ("user", "Where is it?")]
    asked = Prompt(1, tuple({"role": role, "content": said} for role, said in turns))
    labelled = await label(tmp_path / "j", [asked], Scripted(q1=Reply("Here.", "stop")))
    messages = labelled.prompts[0].training_row()["messages"]
    assert [(message["content"], message.get("weight")) for message in messages if message["role"] == "assistant"] == [
        ("Hello.", 0),
        ("Here.", None),
    ]


async def test_no_more_at_once_than_is_allowed(tmp_path: Path) -> None:
    ask = Scripted()
    await label(tmp_path / "j", prompts(30), ask, concurrency=3)
    assert ask.most_in_flight == 3


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(JournalInUse, match="another process"), Journal(tmp_path / "j"):
        pass


# the result


async def test_tokens_that_the_endpoint_does_not_state_are_not_known_to_be_none(tmp_path: Path) -> None:
    body = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    silent = read_completion(body, served_by=None, seconds=1.0, max_tokens=64)
    labelled = await label(tmp_path / "j", prompts(2), Scripted(q1=silent))
    assert labelled.spent == SpentTokens(10, 5, unmetered=1)
    assert (await label(tmp_path / "j", prompts(2), Scripted())).spent == labelled.spent, "read again"


async def test_without_an_answer_the_training_file_stays_as_it_is(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path / "out.jsonl")
    files.training.write_text("curated by hand\n")
    files.write(await label(files.journal, prompts(1), Scripted(q1=Reply("", "stop"))), TEACHER, 50)
    assert files.training.read_text() == "curated by hand\n"


async def test_what_is_no_answer_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path / "out.jsonl")
    ask = Scripted(
        q2=PromptRefused("content_filter", "not allowed"),
        q3=Reply("I'm sorry, but I can't help with that.", "stop"),
        q4=Reply("", "stop"),
        q5=Reply("an ans", "length", max_tokens=64),
        q6=Reply("", "content_filter"),
        q7=Reply("", "stop", refusal="I will not."),
        q8=Reply("We cannot ship there, I'm afraid.", "stop", None, 1, 2, "big@2"),
    )
    labelled = await label(files.journal, prompts(9), ask)
    files.write(labelled, TEACHER, 50)
    reader, examples = read_lines(files.training.read_bytes(), Format.CHAT)
    assert not reader.problems
    assert [(each.messages[0].content, each.judged.answer, each.group) for each in examples] == [
        ("question 1", "answer 1", "g1"),
        ("question 8", "We cannot ship there, I'm afraid.", "g8"),
        ("question 9", "answer 9", "g9"),
    ]
    refused = [json.loads(line) for line in files.refused.read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in refused] == [
        (2, "content_filter: not allowed"),
        (3, "the answer reads as a refusal"),
        (4, "the answer is empty"),
        (6, "the teacher's content filter stopped the answer"),
        (7, "I will not."),
    ]
    (cut,) = [json.loads(line) for line in files.truncated.read_text().splitlines()]
    assert (cut["line"], cut["answer"], cut["reason"]) == (5, "an ans", "longer than 64 tokens")
    assert labelled.spent == SpentTokens(21, 12)
    assert labelled.served_by == {"big@1": 2, "big@2": 1}
    # once nothing is set aside, nothing says so
    files.write(await label(files.journal, prompts(1), Scripted()), TEACHER, 50)
    assert not files.refused.exists()
    assert not files.truncated.exists()


async def test_a_teachers_system_prompt_is_not_taught(tmp_path: Path) -> None:
    teacher = Teacher("big", system="Speak as the shop.")
    own = Prompt(2, ({"role": "system", "content": "own"}, {"role": "user", "content": "q"}))
    assert [message["content"] for message in teacher.messages(prompts(1)[0])] == ["Speak as the shop.", "question 1"]
    assert [message["content"] for message in teacher.messages(own)] == ["own", "q"]
    labelled = await label(tmp_path / "j", prompts(1), Scripted(), teacher)
    assert [message["role"] for message in labelled.prompts[0].training_row()["messages"]] == ["user", "assistant"]


async def test_the_sample_is_drawn_once_and_says_what_it_can_tell(tmp_path: Path) -> None:
    files = LabelFiles(tmp_path / "out.jsonl")
    hostile = Reply("<script>alert(1)</script>", "stop")
    labelled = await label(files.journal, prompts(40), Scripted(**{f"q{line}": hostile for line in range(1, 41)}))
    answered = labelled.of(Outcome.ANSWERED)
    sample = draw(answered, 10)
    assert sample == draw(answered, 10) != draw(answered[:39], 10)
    assert len({each.prompt.line for each in sample}) == 10
    files.write(labelled, TEACHER, 10)
    page = files.sample.read_text()
    assert "10 of 40 answers" in page
    assert "at most 25.9% of all 40" in page
    assert page.count("<li>") == 10
    assert "<script>" not in page
    files.write(labelled, TEACHER, 50)
    assert "These are all of them." in files.sample.read_text()
    files.write(labelled, TEACHER, 0)
    assert not files.sample.exists()


def test_the_bound_of_a_sample_is_exact() -> None:
    assert undetected_share(59) == pytest.approx(0.0495, abs=1e-4)
    assert (1 - undetected_share(50)) ** 50 == pytest.approx(0.05)
