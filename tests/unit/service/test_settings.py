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
    ("base_model", "name", "label"),
    [
        ("hf://acme/My.Base@v1.0", "my.base", "acme/My.Base"),
        ("acme/My.Base@refs/pr/3", "my.base", "acme/My.Base"),
        ("acme/My.Base", "my.base", "acme/My.Base"),
        ("/models/My.Base@v1", "my.base-v1", "/models/My.Base@v1"),
    ],
)
def test_a_base_from_a_hub_is_named_without_its_revision(base_model: str, name: str, label: str) -> None:
    settings = Settings(base_model=base_model)
    assert (settings.base_dir.name, settings.base_served_name, settings.base_label) == (name, name, label)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HATRACK_SOURCES", "hf://acme ftp://files.example"),
        ("HATRACK_SOURCES", "https://user:secret@files.example"),
        ("HATRACK_SOURCES", "s3://"),
        ("HATRACK_SOURCE_REDIRECTS", "*.hf.co https://cdn.example"),
        ("HATRACK_SOURCE_REDIRECTS", "*"),
        ("HATRACK_HUB_URL", "hub.example"),
        ("HATRACK_HUB_URL", "https://user:secret@hub.example"),
    ],
)
def test_a_source_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_sources_are_separated_by_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_SOURCES", " hf://acme  s3://models/a/ ")
    assert [str(prefix) for prefix in load_settings().source_prefixes] == ["hf://acme", "s3://models/a"]


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
