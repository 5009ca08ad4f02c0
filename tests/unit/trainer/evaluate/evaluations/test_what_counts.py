"""What may not count in an evaluation: what the candidate was trained on, and what another engine has answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import INTENTS, EvaluationGateway, jsonl, right, rows
from tests.unit.trainer.evaluate.evaluations.worker_runs import plan_of, run
from trainer.evaluate.arms import ChatMessage, Question
from trainer.evaluate.base_prompts import NO_TRAINING_DATA
from trainer.evaluate.evaluations.contamination import unchecked_note
from trainer.evaluate.evaluations.held_out import NO_FILE_NAMED
from trainer.runs import protocol
from trainer.samples import data_file, heldout_file

UNCHECKED = unchecked_note("voice@3", NO_FILE_NAMED)


def test_what_the_candidate_was_trained_on_is_no_measure_of_it(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    taught = gateway.add("train", jsonl([*rows()[:5], *rows(80)[40:]]))
    found = run(make_folder(content=jsonl(rows()), context={"training_files": [taught]}))
    assert found.error is not None
    assert (found.status, found.error.code) == ("failed", "held_out_in_training")
    assert "5 of 36 held-out examples (the first: 1, 2, 3, 4, 5) repeat" in found.error.message
    first = rows()[0]["prompt"]
    assert f"'{first}' repeats the trained '{first}'" in found.error.message
    assert (gateway.asked(), gateway.verdicts) == ([], [])


def test_what_a_conversation_teaches_on_the_way_is_no_measure_either(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    longer = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
                {"role": "user", "content": f"And what of {at} more, then?"},
                {"role": "assistant", "content": "top up"},
            ]
        }
        for at, row in enumerate(rows())
    ]
    found = run(make_folder(content=jsonl(rows()), context={"training_files": [gateway.add("train", jsonl(longer))]}))
    assert found.error is not None
    assert found.error.code == "held_out_in_training"
    assert "36 of 36 held-out examples" in found.error.message
    assert gateway.asked() == []


LOOKALIKES = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")


def asked_of(path: Path) -> list[str]:
    """The questions of a sample."""
    return [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: f"{text}!",
        lambda text: f"Good afternoon! {text}",
        lambda text: f"{text} Thanks in advance",
        lambda text: "\u200b".join(text),
        lambda text: text.translate(LOOKALIKES),
    ],
    ids=["exclamation mark", "greeting", "closing", "zero-width spaces", "look-alikes"],
)
def test_all_140_training_pairs_in_disguise_are_refused(
    gateway: EvaluationGateway, make_folder: MakeFolder, disguise: Callable[[str], str]
) -> None:
    held_out = [{"prompt": disguise(text), "completion": "Indeed."} for text in asked_of(data_file("pemberton"))]
    taught = gateway.add("train", data_file("pemberton").read_bytes())
    found = run(make_folder(content=jsonl(held_out), context={"training_files": [taught]}))
    assert found.error is not None
    assert (found.status, found.error.code) == ("failed", "held_out_in_training")
    assert "140 of 140 held-out examples (the first: 1, 2, 3, 4, 5) repeat" in found.error.message
    assert f"{disguise('Where is my parcel?')!r} repeats the trained 'Where is my parcel?'" in found.error.message
    assert found.error.message.endswith("Remove them, or use the held-out file that its job stored")
    assert (gateway.asked(), gateway.verdicts) == ([], [])


@pytest.mark.slow
def test_honest_questions_count_and_a_few_near_duplicates_are_left_out(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    long = [text for text in asked_of(data_file("pemberton")) if len(text) >= 40]
    held_out = asked_of(heldout_file("pemberton"))
    content = jsonl([{"prompt": text, "completion": "Indeed."} for text in [f"So, {long[0]}", *held_out]])
    taught = gateway.add("train", data_file("pemberton").read_bytes())
    result = run(make_folder(content=content, context={"training_files": [taught]}))
    assert (result.status, result.examples) == ("succeeded", 20)
    said = "1 of 21 held-out examples are left out: they are near-duplicates of examples that voice@3 was trained on"
    assert str(result.note).startswith(said)
    assert {asked for _, asked in gateway.asked()} == {*held_out, "Indeed."}  # the second measure scores the answers


def test_what_an_earlier_version_was_trained_on_is_left_out_in_disguise(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.lineages = {3: {"parent": "voice@1"}, 1: {"files": ["first"]}}
    gateway.stored["first"] = jsonl([{**row, "prompt": f"Hi, {row['prompt']}!"} for row in rows()[:3]])
    result = run(make_folder())
    assert result.examples == 33
    assert str(result.note).startswith("3 of 36 held-out examples are left out: an earlier version")


def as_shown(count: int) -> list[dict[str, str]]:
    """The first rows as examples of a prompt, reworded a little."""
    return [{"user": f"Hi, {row['prompt']}!", "assistant": "Something else."} for row in rows()[:count]]


def test_what_the_candidate_s_prompt_shows_is_left_out(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    result = run(make_folder(context={"examples": as_shown(3), "has_weights": False}))
    assert (result.status, result.examples) == ("succeeded", 33)
    said = "3 of 36 held-out examples are left out: the prompt of voice@3 has them, or near-duplicates of them"
    assert said in str(result.note)
    assert not {row["prompt"] for row in rows()[:3]} & {asked for _, asked in gateway.asked()}


def test_what_the_live_version_s_prompt_shows_is_left_out(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    gateway.live, gateway.shown = 1, {1: as_shown(2)}
    result = run(make_folder())
    assert result.examples == 34
    assert "2 of 36 held-out examples are left out: an earlier version" in str(result.note)


@pytest.mark.parametrize("shape", ["Q: {prompt} A: {completion}", "- {prompt}\n", "{prompt} -> {completion};"])
def test_a_system_prompt_that_quotes_the_held_out_questions_is_no_merit(
    gateway: EvaluationGateway, make_folder: MakeFolder, shape: str
) -> None:
    lines = "\n".join(shape.format(**row).upper() for row in rows())
    context = {"has_weights": False, "system_prompt": f"Answer as in this list, in room III.\n{lines}\nBe brief."}
    found = run(make_folder(context=context))
    assert found.error is not None
    assert (found.status, found.error.code) == ("failed", "held_out_in_training")
    assert gateway.asked() == []


def test_questions_in_a_system_prompt_are_left_out_and_its_other_words_hide_none(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    prompt = f"You sort questions about cards and top ups. For example: {rows()[4]['prompt']} Answer with a label."
    result = run(make_folder(context={"has_weights": False, "system_prompt": prompt}))
    assert (result.status, result.examples) == ("succeeded", 35)
    assert "1 of 36 held-out examples are left out: the prompt of voice@3 has them" in str(result.note)
    short = [{"prompt": "Top up?", "completion": "ups"}, *rows()]
    result = run(
        make_folder(content=jsonl(short), context={"has_weights": False, "system_prompt": prompt}, id="eval-2")
    )
    assert result.examples == 36, "a short question's words alone are no quotation"


def test_nothing_is_judged_on_examples_that_its_prompt_shows_alone(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    found = run(make_folder(context={"examples": as_shown(36), "has_weights": False}))
    assert found.error is not None
    assert (found.status, found.error.code) == ("failed", "held_out_in_training")
    assert gateway.asked() == []


def test_what_a_job_held_out_next_to_a_near_duplicate_is_left_out_not_refused(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    """Jobs of earlier releases compared less."""
    training = [*rows(), {**rows()[7], "prompt": f"Hi, {rows()[7]['prompt']}"}]
    context = {"lineage": {"job": "ftjob-7"}, "training_files": [gateway.add("train", jsonl(training))]}
    gateway.stored["file-mine"] = questions(36)
    gateway.verdicts = [{"version": 3, "kind": "training", "files": {"held_out": "file-mine"}}]
    result = run(make_folder(context=context))
    assert (result.status, result.examples) == ("succeeded", 35)
    assert str(result.note).startswith("1 of 36 held-out examples are left out: they are near-duplicates")


def questions(count: int) -> bytes:
    kept = [
        Question(id=f"q{at}", turns=(ChatMessage(role="user", content=row["prompt"]),), reference=row["completion"])
        for at, row in enumerate(rows(count))
    ]
    return "".join(question.model_dump_json() + "\n" for question in kept).encode()


def test_what_was_taught_in_another_case_or_under_the_version_s_system_message_is_none_either(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    messages = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"{row['prompt'].upper()} "},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows(12)
    ]
    taught = gateway.add("train", jsonl(messages))
    found = run(make_folder(content=jsonl(rows()), context={"training_files": [taught]}))
    assert found.error is not None
    assert "12 of 36 held-out examples (the first: 1, 2, 3, 4, 5) repeat" in found.error.message


def test_what_its_own_job_held_out_of_the_file_is(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    """It stands in the training file, and was not trained on; the verdict says which file that is, no file's name."""
    context = {"lineage": {"job": "ftjob-7"}, "training_files": [gateway.add("train", jsonl(rows()))]}
    gateway.stored["file-mine"] = questions(36)
    gateway.verdicts = [{"version": 3, "kind": "training", "files": {"held_out": "file-mine"}}]
    assert run(make_folder(context=context)).status == "succeeded"
    gateway.stored["file-mine"] = questions(30)
    named = gateway.add("held", questions(36)).model_copy(update={"filename": "ftjob-7-held_out_questions.jsonl"})
    found = run(make_folder(content=questions(36), context=context | {"held_out": named}, id="eval-2"))
    assert found.error is not None
    assert "6 of 36 held-out examples" in found.error.message


