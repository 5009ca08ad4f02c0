from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.chat_template import MERGE_SYSTEM, merged_template, served_template
from tests.support.adapters import describe_base, make_base
from tests.support.templates import ALTERNATES, CHATML, DROPS_THINKING, IGNORES_SYSTEM, PARTS, REFUSES_SYSTEM
from tests.unit.trainer.conftest import make_tokenizer

SYSTEM = {"role": "system", "content": "You are a sailor."}
QUESTION = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "Aye"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_base(tmp_path / "model")


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    """What transformers, and so the trainer and the engine, make of the template."""
    tokenizer = make_tokenizer(template)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, ALTERNATES, IGNORES_SYSTEM, PARTS])
def test_a_system_message_begins_the_first_question_where_the_template_does_not_render_it(template: str) -> None:
    merged = merged_template(template)
    assert merged is not None
    joined = {"role": "user", "content": "You are a sailor.\n\nhi"}
    for rest in ([], [ANSWER, QUESTION]):
        assert rendered(merged, [SYSTEM, QUESTION, *rest]) == rendered(template, [joined, *rest])
        assert rendered(merged, [QUESTION, *rest]) == rendered(template, [QUESTION, *rest])


def test_contents_in_parts_are_merged_too() -> None:
    merged = merged_template(PARTS)
    assert merged is not None
    parts = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    expected = rendered(PARTS, [{"role": "user", "content": "You are a sailor.\n\nhi"}])
    assert rendered(merged, [SYSTEM, parts]) == expected
    assert (
        rendered(merged, [{**SYSTEM, "content": [{"type": "text", "text": SYSTEM["content"]}]}, QUESTION]) == expected
    )


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        DROPS_THINKING,
        "{{ raise_exception('never') }}",
        "{% if %}",
        "a constant",
        "{% generation %}{{ messages[0].content + messages[-1].content }}{% endgeneration %}",
    ],
)
def test_any_other_template_stays_as_it_is(template: str) -> None:
    assert merged_template(template) is None


def test_the_bases_template_is_replaced_and_its_fingerprint_tells(model: Path) -> None:
    assert served_template(model) is None
    (model / "chat_template.jinja").write_text(REFUSES_SYSTEM)
    assert served_template(model) == MERGE_SYSTEM + REFUSES_SYSTEM
    replaced = describe_base(model).fingerprint.template
    (model / "chat_template.jinja").write_text(MERGE_SYSTEM + REFUSES_SYSTEM)
    assert served_template(model) is None
    assert describe_base(model).fingerprint.template == replaced


def test_a_template_in_the_tokenizers_config_counts_and_one_of_several_does_not(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": REFUSES_SYSTEM}))
    assert served_template(model) == MERGE_SYSTEM + REFUSES_SYSTEM
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": REFUSES_SYSTEM}]}))
    assert served_template(model) is None
