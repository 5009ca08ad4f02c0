"""Sketches tell near-duplicates from other questions as the exact comparison does, but near its threshold."""

from __future__ import annotations

import hashlib

import pytest

from tests.unit.trainer.evaluate.worlds import asked
from trainer.data.similar import NearDuplicates
from trainer.evaluate.sketches import SKETCH_BYTES, near_duplicates, sketches

TEXTS = tuple(f"{asked(number)} My parcel for {asked(number + 1000)} came {number} days late" for number in range(40))


def test_a_sketch_depends_on_the_folded_question_and_has_one_size() -> None:
    made = sketches(TEXTS)
    assert {len(sketch) for sketch in made} == {SKETCH_BYTES}
    assert len(set(made)) == len(TEXTS)
    assert sketches(tuple(f"Hello, {text.upper()}!!" for text in TEXTS)) == made
    assert sketches((*TEXTS[:3], TEXTS[0])) == (*sketches(TEXTS[:3]), sketches(TEXTS[:3])[0])


def test_stored_sketches_stay_what_they_are() -> None:
    digest = hashlib.sha256(b"".join(sketches(TEXTS))).hexdigest()
    assert digest == "2fad93260222dbe63baf58a6ba20670a10fb0e3b26ed825a24689abaa3d9220d"


@pytest.mark.parametrize("edit", ["{} ok", "{} \U0001f642", "so {}", "{} again please"])
def test_what_the_exact_comparison_calls_near_a_sketch_does_too(edit: str) -> None:
    edited = tuple(edit.format(text) for text in TEXTS)
    exact = [sorted(match.same + match.similar) for match in NearDuplicates(TEXTS).of(edited)]
    assert exact == [[at] for at in range(40)]
    assert near_duplicates(sketches(TEXTS), sketches(edited)) == exact


def test_other_questions_are_no_near_duplicates() -> None:
    assert near_duplicates([], sketches(TEXTS)) == [[]] * 40
    assert near_duplicates(sketches(TEXTS[:20]), sketches(TEXTS[20:])) == [[]] * 20
