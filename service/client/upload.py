"""What the client uploads: the output directory of a PEFT run, read with progress."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from adapters.dataset.formats import read_lines
from adapters.dataset.lines import Problem, describe_problems
from service.client.wire import ClientError, JsonObject

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
README_FILE: Final = "README.md"
METADATA_FILE: Final = "metadata.json"
SETTINGS_FILE: Final = "settings.json"


@dataclass(frozen=True, slots=True)
class AdapterDirectory:
    """The parts of an upload in a PEFT output directory; `metadata` and `settings` are files in it."""

    config: Path
    weights: Path
    readme: Path | None
    metadata: JsonObject | None
    settings: JsonObject | None

    @classmethod
    def read(cls, directory: Path | str) -> Self:
        """Look at a directory without reading its weights.

        Raises:
            ClientError: `not_an_adapter` or `json_invalid`; nothing was sent.
        """
        root = Path(directory)
        if not root.is_dir():
            raise ClientError(0, "not_an_adapter", f"{root} is not a directory.")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (root / name).is_file():
                raise ClientError(0, "not_an_adapter", _missing(root, name))
        readme = root / README_FILE
        return cls(
            config=root / CONFIG_FILE,
            weights=root / WEIGHTS_FILE,
            readme=readme if readme.is_file() else None,
            metadata=read_json_object(root / METADATA_FILE) if (root / METADATA_FILE).is_file() else None,
            settings=read_json_object(root / SETTINGS_FILE) if (root / SETTINGS_FILE).is_file() else None,
        )


def _missing(root: Path, name: str) -> str:
    if name == WEIGHTS_FILE and (root / "adapter_model.bin").is_file():
        return (
            f"{root} contains its weights as a pickle (adapter_model.bin), which Hatrack does not read; "
            "save them again with `model.save_pretrained(DIR, safe_serialization=True)`."
        )
    return f"{root} has no {name}; pass the directory written by PEFT's `save_pretrained`."


def read_json_object(path: Path) -> JsonObject:
    """Read a file that holds one JSON object.

    Raises:
        ClientError: `json_invalid`: it cannot be read, is not JSON or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClientError(0, "json_invalid", f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ClientError(0, "json_invalid", f"{path} does not contain a JSON object.")
    return value


def read_examples(path: Path | str) -> list[JsonObject]:
    """The examples for a version's prompt in a file of training data, in any of its formats: one question and answer a
    line, without a system message.

    Raises:
        ClientError: `examples_invalid`: the file cannot be read, or a line is not such an example.
    """
    try:
        reader, examples = read_lines(Path(path).read_bytes())
    except OSError as error:
        raise not_readable(error) from error
    problems = list(reader.problems)
    for example in examples:
        roles = [message.role for message in example.messages]
        if "system" in roles:
            problems.append(Problem(example.line, "a system message belongs in the version's system prompt"))
        elif roles != ["user", "assistant"]:
            problems.append(Problem(example.line, f"must be one question and its answer; got {', '.join(roles)}"))
    if problems or not examples:
        problems.sort(key=lambda problem: problem.line)
        reason = describe_problems(problems) if problems else "it has no examples"
        raise ClientError(0, "examples_invalid", f"{path} cannot be used as examples: {reason}.", "settings.examples")
    return [{"user": example.messages[0].content, "assistant": example.messages[1].content} for example in examples]


class CountedFile(io.FileIO):
    """A file that reports how many bytes of it were read, which for an upload is how many were handed to the socket."""

    def __init__(self, path: Path | str, progress: Callable[[int], None] | None) -> None:
        super().__init__(path, "rb")
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        if self._progress is not None:
            self._progress(len(data))
        return data


def not_readable(error: OSError) -> ClientError:
    """The ClientError for a file on this machine that cannot be read."""
    return ClientError(0, "not_readable", f"{error.filename} cannot be read: {error.strerror}.")


def packages_missing(error: ModuleNotFoundError) -> ClientError:
    """The ClientError where weights shall be read, and the light client was installed without the packages for it."""
    message = f"Reading weights on this machine needs {error.name}: install `hatrack-client[weights]`."
    return ClientError(0, "packages_missing", message)


def file_sha256(path: Path | str) -> str:
    """The SHA-256 of a file on this machine, in hex. Raises ClientError `not_readable`."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise not_readable(error) from error
