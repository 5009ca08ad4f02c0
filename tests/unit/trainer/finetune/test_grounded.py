"""A version that is trained on from a grounded one: what it is pushed with, and what it is judged against."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway, jsonl, rows
from trainer.data.formats import read_dataset
from trainer.evaluate.arms import GROUNDED_NOTE
from trainer.finetune.judging import Judging
from trainer.finetune.registering import register
from trainer.finetune.spec import JobSpec, PrimaryMetric, TrainingPlan
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import EVENTS
from trainer.tune.recipe import Recipe

GROUNDING = {"vector_store_ids": ["vs_shop"], "template": None, "max_passage_tokens": 700}
PRIMARY = PrimaryMetric(name="exact_match", why="w", answers=("a", "b"), max_tokens=16)
PLAN = TrainingPlan(
    recipe=Recipe(rank=4, epochs=1, batch_size=4, max_length=64),
    chosen={},
    system_prompt="Be salty.",
    grounding=GROUNDING,
    sampling={"temperature": 0.2},
    tokens_an_epoch=9,
    primary=PRIMARY,
)


def test_the_new_version_is_pushed_with_the_plan_s_settings(tmp_path: Path) -> None:
    pushed: list[dict[str, Any]] = []

    def push(*_: Any, settings: dict[str, Any], **__: Any) -> dict[str, Any]:
        pushed.append(settings)
        return {"adapter": "voice", "version": 2, "digest": "d"}

    training = SimpleNamespace(trained_tokens=1, seconds=1.0, device="cpu", cost=None, final_loss=0.5)
    metadata = SimpleNamespace(training=training, model_dump_json=lambda: "{}")
    job, gateway = SimpleNamespace(adapter="voice", base_name="tiny", keep_version_s=None), SimpleNamespace(push=push)
    with RunDirectory(tmp_path) as folder:
        for plan in (PLAN, PLAN.model_copy(update={"grounding": None, "sampling": None})):
            register(
                cast(Any, job), folder, cast(Any, gateway), plan=plan, output=tmp_path, metadata=cast(Any, metadata)
            )
    grounding = pushed[0].pop("grounding")
    assert (grounding["vector_store_ids"], grounding["max_passage_tokens"]) == (["vs_shop"], 700)
    assert pushed == [{"system_prompt": "Be salty.", "sampling": {"temperature": 0.2}}, {"system_prompt": "Be salty."}]


def test_a_version_that_may_not_go_live_is_recorded_with_the_reason(tmp_path: Path) -> None:
    why = "with it, the perplexity of plain text is 42 times the base's"

    def push(*_: Any, **__: Any) -> dict[str, Any]:
        return {"adapter": "voice", "version": 2, "digest": "d", "held_back": {"code": "c", "message": why}}

    training = SimpleNamespace(trained_tokens=1, seconds=1.0, device="cpu", cost=None, final_loss=0.5)
    metadata = SimpleNamespace(training=training, model_dump_json=lambda: "{}")
    job, gateway = SimpleNamespace(adapter="voice", base_name="tiny", keep_version_s=None), SimpleNamespace(push=push)
    with RunDirectory(tmp_path) as folder:
        result = register(
            cast(Any, job), folder, cast(Any, gateway), plan=PLAN, output=tmp_path, metadata=cast(Any, metadata)
        )
    assert result.held_back == why
    assert f"voice@2 is held back from `live`: {why}" in (tmp_path / EVENTS).read_text()


@pytest.mark.parametrize("grounded", [True, False])
def test_the_base_is_asked_with_the_new_version_s_grounding(
    make_job: Any, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, grounded: bool
) -> None:
    directory = make_job()
    job = JobSpec.model_validate_json((directory / "spec.json").read_bytes())
    way = Gateway(gateway.url, KEY)
    template = "{{ enable_thinking }}" if grounded else "{{ messages }}"
    monkeypatch.setattr("trainer.finetune.judging.chat_template", lambda _: template)
    prepared = SimpleNamespace(training=read_dataset("t", jsonl(rows()))[1], held_out=())
    with RunDirectory(directory) as folder:
        judging = Judging(
            job,
            folder,
            way,
            lambda: None,
            plan=PLAN if grounded else PLAN.model_copy(update={"grounding": None}),
            primary=PRIMARY,
            prepared=cast(Any, prepared),
            metadata=cast(Any, None),
            name="voice@2",
        )
        fixed, _ = judging._fix_comparison()
        again = judging._repeat_body(fixed.evaluation, judging._evaluator.uploaded())
    way.close()
    asked = {"vector_store_ids": ["vs_shop"], "max_passage_tokens": 700} if grounded else None
    assert [arm.grounding for arm in fixed.evaluation.arms] == [None, asked, asked]
    assert fixed.notes == ((GROUNDED_NOTE,) if grounded else ())
    assert fixed.evaluation.template_switches == ({"enable_thinking": False} if grounded else {})
    # it is judged again as it was judged
    assert again is not None
    assert [arm.get("grounding") for arm in again["arms"]] == [None, asked, asked]
