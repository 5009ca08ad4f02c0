"""A training job's recipe as a TOML file: everything that the job was asked for, so that it can be asked again.

    format = 1
    adapter = "brand-voice"
    model = "tiny-base"          # or the version that the training starts from
    seed = 7
    [data]
    dataset = "support@3"        # or file = "examples.jsonl", relative to the recipe
    sha256 = "…"

What was left to the trainer is left out: it is chosen from the data again.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from adapters.errors import AdapterError
from adapters.names import parse_dataset, parse_name
from service.cli.datasets import DataSource, find_version
from service.client import ClientError, HatrackClient
from service.client.output import writing
from service.client.upload import file_sha256

FORMAT: Final = 1
HYPERPARAMETERS: Final = (
    *(
        "n_epochs",
        "batch_size",
        "learning_rate_multiplier",
        "learning_rate",
        "lora_rank",
        "lora_alpha",
        "held_out_share",
    ),
    *("lora_dropout", "target_modules", "rslora", "quantization", "max_length", "packing", "warmup_ratio"),
    *("validation_share", "early_stopping_patience", "beta", "overflow"),
    *(
        "adapter",
        "system_prompt",
        "strict",
        "drop_long",
        "promote",
        "metric",
        "suites",
        "judge",
        "grounding",
        "sampling",
    ),
)
"""The names that a job's `hyperparameters` may have; a test compares them with the API's."""
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KINDS: Final[Mapping[str, tuple[type, str]]] = {
    "format": (int, "an integer"),
    "adapter": (str, "a string"),
    "model": (str, "a string"),
    "seed": (int, "an integer"),
    "method": (str, "a string"),
    "promote": (str, "a string"),
    "metric": (str, "a string"),
    "suites": (str, "a string, the names separated by commas"),
    "judge": (str, "a string"),
    "strict": (bool, "true or false"),
    "drop_long": (bool, "true or false"),
    "system_prompt": (str, "a string"),
    "data": (dict, "a table"),
    "held_out": (dict, "a table"),
    "hyperparameters": (dict, "a table"),
    "file": (str, "a string"),
    "dataset": (str, "a string"),
    "sha256": (str, "a string"),
}
_DATA_KEYS: Final = ("dataset", "file", "sha256")
_TOP_KEYS: Final = tuple(key for key in _KINDS if key not in _DATA_KEYS)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a job is asked for. ``model``: the base's name or `name@version`. ``metric``: a name, or JSON as text."""

    adapter: str
    model: str
    data: DataSource
    held_out: DataSource | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    method: Literal["supervised", "dpo"] = "supervised"
    promote: str = "auto"
    metric: str | None = None
    suites: str | None = None
    judge: str | None = None
    strict: bool = False
    drop_long: bool = False
    system_prompt: str | None = None


def write_recipe(path: Path, recipe: Recipe, job_id: str) -> None:
    """Write a recipe's file. Raises ClientError `not_writable` or `disk_full`; the job has been created by then."""
    with writing(path, f"The job {job_id} was created all the same."):
        path.write_text(recipe_text(recipe, path.parent, job_id), encoding="utf-8")


def recipe_text(recipe: Recipe, directory: Path, job_id: str) -> str:
    """A recipe as TOML.

    Args:
        directory: Where its file is, to which the names of data files are relative.

    Raises:
        ClientError: `recipe_invalid`: a hyperparameter has a value that TOML does not have, JSON's null.
    """
    options = {
        "metric": recipe.metric,
        "suites": recipe.suites,
        "judge": recipe.judge,
        "system_prompt": recipe.system_prompt,
    }
    lines = [
        f"# The recipe of {job_id}. To train it again:  hatrack train --recipe FILE",
        "# What is not set here is chosen from the data. Data whose SHA-256 differs is refused.",
        f"format = {FORMAT}",
        "",
        f"adapter = {_value(recipe.adapter)}  # gets the new version",
        f"model = {_value(recipe.model)}  # the base, or the version that the training starts from",
        *([] if recipe.seed is None else [f"seed = {recipe.seed}  # order of examples, sampling, initial weights"]),
        *([] if recipe.method == "supervised" else [f"method = {_value(recipe.method)}  # or supervised"]),
        f"promote = {_value(recipe.promote)}  # auto: a version that passes goes live; never",
        f"strict = {_value(recipe.strict)}  # treat warnings of the data check as errors",
        f"drop_long = {_value(recipe.drop_long)}  # leave out examples that are too long",
        *(f"{name} = {_value(value)}" for name, value in options.items() if value is not None),
        "",
        "[data]",
        *_source_lines(recipe.data, directory),
        "",
    ]
    if recipe.held_out is not None:
        lines += ["[held_out]", *_source_lines(recipe.held_out, directory), ""]
    if recipe.hyperparameters:
        lines.append("[hyperparameters]  # as requested")
        lines += [f"{_key(name)} = {_value(value)}" for name, value in recipe.hyperparameters.items()]
        lines.append("")
    return "\n".join(lines)


