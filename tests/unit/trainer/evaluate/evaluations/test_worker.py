"""What an evaluation's worker does, against a gateway whose models say what the test wants them to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.evaluate.conftest import KEY
from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import (
    BASE,
    INTENTS,
    EvaluationGateway,
    jsonl,
    right,
    rows,
    tuned_is_right,
)
from tests.unit.trainer.evaluate.evaluations.worker_runs import plan_of, run, work
from trainer.config import Settings
from trainer.evaluate.arms import ChatMessage, Question
from trainer.evaluate.evaluations.spec import PAGE, REPORT
from trainer.evaluate.report import EvaluationReport
from trainer.reviews.stored_answers import draw_from
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import DONE


def test_a_better_version_passes_and_is_promoted(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    gateway.live = 2
    gateway.say = lambda model, asked: right(asked) if model == "voice@3" else INTENTS[0]
    folder = make_folder({"model": "voice", "promote": "auto"})
    result = run(folder)
    assert (result.status, result.verdict, result.metric, result.examples) == ("succeeded", "pass", "exact_match", 36)
    assert result.live is True
    assert (gateway.live, gateway.moves) == (3, [{"version": 3, "expected": 2}])
    wanted = plan_of(folder)
    assert [(arm.label, arm.model) for arm in wanted.arms] == [
        ("voice@3", "voice@3"),
        ("base", BASE),
        ("base told the answers", BASE),
        ("live", "voice@2"),
    ]
    assert wanted.arms[2].prompt.answers == tuple(sorted(INTENTS))
    (verdict,) = gateway.verdicts
    assert (verdict["version"], verdict["verdict"], verdict["kind"]) == (3, "pass", "evaluation")
    assert (verdict["sentence"], verdict["evaluation_id"]) == (result.sentence, "eval-1")
    assert verdict["files"] == {
        "report": "file-kept1",
        "page": "file-kept2",
        "scores": "file-kept3",
        "held_out": "held",
    }
    assert result.files == ("file-kept1", "file-kept2")
    assert [part["purpose"] for part in gateway.kept] == [b"fine-tune-results"] * 3
    report = EvaluationReport.model_validate_json((folder / REPORT).read_bytes())
    assert report.verdict is not None
    assert report.adapter == "voice@3"
    assert gateway.kept[1]["file"] == (folder / PAGE).read_bytes()
    # what is recorded asks for the same again
    assert verdict["evaluation"] == {
        "model": "voice@3",
        "held_out": "held",
        "metric": {"name": "exact_match"},
        "suites": ["general"],
        "judge": None,
        "max_tokens": 34,
        "repeats": 2,
    }


def test_what_a_worker_leaves_can_be_reviewed_by_people(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    """Of both arms' answers to 36 questions, as scored, those where they differ; the base is the strongest one."""
    gateway.say = lambda model, asked: right(asked) if model == "voice@3" else f"The answer is {INTENTS[0]}"
    folder = make_folder()
    run(folder)
    drawn = draw_from(folder, "eval-1", 10)
    assert (len(drawn.pairs), drawn.differing, drawn.alike) == (10, 24, 12)
    report = EvaluationReport.model_validate_json((folder / REPORT).read_bytes())
    assert report.verdict is not None
    for pair in drawn.pairs:
        assert (pair.candidate, pair.base) == ("voice@3", report.verdict.base)
        answers = {pair.first_is: pair.first} | {"base" if pair.first_is == "candidate" else "candidate": pair.second}
        assert answers == {"candidate": right(pair.turns[-1].content), "base": INTENTS[0]}
        assert pair.reference == answers["candidate"]