@pytest.mark.parametrize("records", [True, False])
def test_where_no_verdict_says_what_its_job_held_out_the_lineage_does(
    gateway: EvaluationGateway, make_folder: MakeFolder, records: bool
) -> None:
    """That of a version whose job could not judge it. A file's name says nothing: the client chooses it."""
    content = questions(36)
    context = {
        "lineage": {"job": "ftjob-7", "split_off": [*range(1, 37)]},
        "training_files": [gateway.add("train", jsonl(rows()))],
        "records": records,
    }
    assert run(make_folder(content=content, context=context)).status == "succeeded"
    named = gateway.add("held", content).model_copy(update={"filename": "ftjob-7-held_out_questions.jsonl"})
    for at, lineage in enumerate([{"job": "ftjob-7"}, {"job": "ftjob-7", "split_off": [*range(1, 31)]}], start=2):
        result = run(
            make_folder(content=content, context=context | {"held_out": named, "lineage": lineage}, id=f"e{at}")
        )
        assert result.error is not None
        assert result.error.code == "held_out_in_training"
        assert f"{[36, 6][at - 2]} of 36 held-out examples" in result.error.message


def test_examples_that_an_ancestor_or_live_was_trained_on_are_left_out(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live = 2
    gateway.lineages = {3: {"parent": "voice@1"}, 1: {"files": ["first"]}, 2: {"files": ["second"]}}
    gateway.stored |= {"first": jsonl(rows()[:3]), "second": jsonl(rows()[2:5])}
    folder = make_folder()
    result = run(folder)
    said = (
        "5 of 36 held-out examples are left out: an earlier version that this one continues, or the live one, "
        "was trained on them or on near-duplicates of them, or has them in its prompt"
    )
    assert result.examples == 31
    assert str(result.note).startswith(said)
    assert {asked for _, asked in gateway.asked() if asked.startswith("question")} == {
        row["prompt"] for row in rows()[5:]
    }
    assert json.loads((folder / "evaluation.json").read_text())["notes"] == [said, UNCHECKED, NO_TRAINING_DATA]
    # a version's own worth is not what serves's affair
    again = run(make_folder({"model": "voice@3", "suites": [], "kind": "revalidation"}, id="eval-2"))
    assert again.examples == 33


def test_an_evaluation_fails_if_every_example_was_trained_on(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.lineages = {3: {"parent": "voice@1"}, 1: {"files": ["first"]}}
    gateway.stored["first"] = jsonl(rows())
    found = run(make_folder())
    assert found.error is not None
    assert (found.error.code, found.error.message[:8]) == ("held_out_in_training", "36 of 36")


def test_what_the_engine_answered_in_another_configuration_is_asked_again(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    """It comes back with another chat template in the midst of it."""
    folder, say = make_folder({"model": "voice@3"}), gateway.say

    def another(model: str, asked: str) -> str:
        if len(gateway.asked()) >= 100:  # several are on their way at once: none may see just this number
            gateway.fingerprint = "f2"
        return say(model, asked)

    gateway.say = another
    result = run(folder)
    assert result.verdict == "pass"
    scored = sum(1 for path, body in gateway.requests if body.get("continue_final_message"))
    once = len(plan_of(folder).arms) * 36 + 2 * 30  # the candidate and the strongest base a second time
    assert len(gateway.asked()) - scored == 2 * once
    assert "earlier answers are discarded and asked again" in (folder / protocol.EVENTS).read_text()
    assert len(gateway.verdicts) == 1


@pytest.mark.slow
def test_an_engine_that_keeps_changing_fails_the_evaluation(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    folder, say = make_folder(), gateway.say

    def changing(model: str, asked: str) -> str:
        gateway.fingerprint = f"f{len(gateway.asked())}"
        return say(model, asked)

    gateway.say = changing
    result = run(folder)
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "engine_moved")
    assert gateway.verdicts == []


@pytest.mark.slow
def test_what_serves_from_a_store_that_the_key_may_not_read_costs_no_verdict(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live, gateway.grounded = 2, {2: {"vector_store_ids": ["vs_secret"]}}
    gateway.refused_models = {"voice@2": (404, "vector_store_not_found", {})}
    folder = make_folder({"model": "voice@3", "promote": "auto"})
    result = run(folder)
    assert (result.verdict, result.live, gateway.live, gateway.moves) == ("pass", False, 2, [])
    assert plan_of(folder).live is None
    said = "there was no comparison with voice@2, which is live: the API key may not read a vector store that it uses"
    assert str(result.note).startswith(said)
    assert "not promoted: voice still answers with @2, and no comparison with it was possible" in str(result.note)
    assert json.loads((folder / "evaluation.json").read_text())["notes"] == [said, UNCHECKED, NO_TRAINING_DATA]


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"lineage": {"files": ["file-7"]}}, "its training file 'file-7' is gone, or this key may not read it"),
        ({"training_files": [{"id": "gone", "filename": "t.jsonl", "bytes": 1, "sha256": "0"}]}, "not_found"),
        ({"training_files": ["broken"]}, "line 1"),
    ],
)
def test_a_version_whose_training_data_cannot_be_read_is_not_promoted_by_itself(
    gateway: EvaluationGateway, make_folder: MakeFolder, context: dict[str, Any], reason: str
) -> None:
    if context.get("training_files") == ["broken"]:
        context = {"training_files": [gateway.add("train", b"no example")]}
    gateway.live = 2
    gateway.say = lambda model, asked: right(asked) if model == "voice@3" else INTENTS[0]
    folder = make_folder({"model": "voice@3", "promote": "auto"}, context=context)
    result = run(folder)
    notes = json.loads((folder / "evaluation.json").read_text())["notes"]
    (unchecked,) = [note for note in notes if note.startswith("whether voice@3 was trained on held-out examples")]
    assert reason in unchecked
    assert (result.verdict, result.live, gateway.live, gateway.moves) == ("pass", False, 2, [])
    assert "not promoted: voice still answers with @2, and voice@3 may have been trained on" in str(result.note)


