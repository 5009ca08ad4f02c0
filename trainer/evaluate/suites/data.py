"""Where the questions of MMLU and GSM8K come from: the operator's directory, else the hub that the settings name.

Only plain data is read (JSON lines, CSV, Parquet): no task file and no loading script, which could run code. Without a
hub nothing is ever fetched.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from trainer.errors import SuiteUnavailable
from trainer.evaluate.arms import Frozen

T = TypeVar("T")
Row = TypeVar("Row", bound=BaseModel)
LETTERS: Final = "ABCD"
MAX_FILE_BYTES: Final = 256 * 2**20
SEED: Final = 20
MMLU_HUB: Final = ("cais/mmlu", {"test": "all/test-00000-of-00001.parquet", "dev": "all/dev-00000-of-00001.parquet"})
GSM8K_HUB: Final = ("openai/gsm8k", {"test": "main/test-00000-of-00001.parquet"})
PACKAGED: Final = "lm_eval"
SHIPPED: Final = "development questions that lm-evaluation-harness ships (MMLU's test is not here)"
_PACKAGED_QUESTION: Final = re.compile(r"(.*?)\n\(A\)(.*?)\(B\)(.*?)\(C\)(.*?)\(D\)((?:(?!\(E\)).)*)", re.DOTALL)
_PACKAGED_ANSWER: Final = re.compile(r"answer is \(([A-D])\)")


class MmluQuestion(Frozen):
    """A question of MMLU; ``answer`` counts from 0."""

    question: str = Field(min_length=1)
    choices: tuple[str, str, str, str]
    answer: int = Field(ge=0, le=3)
    subject: str = Field(min_length=1, max_length=100)


class Gsm8kProblem(Frozen):
    """A problem of GSM8K; the answer ends with `#### number`."""

    question: str = Field(min_length=1)
    answer: str = Field(pattern=r"####\s*\S+\s*$")


@dataclass(frozen=True, slots=True)
class MmluData:
    """Questions, examples to show before them by subject (or none), and what they are in words."""

    test: tuple[MmluQuestion, ...]
    dev: dict[str, tuple[MmluQuestion, ...]]
    source: str


@dataclass(frozen=True, slots=True)
class Gsm8kData:
    """Problems, and what they are in words."""

    test: tuple[Gsm8kProblem, ...]
    source: str


@dataclass(frozen=True, slots=True)
class DataSources:
    """Where data may come from."""

    directory: Path | None
    hub: str | None
    cache: Path | None = None


def mmlu(places: DataSources) -> MmluData:
    """MMLU's test questions: from `DIR/mmlu` (the hub's fields as JSON lines or Parquet, or the original CSV files),
    from the hub, or the 281 development questions with four choices that lm-evaluation-harness ships.

    Raises:
        SuiteUnavailable: What is there cannot be read.
    """
    test = [*_rows(places, "mmlu", "test", MMLU_HUB, _mmlu_csv)]
    if not test:
        return MmluData(_validated(MmluQuestion, packaged_mmlu(), "lm-eval's package"), {}, SHIPPED)
    dev: dict[str, list[MmluQuestion]] = {}
    shots = [*_rows(places, "mmlu", "dev", MMLU_HUB, _mmlu_csv)]
    for each in _validated(MmluQuestion, shots, "mmlu/dev") if shots else ():
        dev.setdefault(each.subject, []).append(each)
    return MmluData(
        _validated(MmluQuestion, test, "mmlu/test"),
        {subject: tuple(found) for subject, found in dev.items()},
        "test questions",
    )


def gsm8k(places: DataSources) -> Gsm8kData:
    """GSM8K's test problems: from `DIR/gsm8k/test.jsonl` (or `.parquet`), or from the hub.

    Raises:
        SuiteUnavailable: There are none, or they cannot be read.
    """
    found = [*_rows(places, "gsm8k", "test", GSM8K_HUB, None)]
    if not found:
        raise SuiteUnavailable(
            "the suite `gsm8k` has no data here: put its test.jsonl into the directory gsm8k/ of "
            "HATRACK_TRAINER_SUITES_DIR, or name a hub with HATRACK_TRAINER_SUITES_HUB"
        )
    return Gsm8kData(_validated(Gsm8kProblem, found, "gsm8k/test"), "test problems")


def sample(found: Sequence[T], limit: int) -> list[T]:
    """At most so many of them, drawn with a fixed seed, in their order: the same for every arm and every evaluation."""
    if len(found) <= limit:
        return list(found)
    places = sorted(random.Random(SEED).sample(range(len(found)), limit))  # noqa: S311 (a sample, no secret)
    return [found[place] for place in places]


def packaged_mmlu() -> list[dict[str, Any]]:
    """MMLU's development questions as lm-evaluation-harness ships them for few-shot prompts; one has a fifth choice and
    is left out. Raises SuiteUnavailable: the package is not installed."""
    import yaml

    try:
        folder = files(PACKAGED) / "tasks" / "mmlu" / "flan_cot_fewshot"
        names = sorted(path.name for path in folder.iterdir() if re.fullmatch(r"mmlu_\w+\.yaml", path.name))
        pages = [yaml.safe_load((folder / name).read_text("utf-8")) for name in names]
    except (ModuleNotFoundError, OSError, yaml.YAMLError) as error:
        raise SuiteUnavailable(f"lm-evaluation-harness is not installed here (the extra `suites`): {error}") from error
    return [
        {
            "question": found[1].strip(),
            "choices": [part.strip() for part in found.groups()[1:]],
            "answer": LETTERS.index(answer[-1]),
            "subject": page["dataset_name"],
        }
        for page in pages
        for shot in (page.get("fewshot_config") or {}).get("samples", ())
        if (found := _PACKAGED_QUESTION.fullmatch(shot["question"].strip()))
        and (answer := _PACKAGED_ANSWER.findall(shot["target"]))
    ]


Kind = Literal["test", "dev"]
ReadCsv = Callable[[str, str], Iterator[dict[str, Any]]]


def _rows(
    places: DataSources, name: str, kind: Kind, hub: tuple[str, dict[str, str]], read_csv: ReadCsv | None
) -> Iterator[dict[str, Any]]:
    """The directory's rows; where it has none, the hub's."""
    paths = [] if places.directory is None else _files(places.directory / name, kind)
    repository, remote = hub
    if not paths and places.hub is not None and kind in remote:
        paths = [_fetch(places.hub, repository, remote[kind], places.cache)]
    for path in paths:
        yield from _read(path, read_csv)


def _files(folder: Path, kind: Kind) -> list[Path]:
    flat = [folder / f"{kind}{suffix}" for suffix in (".jsonl", ".parquet")]
    found = [path for path in flat if path.is_file()][:1]
    return found or (sorted((folder / kind).glob("*.csv")) if (folder / kind).is_dir() else [])


def _read(path: Path, read_csv: ReadCsv | None) -> Iterator[dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SuiteUnavailable(f"{path} has more than {MAX_FILE_BYTES} bytes")
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            yield from parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv" and read_csv is not None:
            yield from read_csv(path.stem, path.read_text("utf-8"))
        else:
            for line in path.read_bytes().splitlines():  # of a text they would end at U+2028, too, which JSON may hold
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise SuiteUnavailable(f"{path} cannot be read: {error}") from error


def _mmlu_csv(stem: str, content: str) -> Iterator[dict[str, Any]]:
    """The original files, one a subject: question, four choices, letter."""
    subject = re.sub(r"_(test|dev)$", "", stem)
    for row in csv.reader(io.StringIO(content)):
        if len(row) != 6 or row[5].strip() not in LETTERS:
            raise ValueError(f"a row with {len(row)} fields: question, four choices and a letter are wanted")
        yield {"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5].strip()), "subject": subject}


def _validated(kind: type[Row], rows: Sequence[dict[str, Any]], where: str) -> tuple[Row, ...]:
    fields = set(kind.model_fields)
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(kind.model_validate({name: row[name] for name in fields}))
        except (ValidationError, KeyError, TypeError) as error:
            raise SuiteUnavailable(f"{where}, row {number} is none: {error}") from error
    if not found:
        raise SuiteUnavailable(f"{where} is empty")
    return tuple(found)


def _fetch(hub: str, repository: str, name: str, cache: Path | None) -> Path:
    """A file of the hub's, kept in the cache. Raises SuiteUnavailable."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # without a token: whatever is in the environment was not meant for this hub
        found = hf_hub_download(repository, name, repo_type="dataset", endpoint=hub, cache_dir=cache, token=False)
        return Path(found)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise SuiteUnavailable(f"{repository}/{name} cannot be had from {hub}: {type(error).__name__}") from error