def test_the_base_gets_the_version_s_system_prompt(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    folder = make_folder(context={"system_prompt": "Be salty."})
    run(folder)
    candidate, *bases = plan_of(folder).arms
    assert candidate.prompt.system is None  # the gateway adds the version's own
    assert [arm.prompt.system for arm in bases] == ["Be salty.", "Be salty."]
    asked = [body["messages"][0] for path, body in gateway.requests if path.endswith("/chat/completions")]
    assert {"role": "system", "content": "Be salty."} in asked


def test_a_worse_version_fails_and_nothing_moves(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    gateway.say = lambda model, asked: right(asked) if model == BASE else "no idea"
    result = run(make_folder({"model": "voice@3", "suites": [], "promote": "auto"}))
    assert (result.verdict, result.live, gateway.live) == ("fail", False, None)
    assert gateway.moves == []
    assert "did not pass" in str(result.note)
    assert [one["verdict"] for one in gateway.verdicts] == ["fail"]


def test_ten_examples_are_not_enough_evidence(make_folder: MakeFolder) -> None:
    result = run(make_folder(content=jsonl(rows(10))))
    assert result.verdict == "not_enough_evidence"


def test_live_that_moved_meanwhile_stays(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    gateway.live = 1

    def moving(model: str, asked: str) -> str:
        gateway.live = 2
        return right(asked) if model == "voice@3" else "no idea"

    gateway.say = moving
    result = run(make_folder({"model": "voice@3", "promote": "auto"}))
    assert (result.verdict, result.live, gateway.live) == ("pass", False, 2)
    assert "now points to another version" in str(result.note)


def test_what_serves_and_cannot_answer_is_not_compared_with(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live, gateway.unservable = 2, {2}
    folder = make_folder()
    run(folder)
    assert plan_of(folder).live is None


def test_a_revalidation_asks_whether_a_version_holds_not_whether_another_is_better(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live = 2
    folder = make_folder({"model": "voice@3", "suites": [], "kind": "revalidation"})
    run(folder)
    assert plan_of(folder).live is None
    assert [one["kind"] for one in gateway.verdicts] == ["revalidation"]


def test_without_the_scope_for_adapters_nothing_is_written_down(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.say = lambda model, asked: right(asked) if model == "voice@3" else INTENTS[0]
    result = run(make_folder({"model": "voice@3"}, context={"records": False, "live": "voice@2"}))
    assert (result.status, result.verdict, result.live) == ("succeeded", "pass", None)
    assert "adapters" in str(result.note)
    assert gateway.verdicts == []
    assert not any("/adapters" in line for line in gateway.control)


def test_training_answers_close_a_set_that_the_held_out_leaves_open(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    few = jsonl([{"prompt": f"question {at}?", "completion": f"answer {at % 31}"} for at in range(31)])
    many = jsonl([{"prompt": f"other {at}?", "completion": f"answer {at % 31}"} for at in range(310)])
    folder = make_folder(content=few, context={"training_files": [gateway.add("train", many)]})
    run(folder)
    wanted = plan_of(folder)
    assert wanted.metric.name == "exact_match"
    assert len(wanted.taught) == 31


def test_a_deleted_training_file_is_skipped(make_folder: MakeFolder) -> None:
    gone = {"id": "gone", "filename": "t.jsonl", "bytes": 1, "sha256": "0"}
    assert run(make_folder(context={"training_files": [gone]})).status == "succeeded"


@pytest.mark.slow
def test_arms_without_a_candidate_are_compared(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    arms = [
        {"label": "old", "model": "voice@2"},
        {"label": "new", "model": "voice:next"},
        {"label": "kind", "model": BASE, "prompt": {"system": "Be kind."}},
    ]
    context = {"candidate": None, "models": {"old": "voice@2", "new": "voice@3", "kind": BASE}}
    folder = make_folder({"arms": arms, "metric": "token_f1"}, context=context)
    result = run(folder)
    assert (result.status, result.verdict, result.metric) == ("succeeded", None, "token_f1")
    assert [arm.model for arm in plan_of(folder).arms] == ["voice@2", "voice@3", BASE]
    report = EvaluationReport.model_validate_json((folder / REPORT).read_bytes())
    assert report.verdict is None
    assert [(one.of, one.against) for one in report.differences] == [("new", "old"), ("kind", "old")]
    assert report.differences[1].high < 0
    assert (folder / PAGE).stat().st_size > 1000
    assert gateway.verdicts == []


@pytest.mark.slow
def test_arms_of_a_job_s_verdict_are_judged_again(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    gateway.live = 2
    asked = [
        Question(id=f"q{at}", turns=(ChatMessage(role="user", content=row["prompt"]),), reference=row["completion"])
        for at, row in enumerate(rows())
    ]
    content = "".join(question.model_dump_json() + "\n" for question in asked).encode()
    arms = [{"label": "voice@3", "model": "voice@3"}, {"label": "base", "model": BASE}]
    body = {"arms": arms, "candidate": "voice@3", "bases": ["base"], "kind": "revalidation"}
    context = {"models": {"voice@3": "voice@3", "base": BASE}}
    result = run(make_folder(body, content, context))
    assert result.verdict == "pass"
    (verdict,) = gateway.verdicts
    assert (verdict["kind"], verdict["examples"]) == ("revalidation", 36)
    assert verdict["evaluation"]["candidate"] == "voice@3"


@pytest.mark.slow
def test_where_a_pass_would_replace_it_what_serves_is_asked_too(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live = 2
    arms = [{"label": "mine", "model": "voice@3"}, {"label": "base", "model": BASE}]
    body = {"arms": arms, "candidate": "mine", "bases": ["base"], "promote": "auto"}
    folder = make_folder(body, context={"models": {"mine": "voice@3", "base": BASE}})
    run(folder)
    assert (plan_of(folder).live, plan_of(folder).arms[-1].model) == ("live", "voice@2")


@pytest.mark.slow
def test_a_verdict_s_own_bases_are_judged_by_again_and_what_served_is_not(
    gateway: EvaluationGateway, make_folder: MakeFolder
) -> None:
    gateway.live = 2
    arms = [
        {"label": "mine", "model": "voice@3"},
        {"label": "base", "model": BASE, "prompt": {"system": "Be kind."}},
        {"label": "live", "model": "voice@1"},
    ]
    body = {"arms": arms, "candidate": "mine", "bases": ["base"], "promote": "auto"}
    run(make_folder(body, context={"models": {"mine": "voice@3", "base": BASE, "live": "voice@1"}}))
    again = gateway.verdicts[0]["evaluation"]
    assert [arm["label"] for arm in again["arms"]] == ["mine", "base", "live", "base (2)", "base told the answers"]
    assert again["bases"] == ["base (2)", "base", "base told the answers"]


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (b'{"prompt": "q"}\n', "invalid_held_out_file", "line 1"),
        (b"", "invalid_held_out_file", "empty"),
        (b'{"id": "1", "turns": [], "reference": "a"}\n' * 2, "invalid_held_out_file", "is used twice"),
        (b'{"turns": [], "reference": "a"}\n', "invalid_held_out_file", "not a valid question"),
        (b'{"id": "1", "turns": [], "reference": "a"}\n', "invalid_held_out_file", "line 1: `turns` is empty"),
        (
            b'{"id": "1", "turns": [{"role": "user", "content": "q"}], "reference": " "}\n',
            "invalid_held_out_file",
            "line 1: `reference` is empty",
        ),
    ],
)
def test_a_file_that_cannot_be_read_fails_with_its_lines(
    make_folder: MakeFolder, content: bytes, code: str, told: str
) -> None:
    result = run(make_folder(content=content))
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error.code, result.error.param) == (code, "held_out")
    assert told in result.error.message


def test_a_version_that_cannot_answer_fails_with_its_name(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    gateway.refused_models = {"voice@3": (409, "version_damaged", {})}
    result = run(make_folder())
    assert result.error is not None
    assert result.error.code == "arm_unservable"
    assert "voice@3" in result.error.message


def test_a_revoked_key_is_reported(gateway: EvaluationGateway, make_folder: MakeFolder) -> None:
    folder = make_folder()
    gateway.keys.discard(KEY)
    result = run(folder)
    assert result.error is not None
    assert result.error.code == "key_revoked"


def test_an_endpoint_of_the_settings_is_asked_with_its_own_key(
    gateway: EvaluationGateway, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTSIDE_KEY", KEY)
    named = tmp_path / "endpoints.toml"
    named.write_text(f'[endpoints.elsewhere]\nurl = "{gateway.url}/v1"\nkey_env = "OUTSIDE_KEY"\n')
    arms: list[dict[str, Any]] = [
        {"label": "ours", "model": "voice@3"},
        {"label": "theirs", "model": "big-model", "endpoint": "elsewhere"},
    ]
    folder = make_folder({"arms": arms}, context={"candidate": None, "models": {"ours": "voice@3"}})
    with RunDirectory(folder) as held:
        assert work(held, Settings(endpoints=named)) == DONE
    report = json.loads((folder / REPORT).read_bytes())
    assert report["labels"] == ["ours", "theirs"]
    assert {"big-model", "voice@3"} <= {model for model, _ in gateway.asked()}


@pytest.fixture
def arbiter(gateway: EvaluationGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that name a judge, the model `big`."""
    monkeypatch.setenv("OUTSIDE_KEY", KEY)
    named = tmp_path / "endpoints.toml"
    named.write_text(
        f'[endpoints.elsewhere]\nurl = "{gateway.url}"\nkey_env = "OUTSIDE_KEY"\n'
        '[judges.arbiter]\nendpoint = "elsewhere"\nmodel = "big"\nrubric = "The answer names the right intent."\n'
    )
    return Settings(endpoints=named)


def test_a_judge_is_asked_and_leaves_pairs_for_people(
    gateway: EvaluationGateway, make_folder: MakeFolder, arbiter: Settings
) -> None:
    gateway.say = lambda model, asked: '{"better": "A"}' if model == "big" else tuned_is_right(model, asked)
    folder = make_folder({"model": "voice@3", "judge": "arbiter"})
    with RunDirectory(folder) as held:
        assert work(held, arbiter) == DONE
    report = EvaluationReport.model_validate_json((folder / REPORT).read_bytes())
    assert report.judged is not None
    assert (report.judged.judge, report.judged.counted) == ("arbiter", False)  # no people have looked yet
    assert (folder / "reviews.jsonl").exists()
    # a verdict that a judge does not count in stands on the metric alone
    assert [one["verdict"] for one in gateway.verdicts] == ["pass"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [one["level"] for one in events if "The judge arbiter is not counted" in one["message"]] == ["warn"]


def test_a_judge_that_cannot_be_asked_costs_no_verdict(
    gateway: EvaluationGateway, make_folder: MakeFolder, arbiter: Settings
) -> None:
    gateway.refused_models["big"] = (404, "model_not_found", {})
    folder = make_folder({"model": "voice@3", "judge": "arbiter"})
    with RunDirectory(folder) as held:
        assert work(held, arbiter) == DONE
    report = EvaluationReport.model_validate_json((folder / REPORT).read_bytes())
    assert report.judged is not None
    assert (report.judged.scores, report.judged.counted) == ((), False)
    assert "its endpoint refused to answer" in (folder / PAGE).read_text()
    assert [one["verdict"] for one in gateway.verdicts] == ["pass"]
