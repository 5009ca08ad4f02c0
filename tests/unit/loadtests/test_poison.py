"""The demonstration's poison is what the gateway refuses at its door, and nothing else is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base import BaseDescription
from adapters.errors import WeightsError
from adapters.inspect import inspect_weights
from adapters.manifest import Manifest
from loadtests.poison import poisoned
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