def _source_lines(source: DataSource, directory: Path) -> list[str]:
    if source.path is None:
        named = f"dataset = {_value(str(source.dataset))}"
    else:
        relative = os.path.relpath(source.path.resolve(), directory.resolve())
        named = f"file = {_value(Path(relative).as_posix())}  # relative to this recipe"
    return [named, f"sha256 = {_value(source.sha256)}"]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _value(value: Any) -> str:
    """A value as TOML. Raises ClientError for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(str(key))} = {_value(item)}" for key, item in value.items()) + "}"
    raise ClientError(0, "recipe_invalid", "A recipe cannot hold the value null; leave the hyperparameter out.")


def _text(text: str) -> str:
    """A string as TOML: on several lines if it has several. JSON's escapes are TOML's, but for DEL."""
    lines = [json.dumps(line, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f") for line in text.split("\n")]
    return f'"{lines[0]}"' if len(lines) == 1 else '"""\n' + "\n".join(lines) + '"""'


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's file, without looking at its data.

    Raises:
        ClientError: `recipe_invalid`, naming the key: it is no TOML, a key is unknown, missing or of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClientError(0, "not_readable", f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is not TOML: {error}")
    _check_keys(path, content, _TOP_KEYS, "")
    if content.get("format") != FORMAT:
        _refuse(path, f"`format` must be {FORMAT}; got {content.get('format')!r}")
    for key in ("adapter", "model", "data"):
        if key not in content:
            _refuse(path, f"`{key}` is missing")
    try:
        parse_name(content["adapter"])
    except AdapterError as error:
        _refuse(path, f"`adapter`: {error.message}")
    if content.get("promote", "auto") not in ("auto", "never"):
        _refuse(path, f'`promote` must be "auto" or "never"; got {content["promote"]!r}')
    if content.get("method", "supervised") not in ("supervised", "dpo"):
        _refuse(path, f'`method` must be "supervised" or "dpo"; got {content["method"]!r}')
    hyperparameters = content.get("hyperparameters", {})
    _check_names(path, hyperparameters, HYPERPARAMETERS, "hyperparameters.")
    for name, value in hyperparameters.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):  # a date, nan
            _refuse(path, f"`hyperparameters.{name}` must be a value that JSON has; got {value!r}")
    options = {key: value for key, value in content.items() if key not in ("format", "data", "held_out")}
    held_out = _source(path, content["held_out"], "held_out.") if "held_out" in content else None
    return Recipe(**options | {"data": _source(path, content["data"], "data."), "held_out": held_out})


def _source(path: Path, table: Mapping[str, Any], prefix: str) -> DataSource:
    _check_keys(path, table, _DATA_KEYS, prefix)
    if ("file" in table) == ("dataset" in table):
        _refuse(path, f"`{prefix}file` or `{prefix}dataset` must be set, and not both")
    if _SHA256.fullmatch(table.get("sha256", "")) is None:
        _refuse(path, f"`{prefix}sha256` must be 64 hex digits; got {table.get('sha256')!r}")
    if "file" in table:
        return DataSource(table["sha256"], path=path.parent / table["file"])
    try:
        reference = parse_dataset(table["dataset"])
    except AdapterError as error:
        _refuse(path, f"`{prefix}dataset`: {error.message}")
    if reference.version is None:
        _refuse(path, f"`{prefix}dataset` must name a version, such as {reference.name}@1; got {table['dataset']!r}")
    return DataSource(table["sha256"], dataset=reference.label)


def _check_keys(path: Path, table: Mapping[str, Any], known: Collection[str], prefix: str) -> None:
    _check_names(path, table, known, prefix)
    for key, value in table.items():
        kind, allowed = _KINDS[key]
        if type(value) is not kind:  # a boolean is no integer
            _refuse(path, f"`{prefix}{key}` must be {allowed}; got {value!r}")


def _check_names(path: Path, table: Mapping[str, Any], known: Collection[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{prefix}{close[0]}`?" if close else f"known are {', '.join(known)}"
            _refuse(path, f"unknown key `{prefix}{key}`; {hint}")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ClientError(0, "recipe_invalid", f"{path}: {reason}.".replace("?.", "?"))


def require_same_data(client: HatrackClient, source: DataSource) -> None:
    """Check that the data is still what it was when the recipe was saved.

    Raises:
        ClientError: `data_changed`; `not_readable` or 404 if it is gone.
    """
    if source.path is not None:
        current = file_sha256(source.path)
    else:
        current = find_version(client, parse_dataset(str(source.dataset)))["sha256"]
    if current != source.sha256:
        message = (
            f"{source.path or source.dataset} is not the data that the recipe was saved with: its SHA-256 is "
            f"{current}, and the recipe has {source.sha256}. Restore the data, or train on it without the recipe."
        )
        raise ClientError(0, "data_changed", message)
