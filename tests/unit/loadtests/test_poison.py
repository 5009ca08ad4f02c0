"""The demonstration's poison is what the gateway refuses at its door, and nothing else is wrong with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseDescription
from adapters.errors import WeightsError
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from loadtests.poison import Answer, HatrackRun, PlainRun, answered, failed_claims, poisoned
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base


def inspect(files: AdapterFiles, base: BaseDescription) -> None:
    inspect_weights(files.weights_path, Manifest.parse(files.config, max_rank=64), base)


def test_one_weight_that_is_not_a_number_is_all_that_is_wrong_with_the_poison(tmp_path: Path) -> None:
    base = describe_base(make_base(tmp_path / "base"))
    voice = make_adapter(tmp_path / "voice", base)
    inspect(voice, base)
    poison = AdapterFiles(poisoned(voice.directory, tmp_path / "poison"))
    with pytest.raises(WeightsError, match="not finite"):
        inspect(poison, base)


BEFORE = {"base": Answer(200, "At sea."), "voice": Answer(200, "Aye.")}
SILENT = Answer(200, " ")
ERROR = Answer(503, "no engine", "server_error")
PLAIN = PlainRun(BEFORE, SILENT, dict.fromkeys(BEFORE, SILENT))
REFUSED = Answer(422, "a weight is not finite")
NOT_FINITE = Answer(500, "NaN", "adapter_not_finite")
OURS = HatrackRun([BEFORE], REFUSED, NOT_FINITE, BEFORE, BEFORE)


def test_nothing_can_be_compared_with_an_error_before_the_poison() -> None:
    assert answered(BEFORE) == BEFORE
    with pytest.raises(SystemExit, match="voice answers 503 before anything is poisoned"):
        answered(BEFORE | {"voice": ERROR})


def test_all_claims_hold() -> None:
    assert failed_claims(PLAIN, OURS) == []
    other_sums = BEFORE | {"voice": Answer(200, "Yes.")}
    assert failed_claims(PLAIN, replace(OURS, known=[BEFORE, other_sums], beside=other_sums)) == []


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ({"after": BEFORE | {"base": SILENT}}, "Plain vLLM's voice did not fall silent: .*Aye"),
        ({"after": {"base": SILENT, "voice": Answer(200, "!!!!")}}, "Plain vLLM's voice did not fall silent: .*!!!!"),
        ({"after": {"base": SILENT, "voice": ERROR}}, "Plain vLLM's voice did not fall silent: .*503"),
        ({"before": BEFORE | {"voice": SILENT}}, "Plain vLLM's voice did not fall silent"),
        ({"poison": ERROR}, "Plain vLLM answers the poisoned adapter with .*503"),
        ({"poison": Answer(200, "Aye.")}, "Plain vLLM answers the poisoned adapter with .*Aye"),
    ],
)
def test_what_plain_vllm_does_not_do_is_a_failure(plain: dict[str, Any], sentence: str) -> None:
    (failure,) = failed_claims(replace(PLAIN, **plain), OURS)
    assert re.match(sentence, failure)


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        ({"upload": Answer(201, "taken")}, "Hatrack did not refuse the upload with 422, .*taken"),
        ({"upload": ERROR}, "Hatrack did not refuse the upload with 422, .*503"),
        ({"poison": Answer(200, "")}, "Hatrack's engine answers for the poison with .*200"),
        ({"poison": Answer(500, "oops", "InternalServerError")}, "Hatrack's engine answers for the poison with .*oops"),
        ({"beside": BEFORE | {"voice": ERROR}}, "Hatrack's voice gives no answer from before beside the poison"),
        (
            {"after": BEFORE | {"base": Answer(200, "!!")}},
            "Hatrack's base gives no answer from before after the poison",
        ),
        ({"known": [BEFORE | {"base": SILENT}], "after": {"base": SILENT}, "beside": {}}, "Hatrack's base gives no"),
    ],
)
def test_what_hatrack_does_not_do_is_a_failure(ours: dict[str, Any], sentence: str) -> None:
    (failure,) = failed_claims(PLAIN, replace(OURS, **ours))
    assert re.match(sentence, failure)