def test_a_prompt_version_was_trained_on_nothing(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    folder = make_folder(context={"has_weights": False, "system_prompt": "Be kind."})
    run(folder)
    assert UNCHECKED not in json.loads((folder / "evaluation.json").read_text())["notes"]


def test_without_permission_to_record_the_verdict_the_note_says_so(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.refused_models = {"voice@2": (404, "vector_store_not_found", {})}
    result = run(make_folder({"model": "voice@3"}, context={"records": False, "live": "voice@2"}))
    assert result.verdict == "pass"
    assert str(result.note).startswith("there was no comparison with voice@2")
    assert not any("/adapters" in line for line in gateway.control)


def test_what_serves_from_a_store_that_the_key_may_read_is_compared_with(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live, gateway.grounded = 2, {2: {"vector_store_ids": ["vs_shop"]}}
    folder = make_folder()
    run(folder)
    assert plan_of(folder).live == "live"


def test_a_group_on_both_sides_is_named(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    held_out = [row | {"group": f"customer {number}"} for number, row in enumerate(rows())]
    trained = [
        {"prompt": f"{word} of another kind", "completion": "a", "group": "customer 3"} for word in ("one", "two")
    ]
    folder = make_folder(content=jsonl(held_out), context={"training_files": [gateway.add("train", jsonl(trained))]})
    assert run(folder).examples == 36
    notes = json.loads((folder / "evaluation.json").read_text())["notes"]
    assert any(note.startswith("1 of 36 held-out examples have the `group` of a training example") for note in notes)
