"""The questions of MMLU and GSM8K, from the operator's directory or else from the hub in the settings.

Only plain data is read (JSON lines, CSV, Parquet), no task files or loading scripts, which could run code. Without a
hub nothing is downloaded.
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
from trainer.runs.protocol import Frozen

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
    """Test questions, few-shot examples by subject (may be empty), and a description."""

    test: tuple[MmluQuestion, ...]
    dev: dict[str, tuple[MmluQuestion, ...]]
    source: str


@dataclass(frozen=True, slots=True)
class Gsm8kData:
    """Test problems, and a description."""

    test: tuple[Gsm8kProblem, ...]
    source: str


@dataclass(frozen=True, slots=True)
class DataSources:
    """Where data may come from: a directory, a hub's URL, and a cache for its files."""

    directory: Path | None
    hub: str | None
    cache: Path | None = None


def mmlu(sources: DataSources) -> MmluData:
    """MMLU's test questions: from `DIR/mmlu` (the hub's fields as JSON lines or Parquet, or the original CSV files),
    from the hub, or the 281 development questions with four choices that lm-evaluation-harness ships.

    Raises:
        SuiteUnavailable: The data is invalid or cannot be read.
    """
    test = [*_rows(sources, "mmlu", "test", MMLU_HUB, _mmlu_csv)]
    if not test:
        return MmluData(_validated(MmluQuestion, packaged_mmlu(), "lm-eval's package"), {}, SHIPPED)
    dev: dict[str, list[MmluQuestion]] = {}
    shots = [*_rows(sources, "mmlu", "dev", MMLU_HUB, _mmlu_csv)]
    for question in _validated(MmluQuestion, shots, "mmlu/dev") if shots else ():
        dev.setdefault(question.subject, []).append(question)
    return MmluData(
        _validated(MmluQuestion, test, "mmlu/test"),
        {subject: tuple(questions) for subject, questions in dev.items()},
        "test questions",
    )


def gsm8k(sources: DataSources) -> Gsm8kData:
    """GSM8K's test problems: from `DIR/gsm8k/test.jsonl` (or `.parquet`), or from the hub.

    Raises:
        SuiteUnavailable: There is no data, or it is invalid or cannot be read.
    """
    rows = [*_rows(sources, "gsm8k", "test", GSM8K_HUB, None)]
    if not rows:
        raise SuiteUnavailable(
            "the suite `gsm8k` has no data: put its test.jsonl into gsm8k/ in HATRACK_TRAINER_SUITES_DIR, or set "
            "HATRACK_TRAINER_SUITES_HUB"
        )
    return Gsm8kData(_validated(Gsm8kProblem, rows, "gsm8k/test"), "test problems")


def sample(items: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` items in their order, drawn with a fixed seed: the same for every arm and evaluation."""
    if len(items) <= limit:
        return list(items)
    indices = sorted(random.Random(SEED).sample(range(len(items)), limit))  # noqa: S311 (a sample, no secret)
    return [items[index] for index in indices]


def packaged_mmlu() -> list[dict[str, Any]]:
    """MMLU's development questions as lm-evaluation-harness ships them for few-shot prompts; one has a fifth choice and
    is left out. Raises SuiteUnavailable: the package is not installed."""
    import yaml

    try:
        directory = files(PACKAGED) / "tasks" / "mmlu" / "flan_cot_fewshot"
        names = sorted(path.name for path in directory.iterdir() if re.fullmatch(r"mmlu_\w+\.yaml", path.name))
        configs = [yaml.safe_load((directory / name).read_text("utf-8")) for name in names]
    except (ModuleNotFoundError, OSError, yaml.YAMLError) as error:
        raise SuiteUnavailable(
            f"lm-evaluation-harness is not installed; install the extra `suites`: {error}"
        ) from error
    return [
        {
            "question": match[1].strip(),
            "choices": [part.strip() for part in match.groups()[1:]],
            "answer": LETTERS.index(answer[-1]),
            "subject": config["dataset_name"],
        }
        for config in configs
        for shot in (config.get("fewshot_config") or {}).get("samples", ())
        if (match := _PACKAGED_QUESTION.fullmatch(shot["question"].strip()))
        and (answer := _PACKAGED_ANSWER.findall(shot["target"]))
    ]


Kind = Literal["test", "dev"]
ReadCsv = Callable[[str, str], Iterator[dict[str, Any]]]


def _rows(
    sources: DataSources, name: str, kind: Kind, hub: tuple[str, dict[str, str]], read_csv: ReadCsv | None
) -> Iterator[dict[str, Any]]:
    """The rows from the directory; if it has none, from the hub."""
    paths = [] if sources.directory is None else _files(sources.directory / name, kind)
    repository, remote = hub
    if not paths and sources.hub is not None and kind in remote:
        paths = [_fetch(sources.hub, repository, remote[kind], sources.cache)]
    for path in paths:
        yield from _read(path, read_csv)


def _files(directory: Path, kind: Kind) -> list[Path]:
    candidates = [directory / f"{kind}{suffix}" for suffix in (".jsonl", ".parquet")]
    flat_files = [path for path in candidates if path.is_file()][:1]
    return flat_files or (sorted((directory / kind).glob("*.csv")) if (directory / kind).is_dir() else [])


def _read(path: Path, read_csv: ReadCsv | None) -> Iterator[dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SuiteUnavailable(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            yield from parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv" and read_csv is not None:
            yield from read_csv(path.stem, path.read_text("utf-8"))
        else:
            for (
                line
            ) in path.read_bytes().splitlines():  # str.splitlines would also split at U+2028, which JSON may contain
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise SuiteUnavailable(f"cannot read {path}: {error}") from error


def _mmlu_csv(stem: str, content: str) -> Iterator[dict[str, Any]]:
    """Parse an original file, one per subject: question, four choices, letter."""
    subject = re.sub(r"_(test|dev)$", "", stem)
    for row in csv.reader(io.StringIO(content)):
        if len(row) != 6 or row[5].strip() not in tuple(LETTERS):
            raise ValueError(
                f"a row has {len(row)} fields and ends with {row[-1][:20] if row else ''!r}; expected a question, four "
                "choices and a letter from A to D"
            )
        yield {"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5].strip()), "subject": subject}


def _validated(kind: type[Row], rows: Sequence[dict[str, Any]], where: str) -> tuple[Row, ...]:
    fields = set(kind.model_fields)
    validated = []
    for number, row in enumerate(rows, start=1):
        try:
            validated.append(kind.model_validate({name: row[name] for name in fields}))
        except (ValidationError, KeyError, TypeError) as error:
            raise SuiteUnavailable(f"{where}, row {number} is invalid: {error}") from error
    if not validated:
        raise SuiteUnavailable(f"{where} is empty")
    return tuple(validated)


def _fetch(hub: str, repository: str, name: str, cache: Path | None) -> Path:
    """A file of the hub's, kept in the cache. Raises SuiteUnavailable."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # without a token: one in the environment is not meant for this hub
        path = hf_hub_download(repository, name, repo_type="dataset", endpoint=hub, cache_dir=cache, token=False)
        return Path(path)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise SuiteUnavailable(f"cannot download {repository}/{name} from {hub}: {type(error).__name__}") from error
