"""GROUNDING.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from service.config import Settings
from service.grounding.attribution import MAX_COMPARED_CHARS, MIN_WORD_CHARS
from service.grounding.citations import MAX_EXCERPT_CHARS
from service.grounding.config import GroundingSettings
from service.grounding.hook import MAX_HEADER_CHARS, MAX_QUESTION_CHARS
from service.grounding.outcome import OUTCOMES
from service.grounding.provider import Query
from service.knowledge.documents.blocks import MAX_HEADING
from service.knowledge.documents.tables import MAX_ATTRIBUTES, MAX_STRING

REPO = Path(__file__).parents[4]
PAGE = (REPO / "service" / "grounding" / "GROUNDING.md").read_text()
PROSE = " ".join(PAGE.split())
README = (REPO / "README.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_setting_of_a_version_is_on_the_page_and_no_other() -> None:
    named = re.findall(r"^\| `(\w+)` \|", section("In a request"), re.M)
    named += re.findall(r"`(\w+)`", " ".join(section("In a version").split()).split("Besides the members above:")[1])
    assert set(named) == set(GroundingSettings.model_fields)


def test_every_outcome_is_on_the_page_and_no_other() -> None:
    table = section("What the answer says").split("`x-hatrack-grounding` |")[1]
    rows = "".join(re.findall(r"^\| (`.+`) \|", table, re.M))
    assert re.findall(r"`(\w+)`", rows) == list(OUTCOMES)


def test_the_numbers_are_the_codes() -> None:
    assert f"its last {MAX_QUESTION_CHARS:,} characters" in PROSE
    assert f"up to {MAX_EXCERPT_CHARS:,} characters" in PROSE
    assert f"first {MAX_COMPARED_CHARS:,} characters" in PROSE
    assert MIN_WORD_CHARS == 4
    assert "words of at least four letters" in PROSE
    default = Settings.model_fields["grounding_min_score"].default
    assert f"else {default}" in section("In a request")
    assert MAX_HEADER_CHARS == 1024
    assert "the ids, up to 1 KiB" in PROSE


def test_a_querys_members_are_on_the_page() -> None:
    said = section("A provider in a package").split("`Query` has")[1].split(";")[0]
    assert re.findall(r"`(\w+)`", said) == list(Query.__dataclass_fields__)


def test_the_readmes_walkthrough_is_the_pages() -> None:
    """The page's is run by an integration test: what the README shows must be the same commands in the same order."""
    shown = README.split("**Keep facts in documents.**")[1].split("\n## ")[0]
    commands, run = (
        "".join(re.findall(r"```bash\n(.*?)```", text, re.S)).splitlines() for text in (shown, section("A walkthrough"))
    )
    assert "hatrack kb add tidewater-shop shop/" in commands
    left = iter(run)
    assert [line for line in commands if line not in left] == []


def test_the_limits_of_a_line_of_json_are_the_codes() -> None:
    assert f"at most {MAX_ATTRIBUTES} strings ({MAX_STRING} characters)" in PROSE
    assert f"at most {MAX_HEADING} characters are kept" in PROSE
