"""The sample voices have seen passages as the gateway quotes them."""

from __future__ import annotations

import re

import pytest

from service.grounding.template import DEFAULT_TEMPLATE, DELIMITER_CHARS, DELIMITER_LETTERS, LABEL
from trainer.data.format import read_chat
from trainer.samples import NAMES, data_file

HEAD = DEFAULT_TEMPLATE.partition("{passages}")[0]
BLOCK = re.compile(rf"\[\d\] {LABEL.pattern}\n<<([{DELIMITER_LETTERS}]{{{DELIMITER_CHARS}}})\n.+?\n\1>>", re.S)


@pytest.mark.parametrize("name", NAMES)
def test_every_grounded_pair_has_the_default_templates_form(name: str) -> None:
    examples = read_chat(data_file(name).with_suffix(".grounded.jsonl"), min_examples=30).examples
    marks = set()
    for example in examples:
        asked = example.messages[0].content
        assert asked.startswith(HEAD)
        passages, question = asked.removeprefix(HEAD).rsplit("\n\n", 1)
        assert BLOCK.sub("", passages).strip() == ""
        assert question.endswith("?")
        marks |= set(BLOCK.findall(passages))
    assert len(marks) == len(examples), "a mark that comes again would be learned"
