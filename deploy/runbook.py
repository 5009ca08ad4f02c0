"""Writes deploy/prometheus/consoles/runbook.html, the page of RUNBOOK.md that Prometheus serves and its alerts link to.

    .venv/bin/python deploy/runbook.py    # after a change of RUNBOOK.md; a test compares the two

Prometheus serves it because it is the one part that runs whenever an alert fires, the gateway being down included.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

DEPLOY = Path(__file__).parent
RUNBOOK = DEPLOY / "RUNBOOK.md"
PAGE = DEPLOY / "prometheus" / "consoles" / "runbook.html"
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Hatrack: runbook</title>
<style>
:root { color-scheme: light dark; }
body { max-width: 52rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
h2 { margin-top: 2rem; scroll-margin-top: 0.5rem; }
h2:target { background: Mark; color: MarkText; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid GrayText; }
</style>
</head>
<body>
<!-- written by deploy/runbook.py from deploy/RUNBOOK.md -->
"""


def page(markdown: str) -> str:
    """RUNBOOK.md as HTML: each heading has an id, as on a Git host, and links to other files are their text alone, as
    Prometheus does not have those files.

    Raises:
        ValueError: the text has `{{`, which Prometheus would run as a template.
    """
    if "{{" in markdown:
        raise ValueError("RUNBOOK.md contains {{, which Prometheus would run as a template")
    parser = MarkdownIt("commonmark", {"html": False})
    tokens = parser.parse(markdown)
    for opening, text in pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", text.content.lower().replace(" ", "-"))
        if text.children:
            text.children = _without_links_to_files(text.children)
    body: str = parser.renderer.render(tokens, parser.options, {})
    return HEAD + body + "</body>\n</html>\n"


def _without_links_to_files(tokens: Sequence[Token]) -> list[Token]:
    kept: list[Token] = []
    is_dropped = False
    for token in tokens:
        if token.type == "link_open":
            is_dropped = not str(token.attrGet("href")).startswith(("#", "https://"))
        if not (is_dropped and token.type in ("link_open", "link_close")):
            kept.append(token)
    return kept


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(RUNBOOK.read_text()))
