"""Providers of other packages, installed as packages are."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.grounding.plugins import load_plugins
from service.grounding.provider import Query

REPO = Path(__file__).parents[4]
PAGE = REPO / "service" / "grounding" / "GROUNDING.md"


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, points: str) -> None:
    """Put a package with these entry points where Python finds it."""
    (tmp_path / "my_faq.py").write_text(code)
    info = tmp_path / "my_faq-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-faq\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hatrack.grounding]\n{points}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_faq", raising=False)
    importlib.invalidate_caches()


def example(page: Path) -> tuple[str, str]:
    """The package that a page shows: its code, and its entry point."""
    code, points = re.findall(r"```(?:python|toml)\n# my_faq[^\n]*\n(.*?)```", page.read_text(), re.S)
    name, value = re.findall(r'^(\w+) = "(.+)"$', points, re.M)[0]
    return code, f"{name} = {value}"


async def test_the_ten_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, points = example(PAGE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    install(tmp_path, monkeypatch, code, points)
    provider = load_plugins()["faq"]
    query = Query("How fast do you ship?", [], None, "default", (), k=3)
    [passage] = await provider.retrieve(query, 0.0)
    assert passage.text == "We ship within two working days."
    assert await provider.retrieve(Query("What is the weather?", [], None, "default", ()), 0.0) == []


@pytest.mark.parametrize(
    ("code", "points", "why"),
    [
        ("class P: pass", "faq = my_faq:P", "has no method `retrieve`"),
        ("raise RuntimeError('no licence')", "faq = my_faq:P", "no licence"),
        ("class P: pass", "faq = my_faq:Q", "cannot be loaded"),
        ("class P: pass", "embedded = my_faq:P", "cannot be named 'embedded'"),
        ("class P: pass", "Not A Name = my_faq:P", "cannot be named"),
    ],
)
def test_what_cannot_be_a_provider_is_a_mistake_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, points: str, why: str
) -> None:
    install(tmp_path, monkeypatch, code, points)
    with pytest.raises(SettingsError, match=why):
        load_plugins()
