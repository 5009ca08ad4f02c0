"""What the console does where the gateway changes under it or is slow: in a real Chromium, on answers written here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.costs import amount_text
from adapters.dataset.formats import read_lines
from adapters.dataset.lines import Problem, describe_problems
from service.database import metadata
from service.registry import alias_records
from service.registry.split import AliasTarget, Split
from service.registry.tables import adapters, versions
from tests.support.browser import Browser
from tests.support.legibility import faint_texts
from tests.unit.service.console.conftest import Answers, show

NO_DATASETS = {"data": [], "has_more": False}


# the rollback


def voice(**ready: str) -> dict[str, Any]:
    """An adapter with three versions of these states (`v2="proving"`), ready by default; `live` points to 3."""
    states = {number: ready.get(f"v{number}", "ready") for number in (1, 2, 3)}
    made = [{"version": number, "state": state, "held_back": None} for number, state in states.items()]
    return {"name": "voice", "aliases": {"live": 3}, "splits": {}, "versions": made}


def moves(*numbers: int) -> dict[str, Any]:
    """An alias with these moves, oldest first."""
    made = [{"version": each, "split": None, "action": "promote", "created_at": each} for each in numbers]
    return {"history": made[::-1], "version": numbers[-1], "split": None}


ALIAS, ADAPTER = "/v1/adapters/voice/aliases/live", "/v1/adapters/voice"


def test_a_rollback_goes_where_the_dialog_says_or_nowhere(page: Browser, answers: Answers) -> None:
    answers.told = {
        f"GET {ADAPTER}": [voice(v2="deleted"), voice(v1="deleted", v2="deleted"), voice(v2="deleted")],
        f"GET {ALIAS}": [moves(1, 2, 3)],
        f"POST {ALIAS}/rollback": [moves(1, 2, 3, 1)],
    }
    show(page, "alias_dialogs.js", "RollbackDialog", adapter=voice(), alias="live")
    page.wait("document.querySelector('.change')?.innerText.includes('@1')")
    assert "@2" not in page.run("document.querySelector('.change').innerText"), "it is not ready: passed over"
    page.click("Roll back", "dialog")
    page.wait_for_text("Nothing was rolled back")
    page.wait_for_text("a rollback now goes nowhere")
    assert f"POST {ALIAS}/rollback" not in answers.asked
    page.click("Roll back", "dialog")
    page.wait("window.called.includes('done')")
    assert answers.asked.count(f"POST {ALIAS}/rollback") == 1


def test_a_rollback_that_went_elsewhere_is_told(page: Browser, answers: Answers) -> None:
    answers.told = {
        f"GET {ADAPTER}": [voice()],
        f"GET {ALIAS}": [moves(1, 2, 3)],
        f"POST {ALIAS}/rollback": [moves(1, 2, 3, 1)],
    }
    show(page, "alias_dialogs.js", "RollbackDialog", adapter=voice(), alias="live")
    page.wait("document.querySelector('.change')?.innerText.includes('@2')")
    page.click("Roll back", "dialog")
    page.wait_for_text("went to @1, not to @2")
    page.click("Cancel", "dialog")
    assert page.run("window.called") == ["done"], "what is behind the dialog is loaded anew"


@pytest.mark.parametrize("seed", range(6))
def test_the_dialog_finds_the_target_that_the_registry_would(page: Browser, seed: int) -> None:
    draw = random.Random(seed)
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    cases, expected = list[tuple[list[dict[str, Any]], list[int]]](), list[int | dict[str, int] | None]()
    with engine.begin() as db:
        db.execute(adapters.insert().values(id=1, project="default", name="voice", next_version=6, created_at=0))
        fill: dict[str, Any] = {
            "digest": "",
            "settings": {},
            "metadata": {},
            "target_modules": [],
            "base": {},
            "config": b"",
        }
        fill |= {"rank": 0, "alpha": 0, "bytes": 0, "zero_effect": False, "warnings": [], "created_at": 0}
        for number in range(1, 6):
            db.execute(versions.insert().values(adapter_id=1, number=number, state="ready", **fill))
        for _ in range(40):
            ready = {number for number in range(1, 6) if draw.random() < 0.8}
            for number in range(1, 6):
                state = "ready" if number in ready else "proving"
                db.execute(versions.update().where(versions.c.number == number).values(state=state))
            target = alias_records.rollback_target(db, 1, "live")
            shown = [shown_move(each) for each in alias_records.history(db, 1, "live")]
            cases.append((shown, sorted(ready)))
            expected.append(target.shown() if isinstance(target, Split) else target)
            if target is not None and draw.random() < 0.5:
                assert alias_records.move_back(db, 1, "live", target)
            elif shown and draw.random() < 0.1:
                alias_records.drop(db, 1, "live")
            else:
                alias_records.move(db, 1, "live", some_target(draw), "promote")
    found = page.run(
        'import("/console/alias_dialogs.js").then(({ earlierTarget }) => '
        f"{json.dumps(cases)}.map(([moves, ready]) => earlierTarget(moves, new Set(ready)) ?? null))"
    )
    gone = [bool(shown) and shown[0]["action"] == "delete" for shown, _ in cases]
    assert [each for each, no in zip(found, gone, strict=True) if not no] == [
        each for each, no in zip(expected, gone, strict=True) if not no
    ], "a deleted alias is left out: the gateway answers 404, and no dialog opens"
    assert len({json.dumps(each) for each in expected}) > 4


def some_target(draw: random.Random) -> AliasTarget:
    pair = draw.sample(range(1, 6), 2)
    return Split.of({pair[0]: 90, pair[1]: 10}) if draw.random() < 0.3 else pair[0]


def shown_move(move: alias_records.AliasMoveRecord) -> dict[str, Any]:
    split = isinstance(move.target, Split)
    return {
        "version": None if split else move.target,
        "split": move.target.shown() if isinstance(move.target, Split) else None,
        "action": move.action,
        "created_at": move.created_at,
    }


# an example that is saved


def dataset(*numbers: int) -> dict[str, Any]:
    """A list of two datasets, of which the last has these versions, each in a file of its own."""
    made = [{"dataset": "support", "version": each, "file": f"file-{each}"} for each in numbers]
    other = {"name": "another", "latest": 1, "versions": [{"dataset": "another", "version": 1, "file": "file-other"}]}
    return {"data": [other, {"name": "support", "latest": numbers[-1], "versions": made}], "has_more": False}


ASKED, ANSWER = "Where is it?", "Aboard."
DATASET, PUSH, UPLOAD, LINE = "GET /v1/datasets", "POST /v1/datasets", "POST /v1/files", '{"messages": []}'


def save(page: Browser) -> None:
    show(page, "save_example.js", "SaveExample", question=ASKED, answer=ANSWER)
    page.fill("dialog input", "support")
    page.click("Save", "dialog")


def test_an_example_continues_the_newest_version_wherever_the_dataset_is_in_the_list(
    page: Browser, answers: Answers
) -> None:
    others = {"data": [{"name": f"other-{n}", "versions": []} for n in range(100)], "has_more": True, "last_id": "100"}
    answers.told = {
        DATASET: [*(page for newest in (2, 2, 3) for page in (*[others] * 4, dataset(*range(1, newest + 1))))],
        "GET /v1/files/file-2/content": [f"{LINE}\n"],
        UPLOAD: [{"id": "file-new"}],
        PUSH: [{"dataset": "support", "version": 3}],
    }
    save(page)
    page.wait("window.called.includes('close')")
    assert f'{LINE}\n{{"messages":[{{"role":"user","content":"Where is it?"}}' in answers.bodies[UPLOAD].decode()
    assert json.loads(answers.bodies[PUSH])["file"] == "file-new"


def sharegpt(user: str, assistant: str, question: str = "q", answer: str = "a") -> dict[str, Any]:
    return {"conversations": [{"from": user, "value": question}, {"from": assistant, "value": answer}]}


@pytest.mark.parametrize(
    ("first", "added"),
    [
        ('{"prompt": "p", "completion": "c"}', {"prompt": ASKED, "completion": ANSWER}),
        ('\ufeff{"instruction": "i", "output": "o"}', {"instruction": ASKED, "input": "", "output": ANSWER}),
        (f"no example\n{json.dumps(sharegpt('human', 'gpt'))}", sharegpt("human", "gpt", ASKED, ANSWER)),
        (json.dumps(sharegpt("user", "assistant")), sharegpt("user", "assistant", ASKED, ANSWER)),
    ],
    ids=["prompt_completion", "alpaca", "sharegpt", "sharegpt_user"],
)
def test_an_example_is_written_as_the_dataset_writes_its_own(
    page: Browser, answers: Answers, first: str, added: dict[str, Any]
) -> None:
    answers.told = {
        DATASET: [dataset(1), dataset(1), dataset(1, 2)],
        "GET /v1/files/file-1/content": [f"{first}\n"],
        UPLOAD: [{"id": "file-new"}],
        PUSH: [{"dataset": "support", "version": 2}],
    }
    save(page)
    page.wait("window.called.includes('close')")
    lines = answers.bodies[UPLOAD].decode().split("\r\n\r\n")[-1].split("\r\n--")[0].splitlines()
    assert json.loads(lines[-1]) == added
    reader, examples = read_lines(lines[-1].encode())
    assert reader.problems == []
    assert [message.content for message in examples[0].messages] == [ASKED, ANSWER]


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ('{"input": {}, "preferred_output": [], "non_preferred_output": []}', "This dataset has pairs of answers"),
        ('{"text": "no example"}', "The dataset's format is not known"),
    ],
)
def test_an_example_that_a_dataset_cannot_take_is_refused_before_anything_is_stored(
    page: Browser, answers: Answers, line: str, title: str
) -> None:
    answers.told = {DATASET: [dataset(1)], "GET /v1/files/file-1/content": [line]}
    save(page)
    page.wait_for_text(title)
    page.wait_for_text("support@1")
    assert UPLOAD not in answers.asked
    assert PUSH not in answers.asked


def test_an_example_begins_a_dataset_that_does_not_exist(page: Browser, answers: Answers) -> None:
    answers.told = {
        DATASET: [NO_DATASETS, NO_DATASETS, dataset(1)],
        UPLOAD: [{"id": "file-new"}],
        PUSH: [{"dataset": "support", "version": 1}],
    }
    save(page)
    page.wait("window.called.includes('close')")
    assert answers.bodies[UPLOAD].decode().count('"messages"') == 1
    assert page.problems == [], "what may not exist is not asked for"


def test_a_dataset_that_changed_meanwhile_is_not_pushed_over(page: Browser, answers: Answers) -> None:
    answers.told = {
        DATASET: [dataset(1), dataset(1, 2)],
        "GET /v1/files/file-1/content": [LINE],
        UPLOAD: [{"id": "file-new"}],
        "DELETE /v1/files/file-new": [{"deleted": True}],
    }
    save(page)
    page.wait_for_text("Nothing was saved yet")
    page.wait_for_text("support@1, and now there is support@2")
    assert PUSH not in answers.asked
    assert "DELETE /v1/files/file-new" in answers.asked


def test_a_version_that_came_in_the_last_moment_is_told(page: Browser, answers: Answers) -> None:
    answers.told = {
        DATASET: [dataset(1), dataset(1), dataset(1, 2, 3)],
        "GET /v1/files/file-1/content": [LINE],
        UPLOAD: [{"id": "file-new"}],
        PUSH: [{"dataset": "support", "version": 3}],
    }
    save(page)
    page.wait_for_text("What support@2 has is not in it")
    assert page.run("window.called") == []


# a file that is refused


def test_the_lines_for_which_a_file_is_refused_are_mended_in_place(
    page: Browser, answers: Answers, tmp_path: Path
) -> None:
    checked = "POST /v1/fine_tuning/data_check"
    good = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Aye"}]})
    (tmp_path / "voice.jsonl").write_text(f'{good}\n{{"messages": [\n{good}\n{{"messages": []}}\n')
    refusal = describe_problems([Problem(2, "not JSON: a `line 3: ` in it"), Problem(4, "no messages")])
    error = {"message": refusal, "type": "invalid_request_error", "param": "file", "code": "invalid_training_file"}
    answers.told = {checked: [(400, {"error": error})], "GET /v1/datasets": [NO_DATASETS]}
    show(page, "new_job.js", "NewJob", aim="train")
    page.wait("document.querySelector('.drop input')")
    page.attach(".drop input", tmp_path / "voice.jsonl")
    page.click("Mend 2 lines here …")
    page.fill("textarea[aria-label='Line 2']", good.replace("Aye", "Mended"))
    page.run("[...document.querySelectorAll('.mend-line button')].at(-1).click()")
    page.click("Check again with 2 changes")
    checks = "performance.getEntriesByType('resource').filter((each) => each.name.includes('/data_check'))"
    page.wait(f"{checks}.length === 2")
    sent = answers.bodies[checked].decode()
    assert f"{good}\n{good.replace('Aye', 'Mended')}\n{good}\n" in sent
    assert '{"messages": []}' not in sent


# the clock


def test_a_load_that_is_slower_than_the_interval_is_let_finish(page: Browser) -> None:
    """The load ends when the test says so, long after ticks have come: no time is waited for but that of the ticks."""
    page.run(
        """(async () => {
        const { html, render } = await import("/console/vendor/preact.js");
        const { useEvery, useLoaded } = await import("/console/ui.js");
        window.loads = []; window.ticks = 0;
        const Slow = () => {
          const loaded = useLoaded(() => new Promise((resolve) => { window.loads.push(resolve); }));
          useEvery(0.02, loaded.poll);
          useEvery(0.02, () => { window.ticks += 1; });
          window.reload = loaded.reload;
          return html`<p id="slow">${loaded.data ?? "nothing"}</p>`;
        };
        const root = document.createElement("div");
        document.body.replaceChildren(root);
        render(html`<${Slow} />`, root);
        })()"""
    )
    page.wait("window.ticks > 10")
    assert page.run("window.loads.length") == 1, "ticks leave the load alone"
    page.run("window.loads[0]('first')")
    page.wait_for_text("first")
    page.wait("window.loads.length === 2")
    page.run("window.reload(), window.loads[1]('stale'), window.loads[2]('fresh')")
    page.wait_for_text("fresh")
    page.wait("window.loads.length === 4", 30)
    assert "stale" not in page.text


# words, and where the keyboard goes


def test_a_duration_has_two_units_at_most_and_none_that_is_full(page: Browser) -> None:
    seconds = [0.4, 9.97, 59.6, 60, 61.2, 119.7, 3599.7, 7199, 86_380]
    shown = page.run(f'import("/console/format.js").then(({{ duration }}) => {json.dumps(seconds)}.map(duration))')
    expected = ["400 ms", "10 s", "1 min", "1 min", "1 min 1 s", "2 min", "1 h", "2 h", "1.0 days"]
    assert shown == expected


def test_amounts_have_the_digits_that_they_need(page: Browser) -> None:
    amounts = [0, 0.00342, 0.0123, 12.4, 1250.4, None]
    shown = page.run(f'import("/console/format.js").then(({{ amount }}) => {json.dumps(amounts)}.map(amount))')
    assert shown == [*(amount_text(each) for each in amounts if each is not None), "–"], "as the command writes them"


@pytest.mark.parametrize(
    ("component", "focused"), [("RollbackDialog", "Cancel"), ("DeleteDialog", "Type voice to confirm")]
)
def test_a_dialog_gives_its_first_field_the_focus_and_never_what_acts(
    page: Browser, answers: Answers, component: str, focused: str
) -> None:
    answers.told = {f"GET {ADAPTER}": [voice()], f"GET {ALIAS}": [moves(1, 2, 3)]}
    show(page, "alias_dialogs.js", component, adapter=voice() | {"aliases": {}}, alias="live")
    page.wait("document.querySelector('dialog[open]')?.contains(document.activeElement)")
    name = "document.activeElement.labels?.[0]?.innerText || document.activeElement.innerText"
    assert page.run(name).startswith(focused)


def test_a_faint_text_is_found_whatever_makes_it_faint(page: Browser) -> None:
    page.run(
        """(() => {
        const add = (tag, text, style) => {
          const made = document.body.appendChild(document.createElement(tag));
          made.textContent = text;
          Object.assign(made.style, style);
          return made;
        };
        document.body.replaceChildren();
        document.body.style.background = "#222";
        add("p", "plain", { color: "#eee" });
        add("p", "dark grey", { color: "#555" });
        add("p", "seen through", { color: "#fff", opacity: 0.2 });
        add("p", "large", { color: "#777", fontSize: "30px" });
        add("p", "small", { color: "#777", fontSize: "10px" });
        add("p", "hidden", { color: "#222", display: "none" });
        add("button", "disabled", { color: "#333" }).disabled = true;
        add("input", "", { background: "#999", color: "#888" }).value = "typed";
        })()"""
    )
    assert [text.partition(": ")[2] for text in faint_texts(page)] == ["dark grey", "seen through", "small", "typed"]
    page.run("document.body.replaceChildren()")
