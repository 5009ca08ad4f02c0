"""A gateway starts only where its settings name the store that its home's content is in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.config import load_settings
from service.errors import SettingsError
from service.objects.content import objects_for
from service.objects.marker import MARKER, marked_url


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "objects").mkdir()
    return f"file://{tmp_path / 'objects'}"


def test_an_empty_home_takes_the_store_and_is_held_to_it(tmp_path: Path, url: str) -> None:
    home = tmp_path / "home"
    assert objects_for(load_settings(home=home, store_url=url)) is not None
    assert marked_url(home) == url
    assert objects_for(load_settings(home=home, store_url=url)) is not None
    with pytest.raises(SettingsError, match=f"set HATRACK_STORE_URL={url}"):
        objects_for(load_settings(home=home))
    with pytest.raises(SettingsError, match="HATRACK_STORE_URL is s3://other"):
        objects_for(load_settings(home=home, store_url="s3://other"))


@pytest.mark.parametrize("content", ["adapters/" + "a" * 64 + "/x", "files/file-1"])
def test_content_that_is_only_here_is_not_taken_for_a_cache(tmp_path: Path, url: str, content: str) -> None:
    path = tmp_path / "home" / content
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert objects_for(load_settings(home=tmp_path / "home")) is None
    with pytest.raises(SettingsError, match="hatrack move-store"):
        objects_for(load_settings(home=tmp_path / "home", store_url=url))
    assert not (tmp_path / "home" / MARKER).exists()


def test_a_home_without_a_store_gets_no_file(tmp_path: Path) -> None:
    assert objects_for(load_settings(home=tmp_path / "home")) is None
    assert not (tmp_path / "home").exists()


def test_a_gateway_without_a_store_does_not_load_its_library() -> None:
    program = "import sys, service.app, service.cli.main; assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[4])
