"""The Cranfield collection (Cleverdon 1967): 1,400 abstracts, 225 questions, and which abstracts answer which.

The files are ``cran.all.1400``, ``cran.qry`` and ``cranqrel`` as the University of Glasgow distributes them
(http://ir.dcs.gla.ac.uk/resources/test_collections/cran/).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NUMBER: Final = re.compile(r"\.I\s+(\d+)")
_FIELD: Final = re.compile(r"\.([TABW])\s*$")


@dataclass(frozen=True, slots=True)
class Abstract:
    """One document; ``text`` does not repeat the title, as the file's does."""

    number: int
    title: str
    text: str

    @property
    def markdown(self) -> str:
        """As somebody would put it into a store."""
        return f"# {self.title}\n\n{self.text}\n"


@dataclass(frozen=True, slots=True)
class Cranfield:
    """The collection. ``judged[q]`` has the grades of question ``q``'s relevant abstracts by number: 4 is best."""

    abstracts: list[Abstract]
    questions: list[str]
    judged: list[dict[int, int]]


def load(directory: Path) -> Cranfield:
    """Read the three files."""
    abstracts = []
    for number, fields in _records(directory / "cran.all.1400"):
        title, text = fields.get("T", ""), fields.get("W", "")
        abstracts.append(Abstract(number, title, text.removeprefix(title).strip()))
    questions = [fields["W"] for _, fields in _records(directory / "cran.qry")]
    judged: list[dict[int, int]] = [{} for _ in questions]
    for line in (directory / "cranqrel").read_text().splitlines():
        question, abstract, code = (int(word) for word in line.split()[:3])
        # codes run from 1, a complete answer, to 4; the file marks one abstract a question with -1, which is the one
        # that it was asked about, and every system finds these first of all
        judged[question - 1][abstract] = 4 if code < 0 else 5 - code
    return Cranfield(abstracts, questions, judged)


def _records(path: Path) -> list[tuple[int, dict[str, str]]]:
    records: list[tuple[int, dict[str, str]]] = []
    field = ""
    for line in path.read_text(encoding="latin-1").splitlines():
        if number := _NUMBER.match(line):
            records.append((int(number[1]), {}))
        elif name := _FIELD.match(line):
            field = name[1]
        else:
            fields = records[-1][1]
            fields[field] = f"{fields.get(field, '')} {' '.join(line.split())}".strip()
    return records
