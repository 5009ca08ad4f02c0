"""What may not count in an evaluation: what the candidate was trained on, and what another engine has answered."""

from __future__ import annotations

import json

from tests.unit.trainer.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluations.test_worker import plan_of, run
from tests.unit.trainer.evaluations.world import World, jsonl, rows
from trainer.evaluate.arms import Question, Turn
from trainer.jobs import spec


def test_what_the_candidate_was_trained_on_is_no_measure_of_it(world: World, make_folder: MakeFolder) -> None:
    taught = world.add("train", jsonl([*rows()[:5], *rows(80)[40:]]))
    found = run(make_folder(content=jsonl(rows()), context={"training_files": [taught]}))
    assert found.error is not None
    assert (found.status, found.error.code) == ("failed", "held_out_in_training")
    assert "5 of 36 held-out examples (the first: 1)" in found.error.message
    assert (world.asked(), world.verdicts) == ([], [])


def test_what_its_own_job_held_out_of_the_file_is(world: World, make_folder: MakeFolder) -> None:
    """It stands in the training file, and was not trained on."""
    kept = [
        Question(id=f"q{at}", turns=(Turn(role="user", content=row["prompt"]),), reference=row["completion"])
        for at, row in enumerate(rows())
    ]
    content = "".join(question.model_dump_json() + "\n" for question in kept).encode()
    file = world.add("held", content).model_copy(update={"filename": "ftjob-7-held_out_questions.jsonl"})
    context = {
        "held_out": file,
        "lineage": {"job": "ftjob-7"},
        "training_files": [world.add("train", jsonl(rows()))],
    }
    assert run(make_folder(content=content, context=context)).status == "succeeded"
    another = context | {"lineage": {"job": "ftjob-8"}}
    assert run(make_folder(content=content, context=another, id="eval-2")).status == "failed"


def test_what_the_engine_answered_in_another_configuration_is_asked_again(
    world: World, make_folder: MakeFolder
) -> None:
    """It comes back with another chat template in the midst of it."""
    folder, say = make_folder({"model": "voice@3"}), world.say

    def another(model: str, asked: str) -> str:
        if len(world.asked()) >= 100:  # several are on their way at once: none may see just this number
            world.fingerprint = "f2"
        return say(model, asked)

    world.say = another
    result = run(folder)
    assert result.verdict == "pass"
    scored = sum(1 for path, body in world.requests if body.get("continue_final_message"))
    once = len(plan_of(folder).arms) * (36 + 30)
    assert len(world.asked()) - scored == 2 * once
    assert "what it had answered is asked again" in (folder / spec.EVENTS).read_text()
    assert len(world.verdicts) == 1


def test_one_that_never_comes_to_rest_fails(world: World, make_folder: MakeFolder) -> None:
    folder, say = make_folder(), world.say

    def changing(model: str, asked: str) -> str:
        world.fingerprint = f"f{len(world.asked())}"
        return say(model, asked)

    world.say = changing
    result = run(folder)
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "engine_moved")
    assert world.verdicts == []


def test_what_serves_from_a_store_that_the_key_may_not_read_costs_no_verdict(
    world: World, make_folder: MakeFolder
) -> None:
    world.live, world.grounded = 2, {2: {"vector_store_ids": ["vs_secret"]}}
    world.refused_models = {"voice@2": (404, "vector_store_not_found", {})}
    folder = make_folder({"model": "voice@3", "promote": "auto"})
    result = run(folder)
    assert (result.verdict, result.live, world.live, world.moves) == ("pass", False, 2, [])
    assert plan_of(folder).live is None
    said = "voice@2, which is live, is not compared with: the key that asked may not read a store that it answers from"
    assert str(result.note).startswith(said)
    assert "nothing was moved: voice still answers with @2, and could not be compared with" in str(result.note)
    assert json.loads((folder / "evaluation.json").read_text())["notes"] == [said]


def test_one_that_may_not_write_the_verdict_down_learns_so_without_looking_at_the_version(
    world: World, make_folder: MakeFolder
) -> None:
    world.refused_models = {"voice@2": (404, "vector_store_not_found", {})}
    result = run(make_folder({"model": "voice@3"}, context={"records": False, "live": "voice@2"}))
    assert result.verdict == "pass"
    assert str(result.note).startswith("voice@2, which is live, is not compared with")
    assert not any("/adapters" in line for line in world.control)


def test_what_serves_from_a_store_that_the_key_may_read_is_compared_with(world: World, make_folder: MakeFolder) -> None:
    world.live, world.grounded = 2, {2: {"vector_store_ids": ["vs_shop"]}}
    folder = make_folder()
    run(folder)
    assert plan_of(folder).live == "live"
