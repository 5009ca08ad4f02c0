from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.format import read_chat
from trainer.samples import NAMES, RECIPE, data_file, heldout_file
from trainer.samples.__main__ import main


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_has_enough_pairs_and_none_of_them_is_held_out(name: str) -> None:
    trained = read_chat(data_file(name), min_examples=120)
    heldout = read_chat(heldout_file(name), min_examples=10)
    questions = [example.messages[-2].content.casefold() for example in trained.examples]
    assert len(set(questions)) == len(questions)
    assert not set(questions) & {example.messages[-2].content.casefold() for example in heldout.examples}
    answers = [example.messages[-1].content for example in trained.examples]
    assert len(set(answers)) == len(answers)


def test_the_samples_fit_the_smallest_engine() -> None:
    assert RECIPE.rank <= 16


def test_the_command_says_what_is_wrong_with_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", str(tmp_path), "--out", str(tmp_path / "samples")]) == 1
    shown = capsys.readouterr()
    assert "base_model_incomplete" in shown.err
    assert shown.out == ""
