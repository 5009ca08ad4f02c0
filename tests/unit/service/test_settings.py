"""Settings: every one documented, every mistake named."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import Settings, load_settings
from service.errors import SettingsError

PAGE = Path(__file__).parents[3] / "service" / "SETTINGS.md"


def rows() -> dict[str, str]:
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `HATRACK_"):
            found[cells[0].strip("` ")] = cells[2]
    return found


def test_every_setting_is_documented_as_the_code_has_it() -> None:
    documented = rows()
    for name, field in Settings.model_fields.items():
        assert documented.pop(f"HATRACK_{name.upper()}") == field.description
    of_the_client = {"HATRACK_URL", "HATRACK_KEY", "HATRACK_PROJECT", "HATRACK_PROFILE"}
    assert set(documented) == of_the_client, "a documented setting that does not exist"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HATRACK_PORT", "99999"),
        ("HATRACK_ENGINE_MAX_RANK", "12"),
        ("HATRACK_ENGINE_SLOTS", "many"),
        ("HATRACK_MAX_BODY_MIB", "-1"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert name in str(caught.value)
    assert value in str(caught.value)


def test_fewer_resident_adapters_than_slots_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_ENGINE_SLOTS", "8")
    monkeypatch.setenv("HATRACK_ENGINE_RESIDENT", "4")
    with pytest.raises(
        SettingsError, match=r"HATRACK_ENGINE_RESIDENT \(4\) must be at least HATRACK_ENGINE_SLOTS \(8\)"
    ):
        load_settings()


def test_the_admin_key_is_never_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_ADMIN_KEY", "a-very-secret-key-0123")
    assert "a-very-secret" not in repr(load_settings())
