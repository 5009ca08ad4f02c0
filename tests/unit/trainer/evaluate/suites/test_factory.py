"""What a worker plugs in, and what is said before an evaluation is taken on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.suites.test_measured import write_gsm8k
from tests.unit.trainer.evaluate.worlds import QUICK
from trainer.config import Settings
from trainer.errors import EndpointUnknown, SandboxUnavailable, SettingsError, SuiteUnavailable
from trainer.evaluate import factory
from trainer.evaluate.arms import Arm
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.factory import WorkerContext, check_available, judge_of, suites_of
from trainer.evaluate.likelihood import HttpScorer
from trainer.evaluate.pairs import AGREEMENT, JudgeAgreement
from trainer.evaluate.run import run
from trainer.evaluate.spec import SUITES, EvaluationSpec, MetricOptions
from trainer.evaluate.verdict import Rules
from trainer.runs.protocol import OutsideCharge

RUBRIC = "The better answer is right, and says so shortly."


def wanted(*suites: str, judge: str | None = None) -> EvaluationSpec:
    return EvaluationSpec(
        arms=(Arm(label="shop@3", model="shop@3"), Arm(label="base", model="base")),
        candidate="shop@3",
        bases=("base",),
        metric=MetricOptions(name="exact_match"),
        suites=suites,
        rules=Rules(method=QUICK, min_examples=5),
        repeats=1,
        scored=0,
        judge=judge,
    )


@pytest.fixture
def context(gateway: Gateway, tmp_path: Path) -> WorkerContext:
    endpoint = Endpoint(gateway.url, SecretStr(KEY))
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "endpoints.toml").write_text(
        f'[endpoints.big]\nurl = "{gateway.url}"\nkey_file = "{tmp_path}/key"\n'
        f'[judges.strict]\nendpoint = "big"\nmodel = "large-1"\nrubric = "{RUBRIC}"\n'
    )
    settings = Settings(endpoints=tmp_path / "endpoints.toml", suites_limit=20)
    folder = tmp_path / "eval-1"
    folder.mkdir()
    return WorkerContext(endpoint, HttpScorer(endpoint, folder / "scores.jsonl"), folder, settings)


def test_every_suite_of_the_list_can_be_plugged_in(context: WorkerContext) -> None:
    assert set(suites_of(wanted(*SUITES), context)) | {"general"} == set(SUITES)
    assert set(suites_of(wanted("general", "mmlu"), context)) == {"mmlu"}
    assert suites_of(wanted("general"), context) == {}


async def test_a_suite_in_a_chat_is_asked_with_the_evaluations_template_switches(
    gateway: Gateway, context: WorkerContext, tmp_path: Path
) -> None:
    write_gsm8k(tmp_path)
    context = replace(context, settings=context.settings.model_copy(update={"suites_dir": tmp_path}))
    spec = wanted("gsm8k").model_copy(update={"template_switches": {"enable_thinking": False}})
    await suites_of(spec, context)["gsm8k"].run(spec.arm("base"), spec.arm("shop@3"))
    assert len(gateway.requests) == 2 * 20
    assert all(body.get("chat_template_kwargs") == {"enable_thinking": False} for _, body in gateway.requests)


async def test_an_evaluation_with_a_suite_and_a_judge(gateway: Gateway, context: WorkerContext) -> None:
    from tests.unit.trainer.evaluate.worlds import questions
    from trainer.evaluate.asking import HttpAnswerer

    def say(model: str, asked: str) -> str:
        if model == "large-1":
            return '{"better": "A"}'
        number = int(asked.split()[1].rstrip("?"))
        return f"answer {number}" if model == "shop@3" and number % 2 else f"a wrong one to {number}"

    gateway.say = say
    gateway.likely = {"base": {"A"}, "shop@3": {"A"}}
    spec = wanted("mmlu", judge="strict")
    charges: list[OutsideCharge] = []
    context = replace(context, on_charge=charges.append)
    outcome = await run(
        spec,
        questions(10),
        answerer=HttpAnswerer(context.gateway, context.folder / "answers.jsonl"),
        scorer=context.scorer,
        suites=suites_of(spec, context),
        judge=judge_of(spec, context),
    )
    assert [(result.name, result.silent) for result in outcome.suites] == [("mmlu", True)]
    assert outcome.judged is not None
    assert (outcome.judged.judge, outcome.judged.counted) == ("strict", False)
    assert "people have looked at 0 of its votes" in outcome.judged.sentence
    assert len(charges) == len([model for model, _ in gateway.asked() if model == "large-1"]) > 0
    assert {each.endpoint for each in charges} == {"big"}
    assert outcome.verdict is not None
    assert "judge" not in {check.name for check in outcome.verdict.checks}


def test_the_stored_agreement_of_a_judge_is_used(context: WorkerContext) -> None:
    judge = judge_of(wanted(judge="strict"), context)
    assert judge is not None
    assert judge._agreement.pairs == 0
    standing = JudgeAgreement(digest=judge._settings.digest, pairs=60, kappa=0.9, low=0.8, high=1.0, observed=0.95)
    (context.folder / AGREEMENT).write_text(standing.model_dump_json())
    judge = judge_of(wanted(judge="strict"), context)
    assert judge is not None
    assert judge._agreement == standing


def test_a_judge_that_has_gone_from_the_settings_is_an_error(context: WorkerContext, tmp_path: Path) -> None:
    assert judge_of(wanted(), context) is None
    with pytest.raises(EndpointUnknown, match="known: strict"):
        judge_of(wanted(judge="mild"), context)
    (tmp_path / "key").unlink()
    with pytest.raises(SettingsError, match="cannot read the key"):
        judge_of(wanted(judge="strict"), context)


def test_what_cannot_be_had_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_available(["general", "mmlu"], Settings())
    with pytest.raises(SuiteUnavailable, match=r"gsm8k.*HATRACK_TRAINER_SUITES_DIR"):
        check_available(["gsm8k"], Settings(suites_dir=tmp_path))
    with pytest.raises(SuiteUnavailable, match="HATRACK_TRAINER_SANDBOX=on"):
        check_available(["humaneval"], Settings())

    async def broken() -> None:
        raise SandboxUnavailable("no sandbox can be made here: no namespaces")

    monkeypatch.setattr(factory, "prove_sandbox", broken)
    with pytest.raises(SandboxUnavailable, match="no namespaces"):
        check_available(["humaneval"], Settings(sandbox="on"))


def test_without_the_extra_the_suites_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SuiteUnavailable, match="the extra `suites`"):
        check_available(["mmlu"], Settings())
