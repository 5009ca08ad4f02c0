"""The trainer's settings: every one documented, every mistake named, the environment read in one place."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import trainer
from adapters.costs import CostSettings
from service.config.secret_names import SECRETS as GATEWAY_SECRETS
from trainer.config import NOT_INHERITED, Settings, load_settings, run_environment, visible_gpus, worker_environment
from trainer.errors import SettingsError

PACKAGE = Path(trainer.__file__).parent


def test_every_setting_is_documented_as_the_code_has_it() -> None:
    documented = {}
    for line in (PACKAGE / "SETTINGS.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `HATRACK_"):
            documented[cells[0].strip("` ")] = (cells[1], cells[2])
    own = Settings.model_fields.keys() - CostSettings.model_fields.keys()
    for name in own:
        field = Settings.model_fields[name]
        default = "unset" if field.default in (None, ()) else str(field.default)
        assert documented.pop(f"HATRACK_TRAINER_{name.upper()}") == (default, field.description)
    assert documented == {}


def test_prices_are_read_from_the_gateways_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_PRICE_DEVICE_HOUR", "2.5")
    monkeypatch.setenv("HATRACK_PRICE_PERSON_HOUR", "60")
    monkeypatch.setenv("HATRACK_LOG_LEVEL", "debug")  # the gateway's own
    settings = load_settings()
    assert (settings.prices.device_hour, settings.prices.person_hour) == (2.5, 60)
    assert settings.log_level == "info"


def test_earlier_names_of_the_prices_go_on_working(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_TRAINER_PRICE_PER_HOUR", "3")
    monkeypatch.setenv("HATRACK_TRAINER_PRICE_PERSON_HOUR", "50")
    assert (load_settings().prices.device_hour, load_settings().prices.person_hour) == (3, 50)
    monkeypatch.setenv("HATRACK_PRICE_DEVICE_HOUR", "4")
    assert load_settings().prices.device_hour == 4


def test_no_price_is_none_and_not_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().prices.device_hour is None
    monkeypatch.setenv("HATRACK_PRICE_DEVICE_HOUR", "0")
    assert load_settings().prices.device_hour == 0


@pytest.mark.parametrize("variable", ["HATRACK_PRICE_DEVICE_HOUR", "HATRACK_TRAINER_PRICE_PERSON_HOUR"])
def test_a_wrong_price_is_named_as_it_was_set(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "-7")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("DEVICE", "tpu"), ("DEVICE", "cuda:x"), ("YIELD_ABOVE", "-1"), ("KEEP_DAYS", "long"), ("MAX_QUEUED", "0")],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HATRACK_TRAINER_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"HATRACK_TRAINER_{name}" in str(caught.value)
    assert value in str(caught.value)


def test_the_secret_is_never_in_a_message_and_no_worker_inherits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_TRAINER_SECRET", "too-short")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "too-short" not in str(caught.value)
    for name in NOT_INHERITED:
        prefix = "postgresql://u:" if "DATABASE" in name else "https://" if name.endswith("URL") else ""
        monkeypatch.setenv(name, f"{prefix}a-very-secret-key-0123{'@db/hatrack' if 'DATABASE' in name else ''}")
    assert "a-very-secret" not in repr(load_settings())
    assert not any("a-very-secret" in value for value in worker_environment().values())
    assert worker_environment()["PATH"] == os.environ["PATH"]
    of_run = {name for name, value in run_environment().items() if "a-very-secret" in value}
    assert of_run == {"HATRACK_TRAINER_DATABASE_URL"}, "its worker records looks there"
    monkeypatch.setenv("HATRACK_TRAINER_DATABASE_URL", "mysql://u:a-very-secret-key-0123@db/hatrack")
    with pytest.raises(SettingsError, match="must be postgresql://") as caught:
        load_settings()
    assert "a-very-secret" not in str(caught.value)


def test_no_worker_inherits_a_secret_of_the_gateway() -> None:
    assert set(NOT_INHERITED) >= GATEWAY_SECRETS


def test_the_gpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8a56")
    assert visible_gpus() == ("2", "GPU-8a56")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()


def test_nothing_else_reads_the_environment() -> None:
    readers = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "config.py"
        and any(
            isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert readers == []
